# The two commands: `make train` and `make test`. Each does everything, from a machine with python3 and make.

PYTHON ?= python3
VENV   ?= .venv
WORKDIR ?= runs/digits
ARGS   ?=

BIN := $(VENV)/bin
READY := $(VENV)/.ready

.PHONY: help train test lint docs-test bench clean

help:  ## List the targets.
	@awk -F ':.*## ' '/^[a-z-]+:.*## /{printf "%-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

train: $(READY)  ## Train DEF at ratio 64 on digits, 16 fake devices; ARGS="--config.method=sgd" passes flags on.
	$(BIN)/python train.py --config=configs/digits.py --workdir=$(WORKDIR) $(ARGS)

test: $(READY)  ## Run the whole test suite; ARGS="-k name" passes flags on.
	$(BIN)/python -m pytest $(ARGS)

lint: $(READY)  ## Check style and types.
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

docs-test: $(READY)  ## Run the examples in docstrings and in README.
	$(BIN)/python -m pytest --doctest-modules def_jax configs tests/test_readme.py

bench: $(READY)  ## Measure the optimizer stage against plain momentum SGD.
	$(BIN)/python -m benchmarks.optimizer_stage --output=results/benchmarks/optimizer_stage.md

clean:  ## Remove the virtual environment and caches; runs stay.
	rm -rf $(VENV) .pytest_cache .ruff_cache .mypy_cache

$(READY): requirements.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements.txt
	@touch $@
