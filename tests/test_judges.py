"A new judge or a new recipe is one new file: nothing else has to know of it."
import importlib, math
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

import dpo_nb
from conftest import ROOT, SCRIPTS, call, flags
from dpo_nb import Judge, Ranking, Response, TinyWorld, compare, load_judge, measures, read_journal, recipes, run_recipe
from dpo_nb.judging import check_ranking
from dpo_nb.api import MODULES
from test_project import NUMBER

FRESH = '''
import re

def answers_and_ends(instruction, response):
    "A point for an end, one for a number or a word of the question; longer ones lose a little."
    if not response.text.strip(): return None
    words = set(re.findall(r"\\w+", instruction.text.lower()))
    return response.finished + bool(words & set(re.findall(r"\\w+", response.text.lower()))) - len(response.text) / 1000
'''.strip()

SMALL = dict(num_instructions=6, num_test_instructions=5, responses_per_instruction=3, num_epochs=1, batch_size=4)

def test_a_judge_in_a_fresh_file_goes_through_everything(tmp_path):
    assert len(FRESH.splitlines()) < 15
    (tmp_path/"my_judges.py").write_text(FRESH)
    judge, run = f"{tmp_path}/my_judges.py:answers_and_ends", tmp_path/"run"
    said = []
    result = run_recipe(replace(recipes["tiny"], judge=judge, evaluator=judge, **SMALL), run, said.append)
    assert any("ranked by the function answers_and_ends" in line for line in said)
    assert result.comparison.judge == "answers_and_ends" and len(result.comparison.table) == 5
    rankings = read_journal(run/"rankings.jsonl", Ranking)
    assert {r.judge for r in rankings} == {"answers_and_ends"} and len(rankings) == 6

    assert call("dpo_generate", *flags("dpo_generate", tmp_path/"scripts")) == (0, "")
    assert call("dpo_rank", *flags("dpo_rank", tmp_path/"scripts"), "--judge", judge) == (0, "")
    assert {r.judge for r in read_journal(tmp_path/"scripts"/"rankings.jsonl", Ranking)} == {"answers_and_ends"}
    assert call("dpo_evaluate", "--recipe", "tiny", "--num_test_instructions", 5, "--adapter", f"tuned={run}/adapter", "--evaluator", judge, "--output_file", tmp_path/"e.csv") == (0, "")
    assert list(pd.read_csv(tmp_path/"e.csv")["tuned outcome"]) == list(result.comparison.table.outcome)

    (tmp_path/"my_judges.py").write_text(FRESH.replace("/ 1000", "/ 100"))
    code, said = call("dpo_rank", *flags("dpo_rank", tmp_path/"scripts"), "--judge", judge)
    assert code == 2 and "other code" in said and "rename this file" in said

def test_a_judge_that_asks_the_model_is_handed_the_one_in_memory(tmp_path):
    judge = f"{ROOT}/tests/judges.py:Likely"
    result = run_recipe(replace(recipes["tiny"], judge=judge, evaluator=judge, **SMALL), tmp_path/"run", lambda line: None)
    loaded = dpo_nb.judges.load_object(judge).loaded
    assert result.comparison.judge == "likely" and not result.comparison.table.outcome.eq("not judged").any()
    assert loaded[-1].name == "tiny" # The model of the run, and not its name

SAYS = '''
from dpo_nb import Judge

class Says(Judge):
    name = "says"
    def cost(self, machine, instructions, responses, prompt, response): return 2**30, 3600. * instructions

class Silent(Judge):
    name = "silent"
'''

def test_a_plan_asks_the_judge_what_it_costs(tmp_path):
    (tmp_path/"my_judges.py").write_text(FRESH + SAYS)
    def ranking(judge):
        r = replace(recipes["tiny"], judge=judge, evaluator="oracle", max_prompt_tokens=64, num_instructions=7)
        return dpo_nb.preflight(r, dpo_nb.T4).table.loc["ranking"]
    tiny, function, says, silent = map(ranking, ("tiny", *(f"{tmp_path}/my_judges.py:{name}" for name in ("answers_and_ends", "Says", "Silent"))))
    assert tiny.hours > 0 and tiny.beside > 0
    assert function.hours == function.beside == 0 and function.weights == tiny.weights > 0 # Next to nothing
    assert says.hours == 7 and says.beside == 1
    assert math.isnan(silent.hours) and silent.beside == 0 and silent.fits # It cannot say

