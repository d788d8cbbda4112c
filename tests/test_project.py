"The project as a whole: what is generated is in step with the notebooks, and the package imports as it promises."
import ast, builtins, dis, importlib, json, re, shutil, subprocess, sys, types
from io import StringIO
from pathlib import Path
from tokenize import OP, generate_tokens

import pytest

ROOT = Path(__file__).parents[1]
NOTEBOOKS = sorted(p for p in (ROOT/"nbs").rglob("*.ipynb") if not any(x.startswith((".", "_")) for x in p.relative_to(ROOT).parts))
NUMBER = {p.stem.split("_", 1)[1]: int(p.stem[:2]) for p in NOTEBOOKS if p.stem[:2].isdigit()}

@pytest.fixture(scope="module")
def copy(tmp_path_factory):
    "A copy of the project in which tools may write."
    there = tmp_path_factory.mktemp("copy")/"dpo_nb"
    shutil.copytree(ROOT, there, symlinks=True, ignore=shutil.ignore_patterns(".git", ".venv", "runs", "_*docs", "_proc", "*.egg-info", "tiny"))
    return there

def files(folder, *patterns): return {str(p.relative_to(folder)): p.read_text() for pattern in patterns for p in folder.glob(pattern) if ".ipynb_checkpoints" not in str(p)}

def run(there, *command): subprocess.run([Path(sys.executable).parent/command[0], *command[1:]], cwd=there, check=True, capture_output=True)

def test_clean_and_export_leave_no_diff(copy):
    generated = "dpo_nb/*.py", "nbs/*.ipynb", "nbs/tutorials/*.ipynb"
    before = files(copy, *generated)
    assert {f"dpo_nb/{m}.py" for m in NUMBER} < set(before)
    run(copy, "nbdev_clean"); run(copy, "nbdev_export")
    after = files(copy, *generated)
    assert [f for f in before.keys() | after.keys() if before.get(f) != after.get(f)] == []

def test_every_module_comes_from_a_notebook():
    assert {p.stem for p in (ROOT/"dpo_nb").glob("*.py")} - {"__init__", "_modidx"} == set(NUMBER)

def test_readme_is_made_from_the_index(copy):
    before = (copy/"README.md").read_text()
    (copy/"README.md").unlink()
    subprocess.run(["make", "-o", ".venv/installed", "README.md", f"BIN={Path(sys.executable).parent}"], cwd=copy, check=True, capture_output=True)
    assert (copy/"README.md").read_text() == before

def test_what_the_readme_shows_exists():
    readme = (ROOT/"README.md").read_text()
    linked = [x for x in re.findall(r"\]\(([^)#]+)\)", readme) if "://" not in x]
    assert linked and [x for x in linked if not (ROOT/x).exists()] == []

@pytest.mark.parametrize("module", NUMBER)
def test_a_module_imports_only_lower_numbered_ones(module):
    tree = ast.parse((ROOT/"dpo_nb"/f"{module}.py").read_text())
    own = [n.module if n.level else n.module.removeprefix("dpo_nb.") for n in ast.walk(tree) if isinstance(n, ast.ImportFrom) and (n.level or (n.module or "").startswith("dpo_nb."))]
    assert own or NUMBER[module] in (0, 4, 17, 80) # Some need nothing of ours
    assert [m for m in own if m != "data" and NUMBER[m] >= NUMBER[module]] == []

def code_cells(path): return ["".join(c["source"]) for c in json.loads(path.read_text())["cells"] if c["cell_type"] == "code"]

@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_code_can_be_read(path):
    "One thought a line, and cells that fit on a screen. `train_dpo` has twenty documented parameters."
    cells = code_cells(path)
    assert [line for s in cells for line in s.splitlines() if len(line) > 110] == []
    exported = [s for s in cells if s.startswith("#| export") and "def train_dpo(" not in s]
    assert [s.splitlines()[1] for s in exported if len([x for x in s.splitlines() if x.strip() and not x.startswith("#|")]) > 30] == []
    assert [t.line for s in cells if "nbdev_export" not in s for t in generate_tokens(StringIO(s).readline) if t.type == OP and t.string == ";"] == []

def functions(code):
    yield code
    for c in code.co_consts:
        if isinstance(c, types.CodeType): yield from functions(c)

@pytest.mark.parametrize("module", NUMBER)
def test_every_name_that_a_module_uses_is_there(module):
    "A notebook finds what its hidden cells import; the module that is exported from it would not."
    there = {*vars(importlib.import_module(f"dpo_nb.{module}")), *vars(builtins)}
    code = compile((ROOT/"dpo_nb"/f"{module}.py").read_text(), module, "exec")
    used = {i.argval for f in functions(code) for i in dis.get_instructions(f) if i.opname == "LOAD_GLOBAL"}
    assert used - there == set()

def test_the_pages_of_the_site_can_be_made(copy):
    run(copy, "python", "-c", "from nbdev.serve import proc_nbs; proc_nbs(n_workers=2)")
    assert {p.name for p in (copy/"_proc").rglob("*.ipynb")} == {p.name for p in NOTEBOOKS}

def test_the_sidebar_lists_every_notebook():
    listed = set(re.findall(r"- (\S+\.ipynb)", (ROOT/"_quarto.yml").read_text()))
    assert listed == {str(p.relative_to(ROOT/"nbs")) for p in NOTEBOOKS}

def test_the_package_imports_fast_and_without_torch(python):
    code = "import time; t = time.perf_counter(); import dpo_nb; print(time.perf_counter() - t); import sys; assert 'torch' not in sys.modules"
    runs = [python(code) for _ in range(3)]
    assert all(r.returncode == 0 for r in runs), runs[0].stderr
    assert min(float(r.stdout) for r in runs) < .5

def test_the_package_imports_on_the_next_fastcore(python, tmp_path):
    subprocess.run([sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--target", tmp_path, "fastcore>=2"], check=True, capture_output=True)
    code = f"import fastcore; assert fastcore.__version__ >= '2'; import {', '.join(f'dpo_nb.{m}' for m in NUMBER)}"
    done = python(code, PYTHONPATH=str(tmp_path))
    assert done.returncode == 0, done.stderr

def test_no_page_of_the_project_leaks_where_it_was_made():
    names = "*.md", "*.ini", "*.yml", "Makefile", "nbs/*.ipynb", "nbs/tutorials/*.ipynb", "dpo_nb/*.py", "data/*.md", "data/*.py", "data/*/*.md", "data/*/*/*.md", "tests/*.py", "bench/*.py"
    leaks = [(f, m) for f, text in files(ROOT, *names).items() for m in re.findall(r"/(?:work|root|home)/\w+", text) if "test_project" not in f]
    assert leaks == []

@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_no_saved_output_shows_the_machine_or_a_traceback(path):
    outputs = [o for c in json.loads(path.read_text())["cells"] if c["cell_type"] == "code" for o in c["outputs"]]
    for o in outputs: o.get("data", {}).pop("image/png", None)
    assert re.findall(r"/(?:tmp|root|home|work|var)/[\w.-]+|site-packages|ipykernel_\d+|Traceback \(most recent|was never awaited", json.dumps(outputs, ensure_ascii=False)) == []

def test_trl_is_held_to_the_version_that_was_tested():
    from dpo_nb.trainer import TRL
    major, minor = map(int, TRL.split("."))
    assert f"trl>={TRL},<{major}.{minor + 1} " in (ROOT/"settings.ini").read_text()
    assert f"\ntrl=={TRL}." in (ROOT/"constraints.txt").read_text()
