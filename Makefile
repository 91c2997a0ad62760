# Everything below runs on a fresh machine with Python 3.11+ and make.
PYTHON ?= python3
BIN := .venv/bin
# Threads that spin while they wait slow everything beside them.
export OMP_WAIT_POLICY ?= passive

.PHONY: setup demo test fuzz torture test-tl4 check clean

setup: .venv/installed

# torch comes first and pinned: left to the resolver it may bring gigabytes of another build.
.venv/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --constraint constraints.txt torch
	$(BIN)/pip install --quiet --constraint constraints.txt --editable ".[test,check]"
	touch $@

demo: setup
	$(BIN)/saeval run quickstart

# Two workers of one thread each: what is tested is mostly small and single-threaded. A file's tests share fixtures.
WORKERS ?= 2

test: setup
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(WORKERS) --dist loadfile --no-loadscope-reorder

# Property tests with fresh seeds for BUDGET seconds; a failure prints the command that repeats it.
BUDGET ?= 600

fuzz: setup
	OMP_NUM_THREADS=1 $(BIN)/python tests/fuzz.py --seconds $(BUDGET)

# Kills at random moments; mutated suites, results folders and names: BUDGET seconds of each, with fresh seeds.
torture: setup
	OMP_NUM_THREADS=1 $(BIN)/python tests/torture.py --seconds $(BUDGET)
	OMP_NUM_THREADS=1 $(BIN)/python tests/fuzz.py --seconds $(BUDGET) --only damaged_checkpoint

# sae-lens needs transformer-lens 3, so transformer-lens 4 has an environment of its own, without sae-lens.
TL4 := .venv-tl4

test-tl4: $(TL4)/installed
	$(TL4)/bin/python -m pytest tests/models

$(TL4)/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(TL4)
	grep -v -e '^sae-lens=' -e '^transformer-lens=' constraints.txt > $(TL4)/constraints.txt
	echo transformer-lens==4.3.0 >> $(TL4)/constraints.txt
	$(TL4)/bin/pip install --quiet --constraint $(TL4)/constraints.txt torch
	$(TL4)/bin/pip install --quiet --constraint $(TL4)/constraints.txt pytest hypothesis setuptools --editable .
	touch $@

check: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

clean:
	rm -rf .venv $(TL4) build *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
