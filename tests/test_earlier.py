"""What an earlier version has begun goes on, and ends as it would have.

`earlier.tar.xz` is the folder of a small run of the recipe `tiny` (10 instructions, 4 responses each, an adapter of rank 1, 24 steps with a checkpoint
after the 22nd), made by the commit 37759c3, in which one module held what are ten now. Its pictures and its last checkpoint are left out."""
import json, shutil, tarfile
from pathlib import Path

import pytest
from safetensors.torch import load_file

from conftest import call
from dpo_nb import Run, load_adapter, load_lm, load_model, trained_on
from dpo_nb.evaluate import blind_order
from dpo_nb.journal import read_records, renamed, rows_so_far
from dpo_nb.records import Instruction, Ranking
from dpo_nb.running import generation_stage, pair_stage, ranking_stage

@pytest.fixture
def earlier(tmp_path):
    with tarfile.open(Path(__file__).with_name("earlier.tar.xz")) as t: t.extractall(tmp_path/"earlier", filter="data")
    return tmp_path/"earlier"

def same(a, b):
    "Equal but for rounding: another processor adds in another order."
    if isinstance(a, float) and isinstance(b, (int, float)): return abs(a - b) < 1e-3
    if isinstance(a, list): return len(a) == len(b) and all(map(same, a, b))
    if isinstance(a, dict): return a.keys() == b.keys() and all(same(a[k], b[k]) for k in a)
    return a == b

def today(row):
    "A line as it is written today: some settings have other names now, and a response can be withheld."
    if "journal" in row: return row | dict(settings=renamed(row["settings"], {}))
    return dict(withheld="") | row if "n_tokens" in row else row

def lines(path): return [today(json.loads(line)) for line in path.read_text().splitlines()]

def content(path): return renamed(json.loads(path.read_text()), {}) if path.name == "settings.json" else path.read_bytes()

def equal(run, earlier, names):
    for name in names:
        assert same(lines(run/name), lines(earlier/name)) if name.endswith(".jsonl") else content(run/name) == content(earlier/name), name

def begun(path):
    "A journal that was broken off in the middle of a line."
    head, *rows = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(head.replace(b'"complete": true', b'"complete": false') + b"".join(rows[:len(rows) // 2]) + rows[-1][:30])

def without(run, *names):
    for name in names: shutil.rmtree(run/name) if (run/name).is_dir() else (run/name).unlink()

LABELS = "responses.jsonl", "rankings.jsonl", "pairs/pairs.jsonl", "pairs/fates.csv", "pairs/settings.json", "instructions.jsonl", "recipe.json"
STATES = {
    "done": lambda run: None,
    "training": lambda run: without(run, "adapter"),
    "comparing": lambda run: (begun(run/"evaluation"/"tuned.jsonl"), begun(run/"evaluation"/"rankings-tuned.jsonl")),
}

@pytest.mark.parametrize("state", STATES)
def test_a_run_of_an_earlier_version_goes_on(state, earlier, tmp_path):
    run = tmp_path/"run"
    shutil.copytree(earlier, run)
    STATES[state](run)
    assert call("dpo_run", run) == (0, "")
    equal(run, earlier, (*LABELS, "reference.jsonl", "test_instructions.jsonl", "training.json", "training.jsonl", "adapter/base.json", "adapter/adapter_config.json"))
    equal(run, earlier, ("evaluation/base.jsonl", "evaluation/tuned.jsonl", "evaluation/rankings-tuned.jsonl"))
    mine, theirs = (load_file(f/"adapter"/"adapter_model.safetensors") for f in (run, earlier))
    assert mine.keys() == theirs.keys() and max((mine[k] - theirs[k]).abs().max().item() for k in mine) < 1e-3

def test_labels_of_an_earlier_version_go_on(earlier, tmp_path):
    run = tmp_path/"run"
    shutil.copytree(earlier, run)
    for name in ("responses.jsonl", "rankings.jsonl"): begun(run/name)
    without(run, "pairs")
    r, train = Run(run).recipe, read_records(run/"instructions.jsonl", Instruction)
    responses = generation_stage(r, run, load_model(r)[1], train)
    pair_stage(r, run, train, responses, ranking_stage(r, run, train, responses))
    equal(run, earlier, LABELS)

def test_a_comparison_that_is_begun_now_has_the_outcomes_of_an_earlier_one(earlier, tmp_path):
    "Its judge no longer sees the base first everywhere, and the scores are turned back."
    run = tmp_path/"run"
    shutil.copytree(earlier, run)
    without(run, "evaluation/rankings-tuned.jsonl")
    assert call("dpo_run", run) == (0, "")
    new, old = ({r.instruction_id: r for r in rows_so_far(f/"evaluation"/"rankings-tuned.jsonl", Ranking)} for f in (run, earlier))
    turned = [i.id for i in read_records(run/"test_instructions.jsonl", Instruction) if blind_order(i) == (1, 0)]
    assert 2 < len(turned) < 8 and new.keys() == old.keys() and sum(abs(old[i].scores[0]) > .1 for i in turned) > 2 # So that it shows
    assert all(same(r.scores, old[i].scores[::-1] if i in turned else old[i].scores) for i, r in new.items())
    assert same([*map(float, (run/"evaluation"/"measures.csv").read_text().splitlines()[1].split(",")[1:])], [*map(float, (earlier/"evaluation"/"measures.csv").read_text().splitlines()[1].split(",")[1:])])

def test_an_adapter_of_an_earlier_version_is_read(earlier):
    assert trained_on(earlier/"adapter").keys() == {i.id for i in read_records(earlier/"instructions.jsonl", Instruction)}
    assert load_adapter(load_lm("tiny", device="cpu"), earlier/"adapter").adapter == earlier/"adapter"
    assert Run(earlier).recipe.name == "earlier"
