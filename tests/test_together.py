"Two processes do a run together: they leave what one leaves, and one that is killed is made up for."
import ast, json, os, shutil, signal, subprocess, sys, time
from contextlib import suppress
from pathlib import Path

import pytest
from safetensors.torch import load_file

from conftest import differ, flags, kept, lines

BIN = Path(sys.executable).parent
TRAINED = "adapter/adapter_model.safetensors", "training.jsonl", "health.jsonl", "curves.png" # Equal to rounding: the same gradients, added up in another order

TORCHRUN = BIN/"torchrun", "--standalone", "--nproc_per_node", 2, "--no-python"
ACCELERATE = BIN/"accelerate", "launch", "--use_fsdp", "--num_processes", 2, "--num_machines", 1, "--mixed_precision", "no", "--dynamo_backend", "no", "--no_python"

def together(script, *args, launcher=TORCHRUN, **how):
    "A script in two processes."
    return subprocess.Popen([*map(str, (*launcher, BIN/script, *args))], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=os.environ | dict(OMP_NUM_THREADS="1"), start_new_session=True, **how)

def single(script, *args): return subprocess.Popen([str(a) for a in (BIN/script, *args)], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)

def workers(torchrun):
    "Number → process, of those that torchrun or accelerate has started."
    found = {}
    with suppress(OSError): # One may just have ended
        for child in Path(f"/proc/{torchrun.pid}/task/{torchrun.pid}/children").read_text().split():
            env = dict(e.split("=", 1) for e in Path(f"/proc/{child}/environ").read_bytes().decode(errors="replace").split("\0") if "=" in e)
            if "RANK" in env: found[int(env["RANK"])] = int(child)
    return found

def steps(folder): return [json.loads(line) for line in (folder/"training.jsonl").read_text().splitlines()]

def close(a, b):
    "The largest difference of two trainings: in a loss, and in a weight."
    losses = max(abs(x["loss"] - y["loss"]) for x, y in zip(steps(a), steps(b), strict=True))
    one, other = (load_file(f/"adapter"/"adapter_model.safetensors") for f in (a, b))
    return losses, max((one[k] - other[k]).abs().max().item() for k in one)

def test_a_run_is_that_of_one_process(tmp_path, unbroken):
    run, one = tmp_path/"run", unbroken("dpo_demo")[0]
    job, seen = together("dpo_demo", *flags("dpo_demo", run)), set()
    while job.poll() is None:
        seen |= {*workers(job)} | {p.name for p in run.rglob("*.process1.jsonl")}
        time.sleep(.02)
    out, err = job.communicate()
    assert job.returncode == 0, err
    assert seen >= {0, 1, "responses.process1.jsonl", "rankings.process1.jsonl"}, seen
    assert out.count("DPO on") == 1 and out.count("tuned against base, judged by") == 1 # The first process speaks for both
    assert {name for name in differ(run, one) if not name.startswith("evaluation")} <= {*TRAINED} and not [*run.rglob("*.process*")]
    assert (run/"evaluation"/"base.jsonl").read_bytes() == (one/"evaluation"/"base.jsonl").read_bytes()
    loss, weight = close(run, one)
    assert len(steps(run)) > 5 and loss < 1e-5 and weight < 1e-3

@pytest.mark.full
def test_a_comparison_is_that_of_one_process(tmp_path, unbroken):
    alone, shared = tmp_path/"alone", tmp_path/"shared"
    for folder, start in ((alone, single), (shared, together)):
        folder.mkdir()
        args = flags("dpo_evaluate", unbroken("dpo_train")[0])
        args[args.index("--output_file") + 1] = str(folder/"evaluation.csv")
        job = start("dpo_evaluate", *args)
        assert job.communicate() and job.returncode == 0
    assert len(kept(shared)) > 4 and differ(alone, shared) == []

@pytest.mark.parametrize("script, journal, victim", [("dpo_generate", "responses", 1), *(pytest.param(*p, marks=pytest.mark.full) for p in (("dpo_generate", "responses", 0), ("dpo_rank", "rankings", 1)))])
def test_a_killed_process_is_made_up_for(tmp_path, unbroken, script, journal, victim, record_property):
    run, (after, before, _) = tmp_path/"run", unbroken(script)
    shutil.copytree(before, run)
    job = together(script, *flags(script, run))
    files = run/f"{journal}.jsonl", run/f"{journal}.process1.jsonl"
    while not all(lines(f) > 1 for f in files):
        assert job.poll() is None, "it ended before it was killed"
        time.sleep(.002)
    os.kill(workers(job)[victim], signal.SIGKILL)
    job.communicate()
    assert job.returncode != 0
    written = {line for f in files if f.exists() for line in f.read_bytes().split(b"\n")[1:-1]}
    assert written
    again = (together if victim else single)(script, *flags(script, run))
    assert again.communicate() and again.returncode == 0
    rows = (run/f"{journal}.jsonl").read_bytes().split(b"\n")[1:-1]
    record_property("kills", {"kills": 1, "rows kept": len(written), "rows lost": len(written - {*rows}), "rows doubled": len(rows) - len({*rows}), "runs": 1, "runs unequal": int(bool(differ(run, after)))})
    assert written <= {*rows} and differ(run, after) == []

