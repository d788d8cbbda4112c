"What a stranger installs: the wheel, from the tree and from the sdist, alone in a new environment."
import ast, csv, json, os, re, shutil, subprocess, sys, venv, zipfile
from configparser import ConfigParser
from email import message_from_string
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
CLEAN = {k: v for k, v in os.environ.items() if not k.startswith("PYTHON")} # Nothing of this environment shows through

def run(*command, **kwargs):
    done = subprocess.run([*map(str, command)], capture_output=True, text=True, env=CLEAN, **kwargs)
    assert done.returncode == 0, f"{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
    return done.stdout

def plain(name): return re.sub(r"[-_.]+", "-", name).lower()

def declared():
    "Names of the requirements in settings.ini."
    config = ConfigParser(delimiters=["="]); config.read(ROOT/"settings.ini", encoding="utf-8")
    return {plain(re.match(r"[\w.-]+", r)[0]) for r in config["DEFAULT"]["requirements"].split()}

THROUGH = {"accelerate", "bitsandbytes", "protobuf"} # Nothing imports these, but transformers needs them to place a model, to load it in 4 bit, and to read DeBERTa's tokenizer
HOST = {"IPython", "google", "kaggle_secrets"} # Imported only where a notebook or its host has brought them

def test_the_requirements_are_what_is_imported():
    trees = [ast.parse(p.read_text(encoding="utf-8")) for folder in ("dpo_nb", "data") for p in (ROOT/folder).glob("*.py")]
    nodes = [n for tree in trees for n in ast.walk(tree)]
    names = {a.name for n in nodes if isinstance(n, ast.Import) for a in n.names} | {n.module for n in nodes if isinstance(n, ast.ImportFrom) and not n.level}
    modules = {n.split(".")[0] for n in names} - {"dpo_nb", *HOST, *sys.stdlib_module_names}
    imported = {plain(packages_distributions()[m][0]) for m in modules}
    assert imported - declared() == set(), "imported, but not in requirements"
    assert declared() - imported - THROUGH == set(), "in requirements, but not imported"

@pytest.fixture(scope="module")
def wheels(tmp_path_factory):
    "The wheel that is made from the tree, and the one that is made from the sdist."
    there = tmp_path_factory.mktemp("built")
    shutil.copytree(ROOT, there/"tree", symlinks=True, ignore=shutil.ignore_patterns(".git", ".venv", "runs", "_*docs", "_proc", "build", "dist", "*.egg-info", "__pycache__"))
    run(sys.executable, "-m", "build", "--outdir", there/"through sdist", there/"tree")
    run(sys.executable, "-m", "build", "--wheel", "--outdir", there/"direct", there/"tree")
    return [next((there/folder).glob("*.whl")) for folder in ("direct", "through sdist")]

def contents(wheel):
    with zipfile.ZipFile(wheel) as z: return {name: z.read(name) for name in z.namelist()}

def test_the_sdist_makes_the_same_wheel(wheels):
    direct, through = map(contents, wheels)
    assert direct == through

def test_the_wheel_holds_the_package_and_its_data(wheels):
    info = re.match(r"dpo_nb-[\d.]+", wheels[0].name)[0] + ".dist-info/"
    there = {name for name in contents(wheels[0]) if not name.startswith(info)}
    python = {f"dpo_nb/{p.name}" for p in (ROOT/"dpo_nb").glob("*.py")}
    data = {f"dpo_nb/data/{p.relative_to(ROOT/'data')}" for p in (ROOT/"data").rglob("*") if p.is_file() and "__pycache__" not in p.parts}
    assert there == python | data and "dpo_nb/data/tiny/policy/model.safetensors" in data

def entry(wheel, name):
    "A file of the wheel's metadata, as text."
    return next(v.decode() for k, v in contents(wheel).items() if k.endswith(f".dist-info/{name}"))

def test_the_page_of_the_package_has_no_link_into_the_void(wheels):
    page = message_from_string(entry(wheels[0], "METADATA"))
    assert page["Description-Content-Type"] == "text/markdown"
    links = re.findall(r"\]\(([^)\s]+)", page.get_payload())
    assert [x for x in links if not x.startswith(("https://", "#"))] == []
    ours = [x.split("/main/")[1].split("#")[0] for x in links if re.search(r"/dpo_nb/(blob|raw)/main/", x)]
    assert ours and [x for x in ours if not (ROOT/x).exists()] == []

