"""How fast several responses to each instruction are sampled, against two common ways and against the ideal.

Three ways to sample 5 responses to each instruction, on the same random model, prompts and lengths, in CPU seconds of this process:
one call of `model.generate` a response, `model.generate` in batches in data order, and `dpo_nb.generation.sample` in blocks as `generate` plans them.
Response lengths are skewed as real ones are (lognormal), and most of the gain over plain batches comes from that: in them every row waits for the
longest. The model is random, so a row is made to end at its drawn length.

The ideal has a full batch in every step, no padding, and each prompt in one forward of a full batch. Its time is not run but counted: the steps that the
tokens would fill, times the measured cost of a full step at the mean width, plus the measured cost of the prompts.

The columns: `forwards` are all calls of the model, and `of prompts` those among them that read prompts. `useful` is the share of the row-steps (rows in
a step of one token) that wrote a token of a response. On a CPU a step costs about as much as it has rows, so time follows the row-steps; on a GPU it costs
nearly the same however many rows it has, so there time follows the forwards.

    python bench/generate.py [--quick]

The last line: how many times our time the others need, and for `vs_ideal` the ideal time as a share of ours (1 = perfect).
`forwards_vs_ideal` is the same share counted in forwards, for a GPU.
"""
import argparse, json, random, time

import numpy as np
import torch
from transformers import LlamaConfig, LlamaForCausalLM, LogitsProcessor, LogitsProcessorList

from dpo_nb.generation import BLOCK, Rows, Written, sample

torch.set_num_threads(1)
END = 0

class EndAt(LogitsProcessor):
    "Lets each row end at its length, and not before."
    def __init__(self, lengths, start): self.lengths, self.start = torch.tensor(lengths), start
    def __call__(self, ids, scores):
        done = self.lengths <= ids.shape[1] - self.start + 1
        scores[:, END] = torch.where(done, 0., -torch.inf)
        return scores.masked_fill(done[:, None] & (torch.arange(scores.shape[1]) != END), -torch.inf)

def plain(model, prompts, lengths, n, size):
    "`model.generate` over `size` prompts at a time, `n` responses each."
    for k in range(0, len(prompts), size):
        some, width = prompts[k:k + size], max(map(len, prompts[k:k + size]))
        ids = torch.tensor([[END] * (width - len(p)) + p for p in some])
        mask = torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in some])
        ends = LogitsProcessorList([EndAt(lengths[k * n:(k + size) * n], width)])
        out = model.generate(ids, attention_mask=mask, do_sample=True, top_k=0, num_return_sequences=n, max_new_tokens=max(lengths[k * n:(k + size) * n]),
                             logits_processor=ends, eos_token_id=END, pad_token_id=END)
        yield from (out[:, width:] != END).sum(1).tolist()

def empty(lengths):
    "Responses that will end at these lengths: there the uniform number is 0, which means the end token, the first of the line."
    draws = torch.rand(len(lengths), max(lengths), dtype=torch.float64, generator=torch.Generator().manual_seed(0)).clamp(min=1e-3)
    draws[range(len(lengths)), [length - 1 for length in lengths]] = 0.
    return Written(draws, {END}, temperature=1.)

def ours(model, prompts, lengths, n, size):
    "`sample` over blocks of prompts, the longest first."
    order, made = sorted(range(len(prompts)), key=lambda i: -len(prompts[i])), {}
    for k in range(0, len(order), BLOCK * size):
        block = order[k:k + BLOCK * size]
        written = empty([lengths[i * n + j] for i in block for j in range(n)])
        for _ in sample(model, [prompts[i] for i in block], n, size, written): pass
        made |= {i: written.ids[at * n:(at + 1) * n] for at, i in enumerate(block)}
    yield from (len(ids) - 1 for i in range(len(prompts)) for ids in made[i])

