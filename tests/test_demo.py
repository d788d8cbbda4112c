"The whole job from the shell: it helps for three seeds, survives SIGKILL, and runs on a foreign model."
import csv, os, random, shutil, signal, subprocess, sys
from importlib.resources import files
from pathlib import Path

import pytest

from conftest import kill_when

DEMO = [str(Path(sys.executable).parent/"dpo_demo")]

def demo(folder, *flags):
    done = subprocess.run([*DEMO, "--output_dir", str(folder), *map(str, flags)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout

def measures(folder): return {row[""]: {k: float(v) for k, v in row.items() if k} for row in csv.DictReader(open(folder/"evaluation"/"measures.csv", newline=""))}

@pytest.mark.parametrize("seed", [0, 1, 2])
def test_the_tuned_model_is_better_by_the_oracle(tmp_path, seed):
    said = demo(tmp_path, "--seed", seed)
    assert measures(tmp_path)["score"]["low"] > 0
    for shown in ("The funnel", "chosen", "loss", "better:", "win rate"): assert shown in said
    for picture in ("curves.png", "evaluation/comparison.png"): assert (tmp_path/picture).read_bytes().startswith(b"\x89PNG")

SMALL = "--num_instructions", "20", "--num_test_instructions", "40", "--num_epochs", "1"
KEPT = "recipe.json", "responses.jsonl", "rankings.jsonl", "training.jsonl", "pairs/*", "adapter/*", "evaluation/*.csv", "evaluation/*.jsonl"

def kept(folder): return {str(p.relative_to(folder)): p.read_bytes() for pattern in KEPT for p in folder.glob(pattern)}

def lines(path): return path.read_bytes().count(b"\n") if path.exists() else 0

MOMENTS = {
    "while it samples": lambda run: lines(run/"responses.jsonl") > 20,
    "while it ranks": lambda run: lines(run/"rankings.jsonl") > 5,
    "while it trains": lambda run: (run/"checkpoints").is_dir() and any((run/"checkpoints").iterdir()),
    "while it compares": lambda run: lines(run/"evaluation/tuned.jsonl") >= 1,
}

def start(folder):
    listen = lambda: signal.signal(signal.SIGINT, signal.SIG_DFL) # A shell's background jobs are deaf to Ctrl-C, and their children too
    return subprocess.Popen([*DEMO, "--output_dir", str(folder), *SMALL], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, preexec_fn=listen)

def test_a_killed_demo_ends_like_an_unbroken_one(tmp_path):
    broken, unbroken = tmp_path/"broken", tmp_path/"unbroken"
    demo(unbroken, *SMALL)
    for moment, reached in MOMENTS.items(): assert kill_when(start(broken), lambda: reached(broken)) == -signal.SIGKILL, moment
    demo(broken, *SMALL)
    a, b = kept(unbroken), kept(broken)
    assert a.keys() == b.keys() and "adapter/adapter_model.safetensors" in a
    assert [f for f in a if a[f] != b[f]] == []

@pytest.mark.full
def test_a_demo_that_is_killed_at_random_ends_like_an_unbroken_one(tmp_path):
    rng, broken, unbroken = random.Random(0), tmp_path/"broken", tmp_path/"unbroken"
    demo(unbroken, *SMALL)
    killed = 0
    while killed < 20:
        process = start(broken)
        try: process.wait(rng.uniform(2, 9)); shutil.rmtree(broken) # It was over before: from the beginning again
        except subprocess.TimeoutExpired: process.kill(); process.wait(); killed += 1
    demo(broken, *SMALL)
    assert kept(broken) == kept(unbroken)

def test_ctrl_c_is_no_traceback(tmp_path):
    process = start(tmp_path)
    assert kill_when(process, lambda: MOMENTS["while it samples"](tmp_path), signal.SIGINT) == 130
    assert process.stderr.read().strip().endswith("Stopped. The same command goes on where it was.")

def test_a_foreign_model_and_ones_own_questions(tmp_path, foreign_checkpoint):
    questions = files("dpo_nb.data")/"questions.txt"
    run = tmp_path/"run"
    said = demo(run, "--model", foreign_checkpoint, "--instructions", questions, "--test_instructions", questions, "--evaluator", "tiny",
                "--num_instructions", 30, "--num_test_instructions", 10, "--max_new_tokens", 40, "--allow_cut")
    assert (run/"adapter/adapter_model.safetensors").exists() and "win rate" in said
    rows = list(csv.DictReader(open(run/"evaluation/comparison.csv", newline="")))
    assert len(rows) == 10 and {"instruction", "base completion", "tuned completion"} <= set(rows[0])

def test_without_the_hub_lima_says_the_way_on(tmp_path):
    done = subprocess.run([*DEMO, "--instructions", "lima", "--output_dir", str(tmp_path)], capture_output=True, text=True, env=os.environ | {"HF_HUB_OFFLINE": "1"})
    assert done.returncode == 2 and "datasets/GAIR/lima" in done.stderr and "Traceback" not in done.stderr
