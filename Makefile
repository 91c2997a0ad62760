# Everything below runs on a fresh machine with Python 3.11+ and make.
PYTHON ?= python3
BIN := .venv/bin
# Threads that spin while they wait slow everything beside them.
export OMP_WAIT_POLICY ?= passive

.PHONY: setup demo test check clean

setup: .venv/installed

# torch comes first and pinned: left to the resolver it may bring gigabytes of another build.
.venv/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --constraint constraints.txt torch
	$(BIN)/pip install --quiet --constraint constraints.txt --editable ".[test,check]"
	touch $@

demo: setup
	$(BIN)/saeval run quickstart

test: setup
	$(BIN)/python -m pytest

check: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

clean:
	rm -rf .venv build *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
