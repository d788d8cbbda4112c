"""How much the sampling of several responses gains from dropping finished rows and from prefilling a prompt once.

Three ways to sample 5 responses to each instruction, on the same random model, prompts and lengths, in CPU seconds of this process:
one call of `model.generate` a response, `model.generate` in batches in data order, and `dpo_nb.generate.sample`.
Response lengths are skewed as real ones are (lognormal), and most of the gain over plain batches comes from that: in them every row waits for the
longest. The model is random, so a row is made to end at its drawn length.

    python bench/generate.py [--quick]
"""
import argparse, json, random, time

import torch
from transformers import LlamaConfig, LlamaForCausalLM, LogitsProcessor, LogitsProcessorList

from dpo_nb.generate import sample

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

def ours(model, prompts, lengths, n, size):
    "`sample` over the same batches; a row's stop token is drawn at its length by the uniform number 0, the end being the first token of the line."
    for k in range(0, len(prompts), size):
        want = lengths[k * n:(k + size) * n]
        numbers = torch.rand(len(want), max(want), dtype=torch.float64, generator=torch.Generator().manual_seed(k)).clamp(min=1e-3)
        for row, length in enumerate(want): numbers[row, length - 1] = 0.
        made = {}
        for _, gone in sample(model, prompts[k:k + size], n, numbers, {END}, temperature=1.): made |= gone
        yield from (len(made[row]) - 1 for row in range(len(want)))

def model_of(hidden, layers):
    "A random Llama whose end token has a small probability everywhere, so that it is drawn only when the number says so."
    torch.manual_seed(0)
    model = LlamaForCausalLM(LlamaConfig(vocab_size=8000, hidden_size=hidden, intermediate_size=3 * hidden, num_hidden_layers=layers, num_attention_heads=hidden // 64,
                                         max_position_embeddings=2048, bos_token_id=None, eos_token_id=END, pad_token_id=END))
    model.generation_config.eos_token_id = END
    return model.eval()

def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--quick", action="store_true", help="a smaller model and fewer instructions, under a minute")
    quick = parser.parse_args().quick
    n, size, (hidden, layers, count) = 5, 8, (192, 4, 16) if quick else (384, 8, 32)
    rng, model = random.Random(0), model_of(hidden, layers)
    prompts = [[rng.randrange(1, 8000) for _ in range(max(4, min(300, int(rng.lognormvariate(3.5, .8)))))] for _ in range(count)]
    lengths = [max(2, min(160, int(rng.lognormvariate(3.4, .8)))) for _ in range(count * n)]
    one_by_one = lambda *_: plain(model, [p for p in prompts for _ in range(n)], lengths, 1, 1)
    ways = {"one call a response": one_by_one, f"plain batches of {size} × {n}": lambda: plain(model, prompts, lengths, n, size), "ours": lambda: ours(model, prompts, lengths, n, size)}
    seconds = {}
    print(f"{model.num_parameters():,} parameters, {count} prompts × {n} responses, {sum(lengths):,} tokens, one thread\n\n{'':24}CPU s   tokens/s")
    with torch.no_grad():
        for name, way in ways.items():
            next(iter(way())) # Warm up
            start = time.process_time()
            made = list(way())
            seconds[name] = time.process_time() - start
            assert made == [length - 1 for length in lengths], f"{name} wrote other lengths than were asked for"
            print(f"{name:22}{seconds[name]:7.1f}{sum(lengths) / seconds[name]:11.0f}", flush=True)
    one, batches, own = seconds.values()
    print(json.dumps(dict(vs_one_by_one=round(one / own, 2), vs_plain_batches=round(batches / own, 2))))

if __name__ == "__main__": main()
