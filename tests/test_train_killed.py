"A training that is killed and started again ends with the bytes of one that never was."
import os, signal, subprocess, sys

from safetensors import safe_open

from conftest import kill_when
from dpo_nb.dpo import checkpoints, is_whole, newest

TRAIN = """
import random, sys, torch
from dpo_nb.dpo import train_dpo
from dpo_nb.models import load_lm
from dpo_nb.tiny import TinyWorld

torch.set_num_threads(1)
world, rng = TinyWorld(), random.Random(0)
say = lambda text: [{"role": "assistant", "content": text}]
rows = [dict(prompt=i.messages, chosen=say(world.demonstration(i, 1, rng)), rejected=say(world.demonstration(i, .3, rng))) for i in world.instructions("train", 62)]
train_dpo(load_lm("tiny", device="cpu"), rows, sys.argv[1], learning_rate=1e-3, num_epochs=2, batch_size=2, gradient_accumulation=2, save_steps=4,
          gradient_checkpointing=False)
"""
KEPT = ["adapter/adapter_model.safetensors", "adapter/adapter_config.json", "adapter/base.json", "training.jsonl"]

def start(folder):
    return subprocess.Popen([sys.executable, "-c", TRAIN, str(folder)], stderr=subprocess.DEVNULL)

def test_killed_training_ends_with_the_same_bytes(tmp_path):
    unbroken, killed = tmp_path/"unbroken", tmp_path/"killed"
    reference, victim = start(unbroken), start(killed)
    assert kill_when(victim, (killed/"checkpoints"/"checkpoint-16").exists) == -signal.SIGKILL # While it writes this checkpoint
    assert not (killed/"adapter").exists()
    whole = newest(killed/"checkpoints")
    os.truncate(whole/"adapter_model.safetensors", 1000)
    (killed/"checkpoints"/"checkpoint-999").mkdir()
    assert newest(killed/"checkpoints").name in ("checkpoint-8", "checkpoint-12") and not is_whole(whole)
    assert start(killed).wait() == 0 and reference.wait() == 0
    for name in KEPT: assert (killed/name).read_bytes() == (unbroken/name).read_bytes(), name
    assert len((killed/"training.jsonl").read_text().splitlines()) == 32

    kept = checkpoints(unbroken/"checkpoints")
    assert [f.name for f in kept] == ["checkpoint-28", "checkpoint-32"] and all(map(is_whole, kept))
    assert [p.name for p in kept[-1].glob("*.safetensors")] == ["adapter_model.safetensors"]
    with safe_open(kept[-1]/"adapter_model.safetensors", "pt") as f: assert all(".lora_" in key and ".ref." not in key for key in f.keys())
