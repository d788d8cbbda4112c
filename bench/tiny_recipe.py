"""Where the learning rate and the sft weight of the recipe `tiny` come from: a grid on the development instructions.

Each setting is the whole recipe with two seeds, compared on 120 development instructions by the oracle; the test instructions are not touched.

    python bench/tiny_recipe.py [--quick]
"""
import argparse, json, tempfile, time
from dataclasses import replace
from pathlib import Path

import pandas as pd

from dpo_nb.evaluate import measures
from dpo_nb.running import recipes, run_recipe

def settings(learning_rate, sft):
    "The recipe with other settings; without an sft weight, the loss is DPO alone."
    loss = dict(loss_type=["sigmoid", "sft"], loss_weights=[1., sft]) if sft else dict(loss_type=["sigmoid"])
    return replace(recipes["tiny"], test_instructions="tiny:dev", num_test_instructions=120, learning_rate=learning_rate, dpo=recipes["tiny"].dpo | {"loss_weights": [1.]} | loss)

def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--quick", action="store_true", help="two settings and one seed, under a minute")
    quick = parser.parse_args().quick
    published = recipes["tiny"].learning_rate, recipes["tiny"].dpo["loss_weights"][1]
    grid = [published, (1e-2, 0.)] if quick else [(lr, sft) for lr in (2e-3, 3e-3, 5e-3, 8e-3) for sft in (0., .3, 1.)]
    rows, start = [], time.process_time()
    for learning_rate, sft in grid:
        for seed in (0,) if quick else (0, 1):
            with tempfile.TemporaryDirectory() as folder:
                m = measures(run_recipe(replace(settings(learning_rate, sft), seed=seed), Path(folder)/"run", say=lambda line: None).comparison)
            rows.append(dict(learning_rate=learning_rate, sft=sft, **m.tuned.drop("finished")))
    groups = pd.DataFrame(rows).groupby(["learning_rate", "sft"])
    table = groups.mean().assign(seeds_apart=groups.score.max() - groups.score.min()).round(2)
    print(f"{table.to_string()}\n\nbase: score {m.base.score:.2f} (last seed); {time.process_time() - start:.0f} CPU seconds")
    best = table.score.idxmax()
    print(json.dumps(dict(best=dict(learning_rate=best[0], sft=best[1]), score=float(table.score.max()), published=dict(learning_rate=published[0], sft=published[1]), published_score=float(table.score[published]))))

if __name__ == "__main__": main()
