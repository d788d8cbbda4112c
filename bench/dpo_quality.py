"""Whether whole groups on shared prefixes teach as much as TRL's shuffled batches, and what each costs.

The recipe `tiny` up to its pairs, with several seeds; then the same pairs and epochs three times:

  groups      `train_dpo` as the recipe has it: all pairs of some prompts in a step
  shuffled    TRL's `DPOTrainer` as it is, with the same learning rate and as many pairs a step, shuffled
  small steps the same, with the smaller steps and the learning rate that suit shuffled pairs (8 pairs, 2e-3)

and with --four_bit, the recipe in 4 bit (nf4) with three seeds:

  groups      as above
  unshared    the same batches, computed as TRL computes them: each pair by itself, padded

TRL keeps its reference log-probabilities too (`precompute_ref_log_probs`). Each tuned model answers the unseen instructions of the recipe, and the
oracle scores the answers. The difference of the means has its interval over seeds × instructions (bootstrap), and that over seeds beside it.

    python bench/dpo_quality.py [--quick] [--four_bit]
"""
import argparse, json, logging, math, os, tempfile, time, warnings

os.environ |= dict(HF_HUB_OFFLINE="1", TQDM_DISABLE="1")
from dataclasses import replace
from pathlib import Path

import pandas as pd
from datasets import disable_caching

from dpo_nb import trainer
from dpo_nb.tiny import Oracle
from dpo_nb.stats import bootstrap
from dpo_nb.losses import tokenize_pairs
from dpo_nb.adapters import load_adapter, lora_config, save_adapter, twin
from dpo_nb.trainer import dpo_config
from dpo_nb.evaluate import complete
from dpo_nb.running import draw_test, draw_training, generation_stage, load_model, pair_stage, ranking_stage, recipes, training_stage

logging.disable(); warnings.simplefilter("ignore"); disable_caching()

def by_trl(r, base, pairs, out):
    "TRL's trainer on shuffled pairs. Only the tokens are ours, which it would make by itself."
    from transformers import PrinterCallback
    from trl import DPOTrainer
    class Tokenized(DPOTrainer):
        def _prepare_dataset(self, dataset, *args): return dataset
    tokens, _ = tokenize_pairs(base, pairs, r.max_length)
    config = dpo_config(base, out/"checkpoints", learning_rate=r.learning_rate, num_epochs=r.num_epochs, batch_size=r.batch_size, beta=r.beta, seed=r.seed, save_steps=1., **r.dpo)
    config.precompute_ref_log_probs = True
    trainer = Tokenized(model=twin(base.model), args=config, train_dataset=tokens, processing_class=base.tokenizer, peft_config=lora_config(base.model, r.lora_r, r.lora_alpha))
    trainer.remove_callback(PrinterCallback)
    trainer.train()
    save_adapter(trainer.model, base, out/"adapter", {})

def by_groups(r, base, pairs, out): training_stage(r, out, base, pairs, [])

def unshared(r, base, pairs, out):
    trainer.share_prefixes, sharing = lambda model: "switched off", trainer.share_prefixes
    try: by_groups(r, base, pairs, out)
    finally: trainer.share_prefixes = sharing

WAYS = dict(groups=(by_groups, {}), unshared=(unshared, {}), shuffled=(by_trl, {}), small_steps=(by_trl, dict(batch_size=8, learning_rate=2e-3)))

def scores_of(r, folder, ways):
    "The oracle's score of each unseen instruction and the CPU seconds of the training, for each way."
    base, lm = load_model(r)
    train = draw_training(r, lm)
    test = draw_test(r, train, lm)
    responses = generation_stage(r, folder, lm, train)
    pairs = pair_stage(r, folder, train, responses, ranking_stage(r, folder, train, responses)).dataset
    found = {}
    for name in ways:
        train_by, changes = WAYS[name]
        start = time.process_time()
        train_by(replace(r, **changes), base, pairs, folder/name)
        seconds = time.process_time() - start
        answers = complete(load_adapter(base, folder/name/"adapter"), test, max_new_tokens=r.max_new_tokens, seed=r.seed)
        found[name] = [x.scores[0] for x in Oracle().rank(test, answers)], seconds
    return found

def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--quick", action="store_true", help="one seed, one of TRL's settings, 60 instructions: under a minute")
    parser.add_argument("--four_bit", action="store_true", help="the recipe in 4 bit, with shared prefixes and without")
    given = parser.parse_args()
    seeds, ways = (1, ["groups", "shuffled"]) if given.quick else (3, ["groups", "unshared"]) if given.four_bit else (5, ["groups", "shuffled", "small_steps"])
    recipe = replace(recipes["tiny"], quantization="nf4" if given.four_bit else None, num_test_instructions=60 if given.quick else 200)
    rows, apart = [], {w: [] for w in ways[1:]}
    for seed in range(seeds):
        with tempfile.TemporaryDirectory() as folder:
            found = scores_of(replace(recipe, seed=seed), Path(folder), ways)
        for name, (scores, seconds) in found.items(): rows.append(dict(seed=seed, way=name, score=sum(scores) / len(scores), seconds=seconds))
        for name in apart: apart[name].append([a - b for a, b in zip(found["groups"][0], found[name][0])])
    table = pd.DataFrame(rows)
    print(table.pivot(index="seed", columns="way", values="score")[ways].round(3).to_string())
    print(f"\nCPU seconds of a training\n{table.groupby('way').seconds.mean()[ways].round(1).to_string()}\n")
    result = {}
    for name, by_seed in apart.items():
        over = bootstrap([d for one in by_seed for d in one])
        means = pd.Series([sum(one) / len(one) for one in by_seed])
        spread = {3: 4.303, 5: 2.776}.get(seeds, math.nan) * means.std() / math.sqrt(seeds) # Student's t
        print(f"groups - {name}: {over.mean:+.3f}, 95% interval over all answers [{over.low:+.3f}, {over.high:+.3f}], over {seeds} seeds [{over.mean - spread:+.3f}, {over.mean + spread:+.3f}]")
        cost = table.groupby("way").seconds.mean()
        result[name] = dict(difference=round(over.mean, 3), low=round(over.low, 3), high=round(over.high, 3), times_faster=round(cost[name] / cost["groups"], 2))
    print(json.dumps(result))

if __name__ == "__main__": main()
