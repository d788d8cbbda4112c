"""What an earlier version has begun goes on, and ends as it would have.

`earlier.tar.xz` is the folder of a small run of the recipe `tiny` (10 instructions, 4 responses each, an adapter of rank 1, a checkpoint every second
step), made by the commit 37759c3, in which one module held what are ten now. Its pictures and its last checkpoint are left out."""
import json, shutil, tarfile
from pathlib import Path

import pytest
from safetensors.torch import load_file

from conftest import call
from dpo_nb import Run, load_adapter, load_lm, trained_on
from dpo_nb.evaluate import shown_order
from dpo_nb.journal import read_records, rows_so_far
from dpo_nb.records import Instruction, Ranking

JOURNALS = "responses.jsonl", "rankings.jsonl", "reference.jsonl", "evaluation/base.jsonl", "evaluation/tuned.jsonl", "evaluation/rankings-tuned.jsonl"

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

def lines(path): return [json.loads(line) for line in path.read_text().splitlines()]

def ends_as_it_would_have(run, earlier):
    assert call("dpo_run", run) == (0, "")
    for name in (*JOURNALS, "pairs/pairs.jsonl", "instructions.jsonl", "test_instructions.jsonl", "training.jsonl"): assert same(lines(run/name), lines(earlier/name)), name
    for name in ("recipe.json", "training.json", "pairs/fates.csv", "pairs/settings.json", "adapter/base.json", "adapter/adapter_config.json"): assert (run/name).read_bytes() == (earlier/name).read_bytes(), name
    mine, theirs = (load_file(f/"adapter"/"adapter_model.safetensors") for f in (run, earlier))
    assert mine.keys() == theirs.keys() and max((mine[k] - theirs[k]).abs().max().item() for k in mine) < 1e-3

def begun(path):
    "A journal that was broken off in the middle of a line."
    head, *rows = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(head.replace(b'"complete": true', b'"complete": false') + b"".join(rows[:len(rows) // 2]) + rows[-1][:30])

def without(run, *names):
    for name in names: shutil.rmtree(run/name, ignore_errors=True); (run/name).unlink(missing_ok=True) if (run/name).exists() else None

TRAINED = "training.json", "training.jsonl", "health.jsonl", "reference.jsonl", "checkpoints", "adapter", "evaluation"
STATES = {
    "done": lambda run: None,
    "generating": lambda run: (begun(run/"responses.jsonl"), without(run, "rankings.jsonl", "pairs", *TRAINED)),
    "ranking": lambda run: (begun(run/"rankings.jsonl"), without(run, "pairs", *TRAINED)),
    "training": lambda run: without(run, "adapter", "evaluation"),
    "comparing": lambda run: (begun(run/"evaluation"/"tuned.jsonl"), without(run, "evaluation/rankings-tuned.jsonl")),
    "judging": lambda run: begun(run/"evaluation"/"rankings-tuned.jsonl"),
}

@pytest.mark.parametrize("state", STATES)
def test_a_run_of_an_earlier_version_goes_on(state, earlier, tmp_path):
    run = tmp_path/"run"
    shutil.copytree(earlier, run)
    STATES[state](run)
    if state == "comparing":
        # Its ranking is begun now, so the judge does not see the base first everywhere any more: the scores are the same, turned back
        assert call("dpo_run", run) == (0, "")
        asked = read_records(run/"test_instructions.jsonl", Instruction)
        new, old = ({r.instruction_id: r for r in rows_so_far(f/"evaluation"/"rankings-tuned.jsonl", Ranking)} for f in (run, earlier))
        turned = [i for i in asked if shown_order(i) == (1, 0)]
        assert turned and all(new[i.id].scores == old[i.id].scores[::-1] for i in turned)
        assert (run/"evaluation"/"measures.csv").read_text() == (earlier/"evaluation"/"measures.csv").read_text()
    else: ends_as_it_would_have(run, earlier)

def test_an_adapter_of_an_earlier_version_is_read(earlier):
    assert trained_on(earlier/"adapter").keys() == {i.id for i in read_records(earlier/"instructions.jsonl", Instruction)}
    assert load_adapter(load_lm("tiny", device="cpu"), earlier/"adapter").adapter == earlier/"adapter"
    assert Run(earlier).recipe.name == "earlier"