# Whatever a judge does with what it is given: a score belongs to the response in its place

class Longest(Judge):
    name = "longest"
    def of(self, responses): return [float(len(r.text)) for r in responses]
    def score(self, groups):
        for i, responses in groups: yield self.of(responses), dict(points=[dict(length=len(r.text)) for r in responses])

class Tuples(Longest):
    def score(self, groups):
        for scores, detail in super().score(groups): yield tuple(scores), dict(points=tuple(detail["points"]))

class Arrays(Longest):
    def score(self, groups):
        for scores, detail in super().score(groups): yield np.array(scores, dtype="float32"), detail | dict(rows=np.eye(2))

class Reuses(Longest):
    batch_size, kept = 4, []
    def score(self, groups):
        for scores, detail in super().score(groups): self.kept[:] = scores; yield self.kept, detail

class Changes(Longest):
    def of(self, responses): return [len(r.text) for r in responses]
    def score(self, groups):
        for i, responses in groups:
            i.messages[-1]["content"] = "Something else?"
            yield from super().score([(i, responses)])

@pytest.mark.parametrize("kind", [Tuples, Arrays, Reuses, Changes])
def test_a_comparison_is_right_whatever_a_judge_gives(kind, tmp_path):
    asked = TinyWorld().instructions("test")[:12]
    answers = {name: [Response(i.id, 0, "word " * (1 + (7 * k + step) % 5), 9, True, name) for k, i in enumerate(asked)] for name, step in (("base", 0), ("tuned", 2))}
    outcome = [("loss", "tie", "win")[1 + (len(t.text) > len(b.text)) - (len(t.text) < len(b.text))] for b, t in zip(*answers.values())]
    for out in (None, tmp_path/"r.jsonl", tmp_path/"r.jsonl"): # Judged, judged and kept, and read
        c = compare(asked, answers, kind(), [], out)
        assert list(c.table.outcome) == outcome and {"win", "loss"} <= {*outcome}
        m = measures(c)
        assert m.loc["length", "difference"] == m.loc["score", "difference"] == (c.table["tuned score"] - c.table["base score"]).mean()
        assert all(check_ranking(r, [b.text, t.text]) for r, b, t in zip(c.rankings, *answers.values()))
    assert [i.text for i in asked] == [i.text for i in TinyWorld().instructions("test")[:12]]

class Sorts(Longest):
    def score(self, groups): groups.sort(key=str); yield from super().score(groups)

def test_a_judge_that_rearranges_what_it_is_given_is_refused():
    asked = TinyWorld().instructions("test")[:2]
    with pytest.raises(AttributeError, match="sort"): Sorts().rank(asked, [Response(i.id, k, "a" * k, 1, True) for i in asked for k in range(2)])

EDITS = {("len(r.text)", "-len(r.text)"): "by_partial by_closure by_helper ByClass", ("SIGN = 1", "SIGN = -1"): "by_partial by_helper", ("return w *", "return -w *"): "by_partial by_helper",
         ("partial(weighed, 1)", "partial(weighed, -1)"): "by_partial", ("times(1)", "times(-1)"): "by_closure"}

@pytest.mark.parametrize("edit", EDITS)
def test_old_and_new_scores_are_not_mixed(edit, tmp_path):
    code = """
from functools import partial
from dpo_nb import Judge
SIGN = 1
def weighed(w, i, r): return w * SIGN * len(r.text)
def times(w): return lambda i, r: w * len(r.text)
by_partial = partial(weighed, 1)
by_closure = times(1)
def by_helper(i, r): return weighed(1, i, r)
class ByClass(Judge):
    name = "own"
    def score(self, groups):
        for i, rs in groups: yield [float(len(r.text)) for r in rs], {}
"""
    names = EDITS[edit].split()
    asked = TinyWorld().instructions("test")[:2]
    given = [Response(i.id, k, "a" * k, 1, True) for i in asked for k in (1, 2)]
    def rank(name): return load_judge(f"{tmp_path}/j.py:{name}").rank(asked, given, tmp_path/f"{name}.jsonl")
    (tmp_path/"j.py").write_text(code)
    first = {name: rank(name) for name in names}
    assert all(rank(name) == first[name] for name in names)
    (tmp_path/"j.py").write_text(code.replace(*edit) + "\ndef another(i, r): return 1\n")
    for name in names:
        with pytest.raises(ValueError, match="other code"): rank(name)