@pytest.fixture(scope="module")
def fresh(wheels, tmp_path_factory):
    "The programs of an environment that holds the wheel and what it requires, and nothing else."
    there = tmp_path_factory.mktemp("fresh")
    venv.create(there, with_pip=True)
    run(there/"bin"/"python", "-m", "pip", "install", "-q", "--no-compile", "-c", ROOT/"constraints.txt", wheels[0])
    return there/"bin"

def test_the_tested_set_is_complete(fresh):
    "Every version that is installed is one of constraints.txt."
    lines = (ROOT/"constraints.txt").read_text().splitlines()
    pinned = {plain(n): v for n, v in (line.split("==") for line in lines if "==" in line)}
    there = dict(line.split("==") for line in run(fresh/"python", "-m", "pip", "list", "--format=freeze").splitlines())
    there = {plain(n): v.split("+")[0] for n, v in there.items() if plain(n) not in ("pip", "setuptools", "dpo-nb")}
    assert {n: (v, pinned.get(n)) for n, v in there.items() if v != pinned.get(n)} == {}
    assert not {"nbdev", "pytest", "ipython"} & there.keys()

def test_every_script_has_help(fresh, wheels, tmp_path):
    config = ConfigParser(delimiters=["="]); config.read_string(entry(wheels[0], "entry_points.txt"))
    assert "dpo_demo" in config["console_scripts"]
    for name in config["console_scripts"]:
        said = run(fresh/name, "--help", cwd=tmp_path)
        assert f"usage: {name}" in said and ("--recipe" in said or name == "dpo_run"), name

def test_the_demo_runs_anywhere(fresh, tmp_path):
    said = run(fresh/"dpo_demo", "--num_instructions", 10, "--num_test_instructions", 20, "--num_epochs", 1, "--output_dir", "here", cwd=tmp_path)
    assert "win rate" in said and (tmp_path/"here"/"adapter"/"adapter_model.safetensors").exists()

STAGES = "dpo_generate", "dpo_rank", "dpo_pairs", "dpo_train"
MADE = "instructions.jsonl", "responses.jsonl", "rankings.jsonl", "pairs/*", "adapter/*", "training.jsonl"

def test_the_tutorial_and_the_scripts_make_the_same_adapter(fresh, tmp_path, monkeypatch):
    monkeypatch.setitem(CLEAN, "CUDA_VISIBLE_DEVICES", "") # So that the tutorial takes the tiny recipe
    cells = json.loads((ROOT/"nbs/tutorials/mistral7b_lima_pairrm.ipynb").read_text(encoding="utf-8"))["cells"]
    (tmp_path/"tutorial.py").write_text("\n".join("".join(c["source"]) for c in cells if c["cell_type"] == "code"), encoding="utf-8")
    said = run(fresh/"python", "tutorial.py", cwd=tmp_path)
    assert "layers got an adapter" in said and "tuned completion" in said
    for script in STAGES: run(fresh/script, "--recipe", "tiny", "--output_dir", "scripts", cwd=tmp_path)
    run(fresh/"dpo_evaluate", "--recipe", "tiny", "--adapter", "tuned=scripts/adapter", "--output_file", "results.csv", cwd=tmp_path)
    ways = [{str(p.relative_to(tmp_path/way)): p.read_bytes() for pattern in MADE for p in (tmp_path/way).glob(pattern)} for way in ("runs/tiny", "scripts")]
    assert "adapter/adapter_model.safetensors" in ways[0] and ways[0].keys() == ways[1].keys()
    assert [f for f in ways[0] if ways[0][f] != ways[1][f]] == []
    answers = [[(row["instruction"], row["base completion"], row["tuned completion"]) for row in csv.DictReader(open(tmp_path/f, newline="", encoding="utf-8"))]
               for f in ("runs/tiny/evaluation/comparison.csv", "results.csv")]
    assert len(answers[0]) == 200 and answers[0] == answers[1]
