"Each script is killed at random moments and started again until it is done: nothing is lost, nothing is there twice, and it ends with the bytes of an unbroken run."
import json, os, random, shutil, signal, subprocess, sys
from collections import Counter
from pathlib import Path

import pytest

from conftest import SCRIPTS, Watch, call, differ, flags, kill_when, lines, start
from dpo_nb.trainer import checkpoints, is_whole, newest

JOURNALS = "responses.jsonl", "rankings.jsonl", "base.jsonl", "tuned.jsonl", "rankings-tuned.jsonl"

def rows(run):
    "The rows of all journals in a folder that are whole: what is on the disk and paid for."
    whole = [(p.name, line) for p in run.rglob("*.jsonl") if p.name in JOURNALS for line in p.read_bytes().splitlines(True)[1:] if line.endswith(b"\n")]
    return Counter((name, row["instruction_id"], row.get("index"), line) for name, line in whole for row in [json.loads(line)])

def doubled(rows): return sum(n - 1 for n in Counter(row[:3] for row in rows.elements()).values())

def moment(rng, events, early):
    "How many things must have happened in the folder, and how many seconds later the script is killed. `early` is the share of those that load their libraries still."
    if rng.random() < early: return 0, rng.uniform(.1, 4)
    return rng.randint(1, events), rng.choice([0, rng.uniform(0, .002), rng.uniform(0, .02), rng.uniform(0, .5)])

def is_killed(script, run, n, seconds):
    "Start a script and kill it with all its children; `False` if it had ended before."
    with Watch(run) as watch:
        process = start(script, *flags(script, run))
        if watch.wait(n, process):
            try: process.wait(seconds)
            except subprocess.TimeoutExpired: os.killpg(process.pid, signal.SIGKILL)
        said = process.communicate()[1]
    assert process.returncode in (0, -signal.SIGKILL), said
    return process.returncode != 0

def survive(script, kills, run, unbroken, record, early=0., seed=0):
    "Kill a script so many times, and let it come to its end. Where it is done before, it begins anew."
    after, before, events = unbroken(script)
    rng, total = random.Random(f"{seed} {script}"), Counter()
    while total["kills"] < kills or run.exists():
        if not run.exists(): shutil.copytree(before, run); there = rows(run)
        killed = is_killed(script, run, *(moment(rng, events, early) if total["kills"] < kills else (10**9, 0)))
        old, there = there, rows(run)
        total += Counter({"kills": killed, "rows kept": killed * there.total(), "rows lost": (old - there).total(), "rows doubled": doubled(there)})
        if not killed:
            wrong = differ(run, after)
            total += Counter({"runs": 1, "runs unequal": bool(wrong)})
            if wrong: break
            shutil.rmtree(run)
    record("kills", dict(total))
    assert wrong == [] and total["rows lost"] == total["rows doubled"] == 0

@pytest.mark.parametrize("script", SCRIPTS)
def test_a_killed_script_ends_like_an_unbroken_one(script, tmp_path, unbroken, record_property):
    survive(script, 1, tmp_path/"run", unbroken, record_property)

@pytest.mark.full
@pytest.mark.parametrize("script, kills", [*zip((*SCRIPTS, "dpo_demo"), (17, 17, 15, 17, 17, 17))])
def test_a_script_that_is_killed_again_and_again_ends_like_an_unbroken_one(script, kills, tmp_path, unbroken, record_property):
    survive(script, kills, tmp_path/"run", unbroken, record_property, early=.1, seed=1)

# By a person, or by a machine that wants its place back

