# `make demo` and `make test` do all the set-up on a machine that has Python 3.11 or newer.
PYTHON ?= python3
BIN := .venv/bin
SEED ?= 0
ONE := OMP_NUM_THREADS=1 # A thread for each test process; small models are slower with more

demo: .venv/installed
	$(BIN)/dpo_demo --seed $(SEED) --output_dir runs/demo-seed$(SEED)

test: .venv/installed
	rm -rf nbs/runs nbs/tutorials/runs
	$(ONE) $(BIN)/nbdev_test --n_workers 2
	$(ONE) $(BIN)/python -m pytest -q -n 2 --dist loadfile tests

test-full: .venv/installed
	rm -rf nbs/runs nbs/tutorials/runs
	$(ONE) $(BIN)/nbdev_test --n_workers 2 --flags slow
	$(ONE) $(BIN)/python -m pytest -q -n 2 --dist loadfile tests --full

# The site needs Quarto (https://quarto.org); without it, the same pages as plain HTML.
docs: .venv/installed README.md
	if command -v quarto >/dev/null; then $(BIN)/nbdev_docs; else $(MAKE) plain-docs; fi

plain-docs:
	rm -rf _docs && mkdir -p _docs/data && cp data/README.md _docs/data
	cd nbs && for d in . tutorials; do ../$(BIN)/jupyter nbconvert --log-level ERROR --to html --embed-images --output-dir ../_docs/$$d \
		--RegexRemovePreprocessor.patterns='^#\| (hide|default_exp)' $$d/*.ipynb || exit 1; done
	$(BIN)/python -c 'import nbformat as n, pathlib as p; [n.write(n.v4.new_notebook(cells=[n.v4.new_markdown_cell(f.read_text())]), f"_docs/{f.stem}.ipynb") for f in p.Path("nbs").glob("*.md")]'
	$(BIN)/jupyter nbconvert --log-level ERROR --to html _docs/*.ipynb && rm _docs/*.ipynb
	find _docs -name '*.html' | xargs perl -pi -e 's/(href="(?:\.\.\/)?[a-z0-9_\/]*)\.(ipynb|md)"/$$1.html"/g; s/href="\.\.\/data/href="data/g; s/(<h[1-6] id="|href="#)([^"]+)"/$$1 . lc($$2) . "\""/ge'
	@echo "The pages are in _docs; begin with _docs/index.html"

bench: .venv/installed
	for b in bench/*.py; do $(BIN)/python $$b --quick || exit 1; done

# What to run after an edit: notebooks → package and README.md.
prepare: .venv/installed
	$(BIN)/nbdev_clean && $(BIN)/nbdev_export && $(MAKE) -B README.md

# Run the notebooks and keep what they show, for the site: `make outputs NB=nbs/20_pairrm.ipynb`.
NB ?= nbs/*.ipynb nbs/tutorials/*.ipynb
outputs: .venv/installed
	rm -rf nbs/runs nbs/tutorials/runs
	$(ONE) IN_TEST=1 TQDM_DISABLE=1 $(BIN)/jupyter nbconvert --to notebook --execute --inplace --ExecutePreprocessor.record_timing=False $(NB)
	$(MAKE) prepare

README.md: nbs/index.ipynb
	$(BIN)/jupyter nbconvert --to markdown --stdout --log-level ERROR $< | perl -pe 's/\]\(([a-z0-9_\/]+\.(ipynb|png|md)\))/](nbs\/$$1/g; s/\]\(\.\.\//](/g' > $@

.venv/installed: settings.ini setup.py constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "dpo_nb needs Python 3.11 or newer; this is " + sys.version.split()[0] + ". Give another one: make $(MAKECMDGOALS) PYTHON=python3.12")'
	@echo 'Making the environment in .venv. This takes a few minutes, once.'
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install -q -c constraints.txt -e ".[dev]"
	touch $@

.PHONY: demo test test-full docs plain-docs bench prepare outputs
