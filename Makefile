# make demo    train small models that grow attention sinks, print claims beside measurements
# make test    lint, types, tests
# Both set up .venv on a machine with only python3.  PYTHON=python3.12 chooses another.
# Where there is an NVIDIA GPU the set-up includes CUDA and experiments run on it; the suite does not.

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
GPU := $(shell nvidia-smi -L 2>/dev/null | grep -m 1 -o GPU)
COMMA := ,
CUDA := $(if $(GPU),$(COMMA)cuda)
ifeq ($(GPU),)
export JAX_PLATFORMS ?= cpu
endif
check kernels laws slow: export JAX_PLATFORMS = cpu
export MPLBACKEND ?= Agg

.PHONY: demo test lint types check kernels slow laws smoke quick claims papers docs clean

demo: $(VENV)/.installed
	$(BIN)/python -m experiments.sinks.backcopy --quick

test: lint types check

lint: $(VENV)/.installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(VENV)/.installed-dev
	$(BIN)/pyright --pythonpath $(BIN)/python

check: $(VENV)/.installed-dev
	$(BIN)/python -m pytest -n 2 --dist loadgroup -m "not gpu and not slow"

# Every law that an op, as it is now, has not met yet; what passes goes into the ledger, which
# `make test` reads.  LAWS=all runs them all again.
LAWS ?= due
laws: $(VENV)/.installed-dev
	$(BIN)/python -m pytest -n 2 --dist loadgroup -m "not gpu" --laws=$(LAWS) --write-ledger \
	    tests/laws tests/ops --ignore tests/laws/test_ledger.py

# Every test of the kernels in Triton's interpreter, and a note of what passed; `make test` runs them
# all where the note is of other sources, else a sample.
kernels: $(VENV)/.installed-dev
	$(BIN)/python -m pytest -n 2 -m "not gpu and (interpreter or not interpreter)" tests/kernels
	$(BIN)/python -m tests.kernels.stamp

# What `make test` leaves out beside: more cases of the same code, and what takes minutes.
slow: $(VENV)/.installed-dev
	$(BIN)/python -m pytest -n 2 -m "slow and not gpu"

# Every experiment in seconds, as CI runs them; in a minute each; in full, which writes docs/claims.
smoke quick: $(VENV)/.installed
	$(BIN)/python -m experiments all --$@

claims: $(VENV)/.installed
	$(BIN)/python -m experiments all
	$(BIN)/python -m experiments publish

# The table of papers that the README links to.
papers: $(VENV)/.installed
	$(BIN)/python -m attnjax papers --markdown > attnjax/PAPERS.md

# The site, in docs/_build; PICTURES=0 leaves out those of the gallery, which take minutes at first.
docs: $(VENV)/.installed-docs
	$(BIN)/python -m sphinx -W --keep-going -q docs docs/_build

$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip

$(VENV)/.installed: pyproject.toml | $(VENV)/bin/python
	$(BIN)/python -m pip install --quiet --editable ".[lab$(CUDA)]"
	touch $@

$(VENV)/.installed-dev: pyproject.toml | $(VENV)/bin/python
	$(BIN)/python -m pip install --quiet --editable ".[dev$(CUDA)]"
	touch $@ $(VENV)/.installed

$(VENV)/.installed-docs: pyproject.toml | $(VENV)/bin/python
	$(BIN)/python -m pip install --quiet --editable ".[docs$(CUDA)]"
	touch $@ $(VENV)/.installed

clean:
	rm -rf $(VENV) docs/_build docs/gallery docs/reference.md docs/papers.md build *.egg-info .pytest_cache .ruff_cache .hypothesis