@pytest.mark.parametrize("number, code", [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_stopped_script_says_so_and_goes_on(number, code, tmp_path, unbroken):
    run = tmp_path/"run"
    process = start("dpo_generate", *flags("dpo_generate", run))
    assert kill_when(process, lambda: lines(run/"responses.jsonl") > 1, number) == code
    assert process.stderr.read() == "\nStopped. The same command goes on where it was.\n"
    assert call("dpo_generate", *flags("dpo_generate", run)) == (0, "") and differ(run, unbroken("dpo_generate")[0]) == []

# What a kill may leave, made by hand and to excess

DAMAGE = {
    "cut": lambda file, rng: os.truncate(file, rng.randrange(file.stat().st_size)),
    "empty": lambda file, rng: os.truncate(file, 0),
    "missing": lambda file, rng: file.unlink(),
}
READ = "adapter_model.safetensors", "optimizer.pt", "scheduler.pt", "rng_state.pth", "trainer_state.json" # By which a training goes on

SHORT = [("adapter_model.safetensors", "cut"), ("trainer_state.json", "missing")] # The others run with --full

def almost_trained(run, unbroken):
    "A training that was killed before it wrote its adapter."
    shutil.copytree(unbroken("dpo_train")[0], run)
    shutil.rmtree(run/"adapter")
    return checkpoints(run/"checkpoints")

def trains_to_the_end(run, unbroken):
    assert call("dpo_train", *flags("dpo_train", run)) == (0, "")
    assert differ(run, unbroken("dpo_train")[0]) == []

@pytest.mark.parametrize("file, how", [pytest.param(file, how, marks=() if (file, how) in SHORT else pytest.mark.full) for file in READ for how in DAMAGE])
def test_a_torn_checkpoint_is_passed_over(file, how, tmp_path, unbroken):
    before, last = almost_trained(tmp_path/"run", unbroken)
    DAMAGE[how](last/file, random.Random(f"{file} {how}"))
    assert not is_whole(last) and newest(last.parent) == before
    trains_to_the_end(tmp_path/"run", unbroken)

def test_without_a_whole_checkpoint_a_training_begins_again(tmp_path, unbroken):
    for folder in almost_trained(tmp_path/"run", unbroken): os.truncate(folder/"optimizer.pt", 1000)
    trains_to_the_end(tmp_path/"run", unbroken)

def test_what_else_lies_about_is_passed_over(tmp_path, unbroken):
    run = tmp_path/"run"
    first, last = almost_trained(run, unbroken)
    shutil.rmtree(first)
    (run/"checkpoints"/"checkpoint-1").write_text("a file, where a folder should be")
    (run/"checkpoints"/"checkpoint-old").mkdir()
    shutil.copytree(unbroken("dpo_train")[0]/"adapter", run/"adapter.part")
    os.truncate(run/"adapter.part"/"adapter_model.safetensors", 1000)
    for name in ("training.jsonl.part", "training.json.part"): (run/name).write_text("half a li")
    os.truncate(run/"curves.png", 1000)
    assert call("dpo_train", *flags("dpo_train", run)) == (0, "")
    assert differ(run, unbroken("dpo_train")[0]) == sorted(["checkpoints/checkpoint-1", "checkpoints/checkpoint-old", f"checkpoints/{first.name}"])

@pytest.mark.parametrize("script, file", [("dpo_generate", "responses.jsonl"), ("dpo_rank", "rankings.jsonl"), ("dpo_evaluate", "evaluation/tuned.jsonl")])
def test_a_torn_journal_is_mended(script, file, tmp_path, unbroken):
    run, rng = tmp_path/"run", random.Random(file)
    shutil.copytree(unbroken(script)[0], run)
    head, *made = (run/file).read_bytes().splitlines(True)
    rng.shuffle(made)
    begun = head.replace(b'"complete": true', b'"complete": false') + b"".join(made)
    assert begun.startswith(head[:30]) and b"false" in begun
    (run/file).write_bytes(begun[:rng.randrange(len(head) + 1, len(begun) - 1)])
    Path(f"{run/file}.part").write_bytes(begun[:99])
    assert call(script, *flags(script, run)) == (0, "") and differ(run, unbroken(script)[0]) == []

def test_torn_parts_of_a_data_set_are_made_again(tmp_path, unbroken):
    run = tmp_path/"run"
    shutil.copytree(unbroken("dpo_pairs")[0], run)
    for name in ("pairs.parquet", "fates.csv"): (run/"pairs"/name).unlink()
    for name in ("pairs.parquet", "pairs.jsonl", "fates.csv", "settings.json"): (run/"pairs"/f"{name}.part").write_bytes(b"PAR1")
    code, said = call("dpo_train", *flags("dpo_train", run))
    assert code == 2 and "pairs.parquet cannot be read" in said
    assert call("dpo_pairs", *flags("dpo_pairs", run)) == (0, "") and differ(run, unbroken("dpo_pairs")[0]) == []

# Ctrl-C and SIGTERM where Python passes over errors

IN_DEL = """
import sys, time
from dpo_nb.terminal import one_line
class Slow:
    def __del__(self):
        print("here", flush=True)
        end = time.monotonic() + 60
        while time.monotonic() < end: pass
with one_line("a script"):
    s = Slow(); del s
    time.sleep(60)
    print("went on")
"""

@pytest.mark.parametrize("number, code", [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_inside_del_is_not_lost(number, code):
    process = subprocess.Popen([sys.executable, "-c", IN_DEL], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "here\n"
    process.send_signal(number)
    out, err = process.communicate(timeout=50)
    assert (process.returncode, out, err) == (code, "", "\nStopped. The same command goes on where it was.\n")