def test_what_a_judge_may_be(tmp_path):
    (tmp_path/"j.py").write_text("from dpo_nb import FunctionJudge\nfrom helper import value\nready = FunctionJudge(lambda i, r: value, 'ready')\n")
    (tmp_path/"helper.py").write_text("value = 7") # Beside it
    assert isinstance(load_judge(f"{tmp_path}/j.py:ready"), Judge) and load_judge(f"{tmp_path}/j.py:ready").name == "ready"

# Recipes

MINE = '''
from dataclasses import dataclass, replace
from dpo_nb import Recipe, recipes

mine = replace(recipes["tiny"], name="mine", seed=7)

@dataclass(frozen=True)
class Twice:
    name:str
    recipe:Recipe
    def run(self, folder, say=print): return [self.recipe.run(f"{folder}/{k}", say) for k in (1, 2)]

small = replace(recipes["tiny"], num_instructions=6, num_test_instructions=5, responses_per_instruction=3, num_epochs=1, batch_size=4)
twice = Twice("twice", small)
'''

def test_every_script_finds_a_recipe_that_is_added_in_one_place(tmp_path, monkeypatch, capsys):
    (tmp_path/"my_recipes.py").write_text(MINE)
    monkeypatch.setitem(recipes, "added", replace(recipes["tiny"], name="added", seed=7))
    for name in ("added", f"{tmp_path}/my_recipes.py:mine"):
        for script in (*SCRIPTS, "dpo_demo", "dpo_preflight"):
            with pytest.raises(SystemExit) as end: getattr(dpo_nb.cli, script)(["--recipe", name, "--help"])
            said = capsys.readouterr().out
            assert end.value.code == 0 and "added" in said
            if script in ("dpo_generate", "dpo_train", "dpo_demo"): assert "[7]" in said # Its own seed
    code, said = call("dpo_generate", "--recipe", "ad ded")
    assert code == 2 and "there is no recipe 'ad ded'. Give one of tiny, mistral-7b-lima-pairrm, added, or 'my_recipes.py:name'" in said

def test_a_recipe_of_another_kind_holds_a_recipe(tmp_path):
    (tmp_path/"my_recipes.py").write_text(MINE)
    Twice = dpo_nb.judges.load_object(f"{tmp_path}/my_recipes.py:Twice")
    with pytest.raises(SystemExit): dpo_nb.cli.dpo_demo(["--recipe", f"{tmp_path}/my_recipes.py:Twice"])
    first, second = run_recipe(Twice("twice", replace(recipes["tiny"], **SMALL)), tmp_path/"runs", lambda line: None)
    assert [r.run.path.name for r in (first, second)] == ["1", "2"] and first.comparison.table.equals(second.comparison.table)
    assert call("dpo_run", tmp_path/"again", "--recipe", f"{tmp_path}/my_recipes.py:twice") == (0, "") and (tmp_path/"again"/"2"/"adapter").is_dir()
    code, said = call("dpo_demo", "--recipe", f"{tmp_path}/my_recipes.py:twice")
    assert code == 2 and "twice is a recipe of another kind" in said
    assert call("dpo_generate", "--recipe", f"{tmp_path}/my_recipes.py:small", "--output_dir", tmp_path/"small") == (0, "")

# The names at the top of the package

def test_a_public_name_is_what_it_says_and_never_a_module(python):
    code = f"import importlib\nfor m in {[*NUMBER]!r}: importlib.import_module('dpo_nb.' + m)\n" + \
        "import dpo_nb, types\nfrom dpo_nb.api import MODULES\n" + \
        "for name, module in MODULES.items():\n    found = getattr(dpo_nb, name)\n    assert not isinstance(found, types.ModuleType), name\n" + \
        "    assert found is getattr(importlib.import_module('dpo_nb.' + module), name), name\nfrom dpo_nb import *\nprint(generate.__name__, type(recipes).__name__, len(MODULES))"
    done = python(code)
    assert done.returncode == 0 and done.stdout.startswith("generate dict "), done.stderr
    assert not {*MODULES} & {*NUMBER}

@pytest.mark.parametrize("module", NUMBER)
def test_no_name_is_the_name_of_a_module(module):
    "`from dpo_nb import generate` would give the module once anything had imported it."
    assert not {*importlib.import_module(f"dpo_nb.{module}").__all__} & {*NUMBER}
