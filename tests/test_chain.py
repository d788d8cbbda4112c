"A foreign model, from its answers to a merged model, in 32 bits and in 4. DPO_NB_INSTRUCTIONS names another file of instructions than our own."
import json, os
from pathlib import Path
from importlib.resources import files

import pandas as pd
import pytest, torch

from dpo_nb.cli import dpo_evaluate, dpo_generate, dpo_pairs, dpo_rank, dpo_train
from dpo_nb.adapters import load_adapter, merge_adapter, trained_on
from dpo_nb.generation import generate
from dpo_nb.instructions import unseen
from dpo_nb.models import load_lm
from dpo_nb.prefix import row_logps

JUDGE = f"{Path(__file__).parent}/judges.py:short"
INSTRUCTIONS = os.environ.get("DPO_NB_INSTRUCTIONS") or files("dpo_nb.data")/"questions.txt"

def merge_report(tuned, merged, instructions):
    "Both answers to each instruction, whether they are the same, and the largest difference of a token's log-probability."
    answers, again = (generate(m, instructions, responses_per_instruction=1, temperature=0., max_new_tokens=40) for m in (tuned, merged))
    encoded = [tuned.encode(i.messages, a.text, a.finished) for i, a in zip(instructions, answers)]
    logps = [row_logps(m.model, [e.prompt + e.completion for e in encoded], [len(e.prompt) for e in encoded]) for m in (tuned, merged)]
    return pd.DataFrame([dict(same=a.text == b.text, difference=max((x - y).abs().tolist(), default=0.)) for a, b, x, y in zip(answers, again, *logps)])

@pytest.mark.parametrize("quantization", ["none", "nf4"])
def test_a_foreign_model_is_tuned_compared_and_merged(tmp_path, foreign_checkpoint, quantization, capsys):
    torch.set_num_threads(1)
    run, model = tmp_path/"run", ["--model", foreign_checkpoint, "--dtype", "float32", "--quantization", quantization]
    def script(function, *flags): function([str(f) for f in ("--recipe", "tiny", *flags)])
    script(dpo_generate, "--output_dir", run, *model, "--instructions", INSTRUCTIONS, "--num_instructions", 30, "--max_new_tokens", 40)
    script(dpo_rank, "--output_dir", run, "--judge", JUDGE)
    script(dpo_pairs, "--output_dir", run, "--allow_cut")
    script(dpo_train, "--output_dir", run, *model)
    script(dpo_evaluate, "--output_file", run/"results.csv", *model, "--adapter", f"tuned={run/'adapter'}", "--evaluator", JUDGE,
           "--test_instructions", INSTRUCTIONS, "--num_test_instructions", 10, "--max_new_tokens", 40)
    results = pd.read_csv(run/"results.csv")
    assert len(results) == 10 and not set(results.instruction_id) & trained_on(run/"adapter").keys()
    assert (results["base completion"] != results["tuned completion"]).any()

    drawn = [json.loads(line) for line in (run/"instructions.jsonl").read_text(encoding="utf-8").splitlines()]
    assert {i["id"] for i in drawn} == trained_on(run/"adapter").keys() # Also those that gave no pair
    (tmp_path/"louder.txt").write_text("\n".join(" ".join(i["messages"][0]["content"].upper().split()) + "!!" for i in drawn), encoding="utf-8")
    with pytest.raises(SystemExit): script(dpo_evaluate, "--output_file", run/"louder.csv", *model, "--adapter", f"tuned={run/'adapter'}", "--evaluator", JUDGE,
                                           "--test_instructions", tmp_path/"louder.txt", "--num_test_instructions", 1, "--max_new_tokens", 40)
    assert "near-duplicate" in capsys.readouterr().err

    base = load_lm(foreign_checkpoint, "float32", "cpu", None if quantization == "none" else quantization)
    tuned, asked = load_adapter(base, run/"adapter"), unseen(INSTRUCTIONS, trained_on(run/"adapter"), 10)
    reports = {d: merge_report(tuned, load_lm(merge_adapter(foreign_checkpoint, run/"adapter", tmp_path/d, d), d, "cpu"), asked) for d in ("float32", "float16")}
    with capsys.disabled(): print({d: dict(same=r.same.mean(), largest_difference=r.difference.max()) for d, r in reports.items()})
    if quantization == "none":
        assert reports["float32"].same.all() and reports["float32"].difference.max() < 1e-4
        assert reports["float16"].difference.max() < .1
    on_whole = load_adapter(load_lm(foreign_checkpoint, "float32", "cpu"), run/"adapter")
    whole = merge_report(on_whole, load_lm(tmp_path/"float32", "float32", "cpu"), asked)
    assert whole.same.all() and whole.difference.max() < 1e-4 # Wherever it was trained, on the whole model it is the merged one
