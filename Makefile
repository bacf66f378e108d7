PYTHON ?= python3
BIN := .venv/bin
SMALL := .venv/.small
READY := .venv/.ready
PEERS := .venv/.peers
# A Python that has torch: the one that was named, or that of .venv where there is one.
HERE = $(or $(if $(filter file,$(origin PYTHON)),$(wildcard $(BIN)/python)),$(PYTHON))
# Workers for two cores: a third would import all the libraries once more.
WORKERS ?= 2
PYTEST = $(BIN)/python -m pytest -n $(WORKERS) --dist loadfile

.DEFAULT_GOAL := help
.PHONY: help demo test test-all test-trainers test-newest lint bench gpu rankings clean

help:  ## list the targets
	@grep -E '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /  make \1\t/'

demo: $(SMALL)  ## train an LSTM on the Mauna Loa CO2 record and watch its cells
	$(BIN)/python examples/01_lightning_co2.py

test: lint  ## run lint, types, import order and the tests, but for the long ones that seldom tell anything new
	$(PYTEST)

test-all: lint  ## run every check, as CI does, two to three times as long; COV=1 also measures coverage, half as long again
	$(PYTEST) --thorough $(if $(COV),--cov --cov-report=term-missing:skip-covered)

test-trainers: $(READY)  ## train with each library in an environment of its own, an hour; FAST=1 those that CI runs
	$(if $(FAST),,$(BIN)/python -m pytest -n 2 tests/test_conformance.py --conformance=all)
	$(BIN)/python tests/trainers/run.py $(if $(FAST),--fast)

test-newest: $(READY)  ## the same with the newest releases of these libraries instead of tests/trainers/constraints.txt
	$(BIN)/python tests/trainers/run.py --newest $(if $(FAST),--fast)

lint: $(READY)  ## run ruff, mypy and import-linter
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/lint-imports

bench: $(PEERS)  ## measure the engines against the machine's limit, and what the monitor costs beside its peers
	OMP_NUM_THREADS=1 $(BIN)/python benchmarks/engines.py
	$(BIN)/python benchmarks/peers.py
	$(BIN)/python benchmarks/memory.py
	$(BIN)/python benchmarks/processes.py
	$(BIN)/python benchmarks/imports.py
	$(BIN)/python benchmarks/overhead.py
	$(BIN)/python benchmarks/ablation.py
	$(BIN)/python benchmarks/pruning.py

gpu:  ## on a machine with a GPU, within 8 minutes: is all of it right there, and how fast? PYTHON=, OUT=folder, DRY=1
	PYTHONPATH=.:benchmarks $(HERE) -m gpu $(if $(OUT),--out $(OUT)) $(if $(DRY),--dry-run)

rankings: $(READY)  ## measure which rankings foretell ablation, half an hour; DATA=folder adds two tasks
	$(BIN)/python benchmarks/rankings.py $(if $(DATA),--data $(DATA))

clean:  ## remove .venv, caches and build results
	rm -rf .venv .venv-trainers build dist *.egg-info .coverage .hypothesis .import_linter_cache .mypy_cache .pytest_cache .ruff_cache

# What the demo needs. torch goes first and pinned: see constraints.txt.
$(SMALL): pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install -c constraints.txt torch
	$(BIN)/python -m pip install -c constraints.txt -e ".[lightning,tensorboard,plots,history]" statsmodels
	touch $@

# What the tests need besides: the other trainers and loggers, and the tools.
$(READY): $(SMALL)
	$(BIN)/python -m pip install -c constraints.txt -e ".[dev]"
	touch $@

# What the benchmarks compare with.
$(PEERS): $(READY)
	$(BIN)/python -m pip install -c constraints.txt delve
	touch $@
