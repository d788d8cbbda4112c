"Two processes on one folder: the second is refused, the first is not disturbed. (That a killed process leaves its folder free is in test_killed.)"
import shutil, signal

import pytest

from conftest import SCRIPTS, call, differ, flags, lines, signal_when, start
from dpo_nb.running import recipes, run_recipe

REFUSED = "is in use: another process works in it. Wait until it has ended, or give another folder."

def second(script, run):
    "The flags of a script that writes into the same folder."
    return flags(script, run.parent if script == "dpo_evaluate" else run) # Its journals lie in evaluation/

def test_a_second_process_is_refused(tmp_path, unbroken):
    run = tmp_path/"evaluation"
    first = start("dpo_generate", *flags("dpo_generate", run))
    signal_when(first, lambda: lines(run/"responses.jsonl") > 1, signal.SIGSTOP) # It stands still in the middle of its work
    try:
        there = {p.name: p.read_bytes() for p in run.iterdir()}
        for script in (*SCRIPTS, "dpo_demo"): assert call(script, *second(script, run)) == (2, f"{script}: {run} {REFUSED}\n")
        with pytest.raises(ValueError, match=REFUSED): run_recipe(recipes["tiny"], run)
        assert {p.name: p.read_bytes() for p in run.iterdir()} == there
    finally: first.send_signal(signal.SIGCONT)
    assert first.communicate()[1] == "" and first.returncode == 0 and differ(run, unbroken("dpo_generate")[0]) == []
    assert call("dpo_rank", *flags("dpo_rank", run)) == (0, "") and differ(run, unbroken("dpo_rank")[0]) == []

def test_what_is_only_read_needs_no_lock(tmp_path, unbroken):
    "Pairs and adapters may lie where nothing can be written, such as an input folder on Kaggle."
    shutil.copytree(unbroken("dpo_train")[0], tmp_path/"input")
    (tmp_path/"input"/".lock").unlink(missing_ok=True)
    before = {p for p in (tmp_path/"input").rglob("*")}
    code, said = call("dpo_train", *flags("dpo_train", tmp_path/"run"), "--dataset", tmp_path/"input"/"pairs")
    assert (code, said) == (0, "")
    assert {p for p in (tmp_path/"input").rglob("*")} == before