@pytest.mark.full
def test_a_killed_training_ends_as_one_that_never_was(tmp_path, unbroken):
    _, before, _ = unbroken("dpo_train")
    whole, killed = tmp_path/"whole", tmp_path/"killed"
    for folder in (whole, killed): shutil.copytree(before, folder)
    reference = together("dpo_train", *flags("dpo_train", whole))
    assert reference.communicate() and reference.returncode == 0
    job = together("dpo_train", *flags("dpo_train", killed))
    while not (killed/"checkpoints"/"checkpoint-4").exists():
        assert job.poll() is None, "it ended before it was killed"
        time.sleep(.002)
    os.kill(workers(job)[1], signal.SIGKILL)
    job.communicate()
    assert job.returncode != 0 and not (killed/"adapter").exists()
    again = together("dpo_train", *flags("dpo_train", killed))
    err = again.communicate()[1]
    assert again.returncode == 0, err
    assert differ(whole, killed) == []

def test_a_sharded_training_is_that_of_one_process(tmp_path, unbroken):
    "Begun as accelerate's configuration asks for it, killed, and ended by the script's own flag."
    run, (one, before, _) = tmp_path/"run", unbroken("dpo_train")
    shutil.copytree(before, run)
    job = together("dpo_train", *flags("dpo_train", run), launcher=ACCELERATE)
    while not (run/"checkpoints"/"checkpoint-4").exists():
        assert job.poll() is None, job.communicate()[1]
        time.sleep(.002)
    os.kill(workers(job)[1], signal.SIGKILL)
    job.communicate()
    assert job.returncode != 0 and not (run/"adapter").exists()
    again = together("dpo_train", *flags("dpo_train", run), "--sharded")
    err = again.communicate()[1]
    assert again.returncode == 0, err
    assert {*differ(run, one)} <= {*TRAINED}
    loss, weight = close(run, one)
    assert len(steps(run)) > 5 and loss < 1e-5 and weight < 1e-3

SHARDED = """
import os, sys, torch
from peft import get_peft_model
from torch.distributed.tensor import DTensor
from trl.trainer.utils import add_fused_lm_head
from dpo_nb.adapters import lora_config
from dpo_nb.models import load_lm
from dpo_nb.prefix import pack, share_prefixes
from dpo_nb.journal import process
whole, parts = load_lm("tiny"), load_lm("tiny", sharded=True)
local = sum((p.to_local() if isinstance(p, DTensor) else p).numel() for p in parts.model.parameters())
rows = torch.arange(4, 76).view(6, 12)[:(2, 6)[process().number]]

def gradient(lm):
    add_fused_lm_head(lm.model)
    torch.manual_seed(0)
    model = get_peft_model(lm.model, lora_config(lm.model))
    for name, p in model.named_parameters():
        if "lora_B" in name: torch.nn.init.normal_(p, std=.02)
    assert share_prefixes(model, max_tokens=30) == ""
    model.gradient_checkpointing_enable()
    scored = model.train()(input_ids=rows, attention_mask=torch.ones_like(rows), labels=rows, fused_lm_head=True).log_probs
    scored.sum().backward()
    return torch.cat([scored.flatten().detach()] + [p.grad.flatten() for p in model.parameters() if p.requires_grad])

apart = (gradient(whole) - gradient(parts)).abs().max().item()
os.write(1, f"{process().number} {len(pack(rows.tolist(), 30))} {local / whole.model.num_parameters():.2f} {apart}\\n".encode())
"""

def test_processes_with_different_bins_stay_together():
    job = subprocess.run([*map(str, TORCHRUN), sys.executable, "-c", SHARDED], capture_output=True, text=True, timeout=900)
    assert job.returncode == 0, job.stderr
    (zero, few, some, a), (one, many, others, b) = sorted(line.split() for line in job.stdout.splitlines())
    assert (zero, one) == ("0", "1") and int(few) < int(many) and float(some) < .6 and float(others) < .6
    assert max(float(a), float(b)) < 1e-4

