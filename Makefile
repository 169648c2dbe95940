# From a clone: `make demo` shows a merge, `make test` runs the tests. Both make .venv on their first run.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP_INSTALL := $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt
PYTEST_ARGS ?=

.PHONY: help venv demo test test-slow test-faults cluster-test lint format bench clean

help:
	@echo "make demo       merge three small generated checkpoints on a local Ray, into demo/"
	@echo "make test       run every test that takes less than a minute"
	@echo "make test-slow  run the others"
	@echo "make test-faults  merge between objects under 200 random schedules of faults"
	@echo "make cluster-test  lose hosts, drivers and connections on purpose; needs root, prints a line for each"
	@echo "make lint       ruff (lint and format) and mypy"
	@echo "make format     let ruff rewrite the sources"
	@echo "make bench      time raymerge on generated checkpoints (see benchmarks/)"
	@echo "make clean      remove .venv, caches and what the demo made"

# A stamp is written only after a complete installation, so an interrupted one is done again.
$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' \
		|| { echo "raymerge needs Python 3.10 or newer; set PYTHON=/path/to/python3.x"; exit 1; }
	$(PYTHON) -m venv $(VENV)

$(VENV)/.run-stamp: pyproject.toml constraints.txt | $(BIN)/python
	$(PIP_INSTALL) -e .
	@touch $@

# SkyPilot without what it depends on (some 450 MB): a test reads the schemas in it.
$(VENV)/.test-stamp: pyproject.toml constraints.txt | $(BIN)/python
	$(PIP_INSTALL) -e '.[test]'
	$(PIP_INSTALL) --no-deps skypilot
	@touch $(VENV)/.run-stamp $@

venv: $(VENV)/.test-stamp

demo: $(VENV)/.run-stamp
	$(BIN)/python examples/demo.py demo

test: $(VENV)/.test-stamp
	$(BIN)/python -m pytest -m "not slow" $(PYTEST_ARGS)

test-slow: $(VENV)/.test-stamp
	$(BIN)/python -m pytest -m "slow and not cluster" $(PYTEST_ARGS)

# Network namespaces need root; without it those tests say so and are skipped.
cluster-test: $(VENV)/.test-stamp
	PYTHONPATH=tests/support $(BIN)/python -m pytest -p cluster_points -m "point or cluster" $(PYTEST_ARGS)

test-faults: $(VENV)/.test-stamp
	$(BIN)/python -m pytest -s tests/storage/test_fault_schedules.py $(PYTEST_ARGS)

lint: $(VENV)/.test-stamp
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(VENV)/.test-stamp
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: $(VENV)/.test-stamp
	$(BIN)/python -m benchmarks

clean:
	rm -rf $(VENV) demo build .pytest_cache .mypy_cache .ruff_cache .hypothesis
