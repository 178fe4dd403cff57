# The two commands: `make train` and `make test`. Each does everything, from a machine with python3 and make.

PYTHON ?= python3
VENV   ?= .venv
WORKDIR ?= runs/digits
ARGS   ?=
# All tests keep two cores busy; a part of them, picked with ARGS, starts sooner in one process.
PROCESSES ?= $(if $(ARGS),0,2)

RESULTS := $(patsubst %/,%,$(dir $(wildcard results/*/runs.jsonl results/*/*/runs.jsonl)))
REPRODUCED ?= table1 table4 figure3 beyond
BENCHMARKS ?= optimizer_stage scaling workers loop startup
THEORY ?= step_size distance averaging stability figure3

BIN := $(VENV)/bin
READY := $(VENV)/.ready

.PHONY: help train test test-slow lint docs docs-test theory tables reproduce notebooks bench bench-cluster faults clean

help:  ## List the targets.
	@awk -F ':.*## ' '/^[a-z-]+:.*## /{printf "%-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

train: $(READY)  ## Train DEF at ratio 64 on digits, 16 fake devices; ARGS="--config.method=sgd" passes flags on.
	$(BIN)/python train.py --config=configs/digits.py --workdir=$(WORKDIR) $(ARGS)

test: $(READY)  ## Run the tests but the slow ones; ARGS="-k name" passes flags on.
	$(BIN)/python -m pytest -m "not slow" -n $(PROCESSES) --dist loadfile $(ARGS)

test-slow: $(READY)  ## Run the slow tests: whole runs, large networks, notebooks, a cluster.
	$(BIN)/python -m pytest -m slow -n $(PROCESSES) --dist loadfile $(ARGS)

lint: $(READY)  ## Check style and types.
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

docs: $(READY)  ## Build the documentation into docs/_build/html; a warning or a broken link is an error.
	$(BIN)/python -m sphinx -W --keep-going -q -c docs . docs/_build/html
	@echo 'Open docs/_build/html/index.html'

docs-test: $(READY)  ## Run the examples in docstrings.
	$(BIN)/python -m pytest --doctest-modules def_jax configs

theory: $(READY)  ## Run the programs behind docs/theory: tables on the screen, pictures into results/theory; minutes.
	@for program in $(THEORY); do echo "$$program"; $(BIN)/python docs/theory/$$program.py || exit 1; done

tables: $(READY)  ## Rewrite every page and picture under results/ from its runs.jsonl.
	@for folder in $(RESULTS); do $(BIN)/python -m def_jax.experiments.report --workdir=$$folder || exit 1; done

reproduce: $(READY)  ## Train the digits experiments from scratch into runs/, in some hours on 2 cores, and report them.
	@for table in $(REPRODUCED); do \
	  $(BIN)/python -m def_jax.experiments.sweep --config=configs/tables/$$table.py:digits --workdir=runs/$${table}_digits && \
	  $(BIN)/python -m def_jax.experiments.report --workdir=runs/$${table}_digits || exit 1; done

notebooks: $(READY)  ## Run the notebooks and keep what they show.
	$(BIN)/jupyter execute --inplace notebooks/*.ipynb

bench: $(READY)  ## Measure the optimizer stage, how it grows, the trainer's loop and its start: twenty minutes of 2 cores.
	@for section in $(BENCHMARKS); do \
	  $(BIN)/python -m benchmarks.$$section --output=results/benchmarks/$$section.md || exit 1; done

bench-cluster: $(READY)  ## As root: DEF, dense JAX and PyTorch (TORCH=python that has it) on a shaped network, ten minutes.
	$(BIN)/python -m benchmarks.cluster --output=results/benchmarks $(if $(TORCH),--torch_python=$(TORCH))

faults: $(READY)  ## Kill and resume runs 25 and 20 times, change the workers, and watch an hour's run: the long reliability tests.
	$(BIN)/python tests/faults/kills.py --output=results/reliability
	$(BIN)/python tests/faults/kills.py --output=results/reliability --kills=20 --processes=2
	$(BIN)/python tests/faults/workers.py --output=results/reliability
	$(BIN)/python tests/faults/soak.py --output=results/reliability

clean:  ## Remove the virtual environment and caches; runs stay.
	rm -rf $(VENV) .pytest_cache .ruff_cache .mypy_cache

$(READY): requirements.txt pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements.txt
	@touch $@