AGAIN = """
import os, sys, warnings
import torch
from dpo_nb.adapters import load_adapter
from dpo_nb.dpo import train_dpo
from dpo_nb.generation import generate
from dpo_nb.models import load_lm
from dpo_nb.preferences import load_preferences
from dpo_nb.prefix import score
from dpo_nb.journal import first_process_first, process
pairs, out = sys.argv[1:]
pairs = load_preferences(pairs)
whole, parts = load_lm("tiny"), load_lm("tiny", sharded=True)
train = lambda lm, name, rate=5e-3, epochs=2, **how: train_dpo(lm, pairs, f"{out}/{name}", learning_rate=rate, num_epochs=epochs, batch_size=2, gradient_accumulation=7, looks=0, **how)

def refused(what):
    try: what()
    except ValueError as e: return str(e)

said = [refused(lambda: train(parts, "stopped", .05, epochs=3, stop_on_alarm=True))]
train(whole, "whole"); train(parts, "parts"); train(parts, "again")
said += [refused(what) for what in (lambda: load_adapter(parts, f"{out}/parts/adapter"), lambda: generate(parts, []), lambda: score(parts, [], []), lambda: train(parts, "fsdp", fsdp=True))]
four, stored = load_lm("tiny", quantization="nf4"), f"{out}/four"
with first_process_first():
    if not process().number:
        for part in (four.model, four.tokenizer): part.save_pretrained(stored)
said.append(refused(lambda: load_lm(stored, sharded=True)))
ids = torch.tensor([[1, 2, 3, 4]])
with torch.no_grad(): apart = (whole.model(ids).logits - parts.model(ids).logits).abs().max().item()
left = [n for n, m in parts.model.named_modules() if "lora" in n or m.training or getattr(m, "gradient_checkpointing", False)] + [n for n in ("peft_config", "forward") if n in vars(parts.model)]
if not process().number: os.write(1, repr((said, apart, left)).encode())
"""

def test_a_sharded_model_is_trained_twice_and_does_nothing_else(tmp_path, unbroken):
    job = subprocess.run([*map(str, TORCHRUN), sys.executable, "-c", AGAIN, unbroken("dpo_train")[0]/"pairs", tmp_path], capture_output=True, text=True, timeout=900)
    assert job.returncode == 0, job.stderr
    (stopped, *refused, fsdp, quantized), apart, left = ast.literal_eval(job.stdout)
    assert stopped.startswith("stopped by an alarm") and all("sharded over processes" in said for said in refused) and "set by train_dpo or load_lm" in fsdp and "stored in quantized weights" in quantized
    assert apart == 0 and left == []
    for name in ("parts", "again"):
        loss, weight = close(tmp_path/name, tmp_path/"whole")
        assert len(steps(tmp_path/name)) > 5 and loss < 1e-5 and weight < 1e-3

@pytest.mark.full
def test_four_bits_with_checkpointing_are_those_of_one_process(tmp_path, unbroken):
    alone, shared = tmp_path/"alone", tmp_path/"shared"
    for folder, start in ((alone, single), (shared, together)):
        shutil.copytree(unbroken("dpo_train")[1], folder)
        args = flags("dpo_train", folder)
        args[args.index("--dpo") + 1] = '{"gradient_checkpointing": true}'
        job = start("dpo_train", *args, "--quantization", "nf4")
        err = job.communicate()[1]
        assert job.returncode == 0, err
    assert {*differ(shared, alone)} <= {*TRAINED}
    loss, weight = close(shared, alone)
    assert loss < 1e-5 and weight < 1e-3

GROWN = """
import sys
from dpo_nb.journal import process
from dpo_nb.judging import FunctionJudge
from dpo_nb.records import Instruction, Response
out, count = sys.argv[1:]
asked = [Instruction.ask(f"Question {k}?") for k in range(int(count))]
given = [Response(i.id, k, "word " * (k + n + 1), 1, True) for n, i in enumerate(asked) for k in range(2)]
longest = FunctionJudge(lambda i, r: len(r.text), "longest")
for some in (3, 5, len(asked)):
    ids = {i.id for i in asked[:some]}
    ranked = longest.rank(asked[:some], [r for r in given if r.instruction_id in ids], out)
    sys.stdout.write(f"{process().number} {len(ranked)}\\n")  # in one piece: `print` of two processes mixes lines and their ends
    sys.stdout.flush()
"""

def test_a_finished_journal_may_grow(tmp_path):
    for count, out in ((2, tmp_path/"two.jsonl"), (1, tmp_path/"one.jsonl")):
        job = subprocess.run([BIN/"torchrun", "--standalone", "--nproc_per_node", str(count), "--no-python", sys.executable, "-c", GROWN, str(out), "8"], capture_output=True, text=True)
        assert job.returncode == 0, job.stderr
        assert sorted(job.stdout.split("\n")[:-1]) == sorted(f"{p} {n}" for p in range(count) for n in (3, 5, 8))
    assert (tmp_path/"two.jsonl").read_bytes() == (tmp_path/"one.jsonl").read_bytes()

def test_a_mistake_is_said_once(tmp_path):
    job = together("dpo_generate", "--recipe", "tiny", "--num_instructions", 100000, "--output_dir", tmp_path/"run")
    out, err = job.communicate()
    assert job.returncode != 0 and err.count("instructions asked for") == 1
