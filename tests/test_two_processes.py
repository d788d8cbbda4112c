"Two processes on one folder: the second is refused, the first is not disturbed, and however it ends, the folder is free."
import os, shutil, signal

import pytest

from conftest import SCRIPTS, call, differ, flags, lines, signal_when, start
from dpo_nb.recipes import pair_stage, ranking_stage, recipes, run_recipe

REFUSED = "is in use: another process works in it. Wait until that one has ended, or give this one another folder."

@pytest.fixture
def first(tmp_path, unbroken):
    "A dpo_generate that stands still in the middle of its work, and its folder."
    run = tmp_path/"evaluation"
    process = start("dpo_generate", *flags("dpo_generate", run))
    signal_when(process, lambda: lines(run/"responses.jsonl") > 1, signal.SIGSTOP)
    yield process, run
    if process.poll() is None: process.kill()

def second(script, run):
    "The flags of a script that writes into the same folder."
    return flags(script, run.parent if script == "dpo_evaluate" else run) # Its journals lie in evaluation/

def test_a_second_process_is_refused(first, unbroken):
    process, run = first
    there = {p.name: p.read_bytes() for p in run.iterdir()}
    for script in (*SCRIPTS, "dpo_demo"):
        code, said = call(script, *second(script, run))
        assert (code, said) == (2, f"{script}: {run} {REFUSED}\n")
    with pytest.raises(ValueError, match=REFUSED): run_recipe(recipes["tiny"], run)
    for stage, made in ((ranking_stage, 2), (pair_stage, 3)):
        with pytest.raises(ValueError, match=REFUSED): stage(recipes["tiny"], run, *[[]] * made)
    assert {p.name: p.read_bytes() for p in run.iterdir()} == there
    process.send_signal(signal.SIGCONT)
    assert process.wait() == 0 and differ(run, unbroken("dpo_generate")[0]) == []
    assert call("dpo_rank", *flags("dpo_rank", run)) == (0, "") and differ(run, unbroken("dpo_rank")[0]) == []

def test_a_folder_is_free_when_its_process_was_killed(first, unbroken):
    process, run = first
    process.kill(); process.wait()
    assert call("dpo_generate", *flags("dpo_generate", run)) == (0, "") and differ(run, unbroken("dpo_generate")[0]) == []

def test_what_is_only_read_needs_no_lock(tmp_path, unbroken):
    "Pairs and adapters may lie where nothing can be written, such as an input folder on Kaggle."
    shutil.copytree(unbroken("dpo_train")[0], tmp_path/"input")
    (tmp_path/"input"/".lock").unlink(missing_ok=True)
    before = {p for p in (tmp_path/"input").rglob("*")}
    code, said = call("dpo_train", *flags("dpo_train", tmp_path/"run"), "--dataset", tmp_path/"input"/"pairs")
    assert (code, said) == (0, "")
    assert {p for p in (tmp_path/"input").rglob("*")} == before
