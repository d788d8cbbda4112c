"""How long PairRM takes here and in llm-blender, the package of its authors, and whether both say the same.

Five responses to each instruction are ranked by the same random checkpoint, with lengths as real ones have them (an instruction 109 tokens, a response
271 on average, with a long tail), in CPU seconds of this process: by `llm_blender.Blender.rank` at its default batch size and at batch size 1, and by
`dpo_nb.pairrm.PairRM.rank` (without `--quick` at other budgets too). Ranks and scores are compared with those at batch size 1: at any other, llm-blender
cuts a response to a length that follows the longest instruction of the batch. The lengths here are such that it cuts nothing at either.

The network is narrow, and has PairRM's 24 layers (with `--quick` half of them). Their number matters, because we compute the last layer at three places only.

    python bench/pairrm.py [--quick]
"""
import argparse, contextlib, inspect, io, json, logging, os, random, sys, tempfile, time, warnings
from pathlib import Path
from statistics import NormalDist, mean

os.environ |= dict(HF_HUB_OFFLINE="1", TQDM_DISABLE="1") # Nothing is fetched, and only the table is printed
sys.path.append(str(Path(__file__).parents[1]/"tests"))

import torch
from llm_blender_repaired import load_blender, repaired, save_checkpoint

from dpo_nb.pairrm import PairRM
from dpo_nb.records import Instruction, Ranking, Response
from dpo_nb.tiny import TinyWorld

N, LONGEST = 5, 700
torch.set_num_threads(1)
logging.disable(); warnings.simplefilter("ignore") # What llm-blender says while it loads

def lengths(n, average, spread, rng):
    "Tokens of `n` texts: evenly from all parts of a lognormal distribution, in random order."
    drawn = [2.718 ** (spread * NormalDist().inv_cdf((k + .5) / n)) for k in range(n)]
    return rng.sample([min(LONGEST, max(4, round(d * average / mean(drawn)))) for d in drawn], n)

def texts(judge, words, sizes, rng):
    "A text of so many tokens each, from words of one token."
    one = sorted(w for w in words if len(judge.checkpoint.tokenizer.body(w, 99)[0]) == 1)
    return [" ".join(rng.choices(one, k=size)) for size in sizes]

def timed(way, first):
    "What it gives, and its CPU seconds, after a warm-up on the first instruction."
    way(first)
    start = time.process_time()
    return way(slice(None)), time.process_time() - start

def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--quick", action="store_true", help="half the layers and fewer instructions, under a minute")
    quick = parser.parse_args().quick
    count, hidden, layers = (4, 64, 12) if quick else (8, 64, 24)
    rng, known = random.Random(0), [i.text for i in TinyWorld().instructions("train")[:500]]
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()), repaired() as llm_blender:
        save_checkpoint(Path(folder), known, hidden, layers)
        judge, blender = PairRM(Path(folder)/"PairRM", device="cpu"), load_blender(llm_blender, Path(folder)/"PairRM", Path(folder)/"base")
        parameters = sum(p.numel() for p in judge.checkpoint.model.parameters())
        words = {w for text in known for w in text.split()}
        sources, longest = texts(judge, words, lengths(count, 109, 1, rng), rng), texts(judge, words, lengths(count * N, 271, .6, rng), rng)
        candidates = [longest[k:k + N] for k in range(0, count * N, N)]
        asked = [Instruction.ask(s) for s in sources]
        given = [Response(i.id, k, t, len(t.split()), True) for i, ts in zip(asked, candidates) for k, t in enumerate(ts)]
        default = inspect.signature(blender.rank).parameters["batch_size"].default
        theirs = lambda size: lambda part: blender.rank(sources[part], candidates[part], return_scores=True, batch_size=size).tolist()
        def ours(max_tokens):
            judge = PairRM(Path(folder)/"PairRM", device="cpu", max_tokens=max_tokens)
            return lambda part: [r.scores for r in judge.rank(asked[part], given[:len(asked[part]) * N])]
        ways = {f"llm-blender, batch size {default}": theirs(default), "llm-blender, batch size 1": theirs(1), "dpo_nb": ours(None)}
        if not quick: ways |= {f"dpo_nb, {n:,} tokens a batch": ours(n) for n in (1024, 4096, 8192)}
        found = {name: timed(way, slice(1)) for name, way in ways.items()}
    tokens = [len(t.split()) for t in sources], [len(t.split()) for t in longest]
    assert max(tokens[1]) + 3 <= 412 + (1224 - max(tokens[0]) - 3) // 2, "llm-blender would cut a response"
    (at_default, slow), (alone, single), (own, seconds), *_ = found.values()
    print(f"{parameters:,} parameters, {count} instructions of {mean(tokens[0]):.0f} tokens (at most {max(tokens[0])}) × {N} responses of {mean(tokens[1]):.0f} "
          f"(at most {max(tokens[1])}), one thread\n\n{'':30}CPU s   instructions/min")
    for name, (_, s) in found.items(): print(f"{name:28}{s:7.1f}{60 * count / s:19.1f}")
    ranks = lambda scores: [Ranking("", "", s).ranks for s in scores]
    apart = max(abs(a - b) for x, y in zip(alone, own) for a, b in zip(x, y))
    print(json.dumps(dict(same_ranks=ranks(own) == ranks(alone) == ranks(at_default), max_score_diff=float(f"{apart:.1e}"), vs_llm_blender=round(slow / seconds, 2), vs_batch_1=round(single / seconds, 2))))

if __name__ == "__main__": main()