def ideal(model, prompts, lengths, n, size, steps=10):
    "Seconds and forwards if every step were full and without padding, and the prompts were read in full batches."
    some, start = sorted(prompts, key=len), time.process_time()
    for k in range(0, len(prompts), size): # With their first tokens
        rows = Rows(model, some[k:k + size])
        first = empty([2] * len(some[k:k + size]) * n)
        first.add(range(len(first.ids)), rows.logits.repeat_interleave(n, 0))
    reading = time.process_time() - start
    own = np.array([len(prompts[i // n]) for i in range(len(lengths))])
    lengths = np.array(lengths)
    width = round(((own + lengths / 2) * (lengths - 1)).sum() / (lengths - 1).sum()) # Of the average step of the average row
    rows, written = Rows(model, [prompts[0][:1] * (width - steps // 2)] * size), empty([steps + 1] * size * n)
    rows.keep([i for i in range(size) for _ in range(n)])
    start = time.process_time()
    for _ in range(steps): rows.step([1] * size * n); written.add(range(size * n), rows.logits)
    step, count = (time.process_time() - start) / steps, (lengths - 1).sum() / (size * n)
    return reading + count * step, count + len(prompts) / size

def model_of(hidden, layers):
    "A random Llama whose end token has a small probability everywhere, so that it is drawn only when the number says so."
    torch.manual_seed(0)
    model = LlamaForCausalLM(LlamaConfig(vocab_size=8000, hidden_size=hidden, intermediate_size=3 * hidden, num_hidden_layers=layers, num_attention_heads=hidden // 64,
                                         max_position_embeddings=2048, bos_token_id=None, eos_token_id=END, pad_token_id=END))
    model.generation_config.eos_token_id = END
    return model.eval()

@torch.no_grad()
def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--quick", action="store_true", help="a smaller model and fewer instructions, under a minute")
    quick = parser.parse_args().quick
    n, size, (hidden, layers, count) = 5, 8, (192, 4, 20) if quick else (384, 8, 64)
    rng, model = random.Random(0), model_of(hidden, layers)
    prompts = [[rng.randrange(1, 8000) for _ in range(max(4, min(300, int(rng.lognormvariate(3.5, .8)))))] for _ in range(count)]
    lengths = [max(2, min(160, int(rng.lognormvariate(3.4, .8)))) for _ in range(count * n)]
    ways = {"one call a response": lambda p, l: plain(model, [q for q in p for _ in range(n)], l, 1, 1), f"plain batches of {size} × {n}": lambda p, l: plain(model, p, l, n, size),
            "ours": lambda p, l: ours(model, p, l, n, size)}
    for way in ways.values(): list(way([[5, 6, 7]] * 2, [3] * 2 * n)) # Warm up
    shapes, table = [], {}
    model.register_forward_pre_hook(lambda _, args, kwargs: shapes.append(kwargs["input_ids"].shape), with_kwargs=True)
    print(f"{model.num_parameters():,} parameters, {count} prompts × {n} responses, {sum(lengths):,} tokens, one thread\n\n{'':24}CPU s   tokens/s   forwards  of prompts   useful")
    def row(name, seconds, forwards, reads="", useful=1.):
        table[name] = seconds, forwards
        print(f"{name:22}{seconds:7.1f}{sum(lengths) / seconds:11.0f}{forwards:11.0f}{reads:>12}{useful:9.2f}", flush=True)
    for name, way in ways.items():
        shapes.clear(); start = time.process_time()
        made = list(way(prompts, lengths))
        seconds = time.process_time() - start
        assert made == [length - 1 for length in lengths], f"{name} wrote other lengths than were asked for"
        row_steps = sum(rows for rows, columns in shapes if columns == 1)
        row(name, seconds, len(shapes), sum(columns > 1 for _, columns in shapes), (sum(lengths) - len(lengths)) / row_steps)
    row("the ideal", *ideal(model, prompts, lengths, n, size), reads=-(-count // size))
    (one, _), (batches, _), (own, forwards), (best, fewest) = table.values()
    print(json.dumps(dict(vs_one_by_one=round(one / own, 2), vs_plain_batches=round(batches / own, 2), vs_ideal=round(best / own, 2), forwards_vs_ideal=round(fewest / forwards, 2))))

if __name__ == "__main__": main()
