"The whole job from the shell: it helps for three seeds, and runs on a foreign model."
import csv, os, subprocess, sys
from importlib.resources import files
from pathlib import Path

import pytest

DEMO = [str(Path(sys.executable).parent/"dpo_demo")]

def demo(folder, *flags):
    done = subprocess.run([*DEMO, "--output_dir", str(folder), *map(str, flags)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout

def measures(folder): return {row[""]: {k: float(v) for k, v in row.items() if k} for row in csv.DictReader(open(folder/"evaluation"/"measures.csv", newline=""))}

@pytest.mark.parametrize("seed", [0, 1, 2])
def test_the_tuned_model_is_better_by_the_oracle(tmp_path, seed):
    said = demo(tmp_path, "--seed", seed)
    assert measures(tmp_path)["score"]["low"] > 0
    for shown in ("The funnel", "chosen", "loss", "better:", "win rate"): assert shown in said
    for picture in ("curves.png", "evaluation/comparison.png"): assert (tmp_path/picture).read_bytes().startswith(b"\x89PNG")

def test_a_foreign_model_and_ones_own_questions(tmp_path, foreign_checkpoint):
    questions = files("dpo_nb.data")/"questions.txt"
    run = tmp_path/"run"
    said = demo(run, "--model", foreign_checkpoint, "--instructions", questions, "--test_instructions", questions, "--judge", Path(__file__).with_name("judges.py:short"),
                "--num_instructions", 30, "--num_test_instructions", 10, "--max_new_tokens", 40, "--allow_cut")
    assert (run/"adapter/adapter_model.safetensors").exists() and "win rate" in said
    rows = list(csv.DictReader(open(run/"evaluation/comparison.csv", newline="")))
    assert len(rows) == 10 and {"instruction", "base completion", "tuned completion"} <= set(rows[0])

def test_without_the_hub_lima_says_the_way_on(tmp_path):
    done = subprocess.run([*DEMO, "--instructions", "lima", "--output_dir", str(tmp_path)], capture_output=True, text=True, env=os.environ | {"HF_HUB_OFFLINE": "1"})
    assert done.returncode == 2 and "datasets/GAIR/lima" in done.stderr and "Traceback" not in done.stderr
