"Four bits from the first answer to the tuned one, and the float16 of a T4, on a processor."
import random, shutil

import pytest, torch
from safetensors.torch import load_file
from torch.utils._python_dispatch import TorchDispatchMode

from dpo_nb.data.train_tiny import demonstration
from dpo_nb.tiny import Oracle, TinyWorld
from dpo_nb.models import load_lm
from dpo_nb.generation import generate
from dpo_nb.preferences import make_pairs
from dpo_nb.losses import tokenize_pairs
from dpo_nb.adapters import instruction_traces, load_adapter, lora_config, save_adapter, trained_on
from dpo_nb.health import Health, HealthWarning
from dpo_nb.trainer import add_reference_logps, checkpoints, dpo_config, is_whole, make_trainer, newest
from dpo_nb.dpo import keep_settings, read_training, run_training, train_dpo

@pytest.fixture(autouse=True)
def one_thread(): torch.set_num_threads(1)

def points(lm, instructions):
    "Mean points of one answer to each, out of 5."
    answers = generate(lm, instructions, responses_per_instruction=1, temperature=.7, max_new_tokens=48, generation_batch=40)
    return sum(r.scores[0] for r in Oracle().rank(instructions, answers)) / len(instructions)

def test_four_bits_from_the_first_answer_to_the_tuned_one(tmp_path):
    four, whole = (load_lm("tiny", device="cpu", quantization=q) for q in ("nf4", None))
    train, test = TinyWorld().instructions("train", 40), TinyWorld().instructions("test", 80)
    answers = generate(four, train, responses_per_instruction=5, temperature=.9, max_new_tokens=48)
    pairs = make_pairs(train, answers, Oracle().rank(train, answers), pairs="all").dataset
    training = train_dpo(four, pairs, tmp_path, learning_rate=5e-3, num_epochs=2, batch_size=32, lr_scheduler_type="cosine", gradient_checkpointing=True)
    before, after = points(four, test), points(load_adapter(four, tmp_path/"adapter"), test)
    assert after > before + .3
    again = load_adapter(load_lm("tiny", device="cpu", quantization="nf4"), tmp_path/"adapter")
    assert points(again, test) == after
    assert points(load_adapter(whole, tmp_path/"adapter"), test) > before + .3
    kept = [f for f in tmp_path.rglob("*.safetensors")]
    assert len(kept) == 3 and {t.dtype for f in kept for t in load_file(f).values()} == {torch.float32}
    assert trained_on(tmp_path/"adapter") == instruction_traces(pairs) and len(training.history) > 10

def pairs(n):
    rng = random.Random(0)
    say = lambda text: [{"role": "assistant", "content": text}]
    return [dict(prompt=i.messages, chosen=say(demonstration(i, 1, rng)), rejected=say(demonstration(i, .3, rng))) for i in TinyWorld().instructions("train", n)]

class Dtypes(TorchDispatchMode):
    "Notes the type of every tensor that is made."
    def __init__(self): super().__init__(); self.seen = set()
    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        made = function(*args, **kwargs or {})
        self.seen |= {t.dtype for t in (made if isinstance(made, (tuple, list)) else [made]) if isinstance(t, torch.Tensor)}
        return made

def t4_trainer(folder, start=None, growth_interval=2000, **how):
    "A trainer as on a T4: nf4, float16, gradient checkpointing, and a gradient scaler (Accelerate gives one to a GPU only)."
    lm = load_lm("tiny", dtype="float16", device="cpu", quantization="nf4")
    tokens, dropped = tokenize_pairs(lm, pairs(32))
    config = dpo_config(lm, folder/"checkpoints", batch_size=4, learning_rate=1e-3, save_steps=4, fp16=True, gradient_checkpointing=True, lr_scheduler_type="constant", **how)
    trainer = make_trainer(lm, tokens, config, lora_config(lm.model), Health(folder/"training.jsonl"), start)
    keep_settings(folder, {}, trainer, dropped)
    trainer.accelerator.native_amp, trainer.accelerator.scaler = True, torch.amp.GradScaler("cpu", init_scale=2.**23, growth_interval=growth_interval)
    return lm, trainer

def test_float16_with_a_gradient_scaler(tmp_path):
    lm, trainer = t4_trainer(tmp_path)
    with Dtypes() as made: history = run_training(trainer)
    assert made.seen >= {torch.float16, torch.float32, torch.uint8} and torch.bfloat16 not in made.seen
    assert {p.dtype for p in trainer.model.parameters() if p.requires_grad} == {torch.float32}
    assert {v.dtype for state in trainer.optimizer.state.values() for v in state.values()} == {torch.float32}
    skipped = read_training(tmp_path).skipped # Gradients overflowed; each such step halves the scale
    assert 0 < skipped < len(history) and trainer.accelerator.scaler.get_scale() == 2.**(23 - skipped)
    assert history[-1]["loss"] < history[0]["loss"]
    save_adapter(trainer.model, lm, tmp_path/"adapter", {})

    shutil.copytree(tmp_path/"checkpoints"/"checkpoint-4", tmp_path/"broken"/"checkpoints"/"checkpoint-4") # Goes on with the scale that it had
    _, resumed = t4_trainer(tmp_path/"broken")
    run_training(resumed, newest(tmp_path/"broken"/"checkpoints"))
    assert read_training(tmp_path/"broken").skipped == skipped
    save_adapter(resumed.model, lm, tmp_path/"broken"/"adapter", {})
    a, b = ((f/"adapter"/"adapter_model.safetensors").read_bytes() for f in (tmp_path, tmp_path/"broken"))
    assert a == b
    last = checkpoints(tmp_path/"checkpoints")[-1]
    assert (last/"scaler.pt").exists() and is_whole(last)
    (last/"scaler.pt").write_bytes(b"half")
    assert not is_whole(last)

    _, further = t4_trainer(tmp_path/"further", tmp_path/"adapter") # The reference is made in float16 too
    add_reference_logps(further, "start", tmp_path/"further"/"reference.jsonl")
    first = run_training(further)[0]
    assert abs(first["rewards/margins"]) < 1e-3 and abs(first["rewards/chosen"]) < 1e-3

def test_gradients_that_overflow_again_and_again_raise_an_alarm(tmp_path):
    _, trainer = t4_trainer(tmp_path, growth_interval=1, num_epochs=4) # The scaler is too bold: after each step that went well it doubles
    with pytest.warns(HealthWarning, match="gradients overflow"): run_training(trainer)
    assert "gradients overflow" in [a.name for a in read_training(tmp_path).alarms]

def test_where_there_are_several_gpus_one_is_used(tmp_path, monkeypatch):
    "`transformers` counts the GPUs of this machine as torch does; what it would do with two is seen by letting torch say two."
    from trl import DPOConfig
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    lm = load_lm("tiny", device="cpu")
    assert DPOConfig(str(tmp_path), bf16=False).n_gpu == 2
    config = dpo_config(lm, tmp_path, batch_size=2, use_cpu=False)
    assert config.n_gpu == 1 and config.train_batch_size == 2
    tokens, _ = tokenize_pairs(lm, pairs(4))
    assert len(run_training(make_trainer(lm, tokens, config, lora_config(lm.model), Health(tmp_path/"training.jsonl")))) == 2
