"""How long a step of DPO takes on shared prefixes and in TRL's trainer as it is, on the same batches.

A random Llama (4 layers, hidden 384, 8,000 tokens, LoRA on every linear layer, float32), prompts and responses with lengths as LIMA's prompts and
their responses have them (medians of 90 and 180 tokens, lognormal). A step is what TRL's `DPOTrainer` computes of a batch: the log-probabilities of
the policy and of the reference, the loss, and the gradients, in CPU seconds of this process, or, where there is a GPU, in its own seconds by CUDA
events, with the peak of its memory:

  one pair      four prompts a batch, each with one pair
  all pairs     one prompt a batch, with all ten pairs of five responses; twice as many batches, because what is gained depends on the prompt
  funnel        four prompts a batch, each with the pairs of its best response against some of the others, as ties and cut responses leave them
  system        one pair a prompt, behind a system text of 300 tokens that all prompts share

`floor` is the share of our time that a bare model needs for the same number of distinct tokens, in full rows without padding: forward, backward, and
the forward of the reference. In float64, the loss of two pairs is compared with TRL's, and their gradient (the norm of the difference, as a share of the norm).

    python bench/dpo_step.py [--quick] [--seed 0]
"""
import argparse, json, logging, math, os, random, time, warnings

os.environ |= dict(HF_HUB_OFFLINE="1", TQDM_DISABLE="1") # Nothing is fetched, and only the table is printed
import torch
from transformers import LlamaConfig, LlamaForCausalLM, set_seed

from dpo_nb.trainer import dpo_config, make_trainer
from dpo_nb.adapters import lora_config, twin
from dpo_nb.health import Health
from dpo_nb.models import LM, load_lm
from dpo_nb.prefix import make_tree, pack

torch.set_num_threads(1)
logging.disable(); warnings.simplefilter("ignore")

VOCABULARY, LONGEST = 8000, 700
CUDA = torch.cuda.is_available()

class Clock:
    "Seconds, and on a GPU the most bytes that were held, while a block runs."
    def __enter__(self):
        if CUDA: torch.cuda.synchronize(); torch.cuda.reset_peak_memory_stats(); self.events = [torch.cuda.Event(enable_timing=True) for _ in range(2)]; self.events[0].record()
        else: self.start = time.process_time()
        return self
    def __exit__(self, *_):
        if CUDA: self.events[1].record(); torch.cuda.synchronize()
        self.seconds = self.events[0].elapsed_time(self.events[1]) / 1000 if CUDA else time.process_time() - self.start
        self.peak = torch.cuda.max_memory_allocated() if CUDA else 0

class Draw:
    "Random texts of realistic lengths, as token ids."
    def __init__(self, seed): self.rng = random.Random(seed)
    def text(self, n): return [self.rng.randrange(10, VOCABULARY) for _ in range(n)]
    def length(self, median, spread): return max(4, min(LONGEST, round(median * math.exp(self.rng.gauss(0, spread)))))
    def prompt(self): return self.text(self.length(90, .8))
    def responses(self, n): return [self.text(self.length(180, .6)) for _ in range(n)]

def pairs_of(prompt, responses, pairs): return [dict(prompt_ids=prompt, chosen_ids=responses[a], rejected_ids=responses[b]) for a, b in pairs]

def one_pair(d): return [p for _ in range(4) for p in pairs_of(d.prompt(), d.responses(2), [(0, 1)])]
def all_pairs(d): return pairs_of(d.prompt(), d.responses(5), [(a, b) for a in range(5) for b in range(a + 1, 5)])
def funnel(d): return [p for _ in range(4) for p in pairs_of(d.prompt(), d.responses(5), [(0, b) for b in range(1, 5) if d.rng.random() < .6] or [(0, 1)])]
def system(d):
    text = d.text(300)
    return [p for _ in range(4) for p in pairs_of(text + d.prompt(), d.responses(2), [(0, 1)])]

KINDS = dict(one_pair=one_pair, all_pairs=all_pairs, funnel=funnel, system=system)

def trainers_on(pairs, folder, layers):
    "TRL's trainer as it is and ours, with the same adapter that has moved already: at its start the gradients of one half are 0."
    from datasets import Dataset
    from trl import DPOTrainer
    class Tokenized(DPOTrainer):
        def _prepare_dataset(self, dataset, *args): return dataset # The tokens are there
    set_seed(0)
    model = LlamaForCausalLM(LlamaConfig(vocab_size=VOCABULARY, hidden_size=384, intermediate_size=1024, num_hidden_layers=layers, num_attention_heads=6, max_position_embeddings=2048, pad_token_id=0)).to("cuda" if CUDA else "cpu")
    lm, tokens = LM(model.eval(), load_lm("tiny", device="cpu").tokenizer, "random"), Dataset.from_list(pairs)
    config = lambda: dpo_config(lm, folder, gradient_checkpointing=False)
    usual = Tokenized(model=twin(model), args=config(), train_dataset=tokens, processing_class=lm.tokenizer, peft_config=lora_config(model))
    ours = make_trainer(lm, tokens, config(), lora_config(model), Health(f"{folder}/training.jsonl"))
    assert ours.why_not_shared == ""
    for (n, p), other in zip(usual.model.named_parameters(), ours.model.parameters()):
        if "lora_B" in n: torch.nn.init.normal_(p, std=.02)
        if "lora_" in n: other.data = p.data.clone()
    return usual, ours

