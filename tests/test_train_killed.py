"A training from an adapter or in 4 bit that is killed and started again ends with the bytes of one that never was."
import json, math, os, signal, subprocess, sys

import pytest
from safetensors import safe_open

from conftest import kill_when
from dpo_nb.trainer import checkpoints, is_whole, newest
from dpo_nb.adapters import trained_on

TRAIN = """
import random, sys, torch
from dpo_nb.adapters import load_adapter
from dpo_nb.dpo import train_dpo
from dpo_nb.models import load_lm
from dpo_nb.data.train_tiny import demonstration
from dpo_nb.tiny import TinyWorld

torch.set_num_threads(1)
out, quantization, start, *first = sys.argv[1:]
rng = random.Random(0)
say = lambda text: [{"role": "assistant", "content": text}]
instructions = TinyWorld().instructions("dev" if first else "train", 8 if first else 30)
rows = [dict(prompt=i.messages, chosen=say(demonstration(i, 1, rng)), rejected=say(demonstration(i, .3, rng))) for i in instructions]
lm = load_lm("tiny", device="cpu", quantization=quantization or None)
if start: lm = load_adapter(lm, start)
train_dpo(lm, rows, out, learning_rate=1e-3, num_epochs=2, batch_size=2, gradient_accumulation=2, save_steps=2, reference="start", gradient_checkpointing=bool(quantization))
"""
KEPT = ["adapter/adapter_model.safetensors", "adapter/adapter_config.json", "adapter/base.json", "training.jsonl", "training.json"]

def begin(*args): return subprocess.Popen([sys.executable, "-c", TRAIN, *map(str, args)], stderr=subprocess.DEVNULL)

@pytest.mark.parametrize("quantization, further", [("", True), ("nf4", True), pytest.param("nf4", False, marks=pytest.mark.full)])
def test_killed_training_ends_with_the_same_bytes(tmp_path, quantization, further):
    first, unbroken, killed = tmp_path/"first", tmp_path/"unbroken", tmp_path/"killed"
    if further: assert begin(first, quantization, "", "first").wait() == 0
    start = first/"adapter" if further else ""
    reference, victim = begin(unbroken, quantization, start), begin(killed, quantization, start)
    assert kill_when(victim, (killed/"checkpoints"/"checkpoint-8").exists) == -signal.SIGKILL # While it writes this checkpoint
    assert not (killed/"adapter").exists()
    whole = newest(killed/"checkpoints")
    os.truncate(whole/"adapter_model.safetensors", 1000)
    (killed/"checkpoints"/"checkpoint-999").mkdir()
    assert newest(killed/"checkpoints").name in ("checkpoint-4", "checkpoint-6") and not is_whole(whole)
    assert begin(killed, quantization, start).wait() == 0 and reference.wait() == 0
    for name in KEPT: assert (killed/name).read_bytes() == (unbroken/name).read_bytes(), name
    steps = [json.loads(line) for line in (killed/"training.jsonl").read_text().splitlines()]
    assert len(steps) == 16 and math.isclose(steps[0]["loss"], math.log(2), abs_tol=1e-5)
    assert len(trained_on(killed/"adapter")) == (30 + 8 if further else 30)

    kept = checkpoints(unbroken/"checkpoints")
    assert [f.name for f in kept] == ["checkpoint-14", "checkpoint-16"] and all(map(is_whole, kept))
    assert [p.name for p in kept[-1].glob("*.safetensors")] == ["adapter_model.safetensors"]
    with safe_open(kept[-1]/"adapter_model.safetensors", "pt") as f:
        assert all(".lora_" in key and ".ref." not in key and f.get_tensor(key).dtype.itemsize == 4 for key in f.keys())