def steps(trainer, batches):
    "The loss and the gradients of each batch, and the `Clock` of all."
    found, model = [], trainer.model.train()
    with Clock() as clock:
        for batch in batches:
            model.zero_grad()
            loss = trainer.compute_loss(model, trainer._prepare_inputs(dict(batch)))
            loss.backward()
            found.append((loss.item(), [p.grad.clone() for p in model.parameters() if p.grad is not None]))
    return found, clock

def distinct(batch):
    "The tokens that the trees of a batch have, and how many of them are scored."
    rows = [p["prompt_ids"] + p[side] for side in ("chosen_ids", "rejected_ids") for p in batch]
    starts = [len(p["prompt_ids"]) for _ in range(2) for p in batch]
    trees = [make_tree([rows[r] for r in b], [starts[r] for r in b]) for b in pack(rows, 1024)]
    return sum(len(t.ids) for t in trees), sum(l >= 0 for t in trees for l in t.label)

def floor(trainer, batches, width=512):
    "Seconds of the bare model on as many tokens, in full rows."
    sizes, seconds, model = [distinct(b) for b in batches], 0., trainer.model.train()
    for tokens, scored in sizes:
        rows = torch.randint(10, VOCABULARY, (max(1, round(tokens / width)), min(width, tokens)), device=model.device)
        labels = rows.clone(); labels.view(-1)[:-scored] = -100
        ask = lambda: model(input_ids=rows, labels=labels, fused_lm_head=True, use_cache=False).log_probs.sum()
        with Clock() as clock:
            with torch.no_grad(), model.disable_adapter(): ask()
            model.zero_grad(); ask().backward()
        seconds += clock.seconds * tokens / rows.numel()
    return seconds

def difference(trl, ours, pairs):
    "How far loss and gradient are apart on two pairs, computed in float64: where chosen and rejected cancel out, float32 has few digits left."
    for trainer in (trl, ours): trainer.model.double()
    batch = trl.data_collator(pairs[:2])
    [(a, grads)], [(b, others)] = (steps(trainer, [batch])[0] for trainer in (trl, ours))
    norm = lambda tensors: math.sqrt(sum(t.square().sum().item() for t in tensors))
    return abs(a - b), norm([x - y for x, y in zip(grads, others)]) / norm(grads)

def main():
    import tempfile
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--quick", action="store_true", help="one batch of two kinds, half the layers: under a minute")
    parser.add_argument("--seed", type=int, default=0, help="of the texts [0]")
    given = parser.parse_args()
    kinds, count, table, apart = (["one_pair", "all_pairs"], 1, {}, [0., 0.]) if given.quick else ([*KINDS], 4, {}, [0., 0.])
    with tempfile.TemporaryDirectory() as folder:
        for name in kinds:
            draw = Draw(f"{given.seed} {name}")
            drawn = [KINDS[name](draw) for _ in range(2 * count if name == "all_pairs" and not given.quick else count)]
            trl, ours = trainers_on(drawn[0], folder, 2 if given.quick else 4)
            batches = [trl.data_collator(pairs) for pairs in drawn]
            for trainer in (trl, ours): steps(trainer, [trl.data_collator([{k: ids[:9] for k, ids in drawn[0][0].items()}])]) # What is prepared once
            slow, fast = (steps(trainer, batches)[1] for trainer in (trl, ours))
            bare = floor(trl, drawn)
            apart = [max(pair) for pair in zip(apart, difference(trl, ours, drawn[0]))]
            padded, unique = sum(b["input_ids"].numel() for b in batches), sum(distinct(b)[0] for b in drawn)
            table[name] = dict(trl=slow.seconds, ours=fast.seconds, peaks=f"{slow.peak / 2**20:8,.0f}{fast.peak / 2**20:8,.0f}" * CUDA, floor=bare, padded=padded, unique=unique, batches=len(batches))
    print(f"{'':12}{'batches':>8}{'tokens':>9}{'distinct':>10}{'TRL, s' if CUDA else 'TRL, CPU s':>12}{'shared':>9}{'ratio':>7}{'floor':>7}{'  peaks, MiB' * CUDA}")
    for name, t in table.items(): print(f"{name.replace('_', ' '):12}{t['batches']:8}{t['padded']:9,}{t['unique']:10,}{t['trl']:12.1f}{t['ours']:9.1f}{t['trl'] / t['ours']:7.2f}{t['floor'] / t['ours']:7.2f}{t['peaks']}")
    print(json.dumps({name: round(t["trl"] / t["ours"], 2) for name, t in table.items()} | dict(floor=round(min(t["floor"] / t["ours"] for t in table.values()), 2),
                     max_loss_diff=float(f"{apart[0]:.1e}"), max_grad_diff=float(f"{apart[1]:.1e}"))))

if __name__ == "__main__": main()
