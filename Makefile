# The main commands are `make train` and `make test`. Each sets everything up itself, given python3 and make.

PYTHON ?= python3
VENV   ?= .venv
CONFIG  ?= digits
WORKDIR ?= runs/$(CONFIG)
ARGS   ?=
# The full suite keeps two cores busy; a selection through ARGS starts faster in one process.
PROCESSES ?= $(if $(ARGS),0,2)

EXPERIMENTS := $(foreach file,$(wildcard experiments/*.py),$(if $(wildcard results/$(basename $(notdir $(file)))/runs.jsonl),$(basename $(notdir $(file)))))
REPRODUCED ?= table1 table4 figure3 few_bits
BENCHMARKS ?= optimizer_stage loop leaves
THEORY ?= step_size distance averaging stability figure3 without_batchnorm rounding

# Versions that passed, or none for the newest; INSTALLER=pip does without uv.
CONSTRAINTS ?= constraints.txt
INSTALLER ?= uv

# Without bytecode, as images of containers ask for it, every process would compile JAX anew: 3 to 5 seconds of each.
unexport PYTHONDONTWRITEBYTECODE

BIN := $(VENV)/bin
# Stamps of what is installed: for training, for tests, for lint, for docs, or all of it.
TRAIN := $(VENV)/.train
TEST := $(VENV)/.test
LINT := $(VENV)/.lint
DOCS := $(VENV)/.docs
READY := $(VENV)/.ready
EXTRAS_train := training
EXTRAS_test := training,tensorflow,test
EXTRAS_lint := training,lint
EXTRAS_docs := training,docs
EXTRAS_ready := training,tensorflow,test,lint,docs

COMPILERS := .venv-accelerators

.PHONY: help train test test-slow lint docs docs-test theory tables reproduce reproduce-gpu reproduce-nodes notebooks bench bench-gpu bench-compiled bench-cluster bench-accuracy faults clean

help:  ## List the targets.
	@awk -F ':.*## ' '/^[a-z-]+:.*## /{printf "%-16s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

train: $(TRAIN)  ## Train DEF on digits with 16 fake devices, or CONFIG=language; pass flags as WORKDIR=runs/sgd ARGS="--config.method=sgd".
	$(BIN)/python train.py --config=configs/$(CONFIG).py --workdir=$(WORKDIR) $(ARGS)

test: $(TEST)  ## Run all but the slow tests; pass flags as ARGS="-k name".
	$(BIN)/python -m pytest -m "not slow" -n $(PROCESSES) $(ARGS)

test-slow: $(TEST)  ## Run the slow tests: complete runs, large networks, notebooks, a cluster.
	$(BIN)/python -m pytest -m slow -n $(PROCESSES) $(ARGS)

lint: $(LINT)  ## Check style and types.
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

docs: $(DOCS)  ## Build the documentation in docs/_build/html; warnings and broken links are errors.
	$(BIN)/python -m sphinx -W --keep-going -q -c docs . docs/_build/html
	@echo 'Open docs/_build/html/index.html'

docs-test: $(TEST)  ## Run the examples in docstrings.
	$(BIN)/python -m pytest --doctest-modules def_jax experiments/statistics.py experiments/theory/bounds.py configs

theory: $(READY)  ## Run the programs of experiments/theory: print tables, write plots to results/theory; takes minutes.
	@for program in $(THEORY); do echo "$$program"; $(BIN)/python experiments/theory/$$program.py || exit 1; done

tables: $(READY)  ## Regenerate the pages of experiments and benchmarks that keep records, and fill the numbers of pages.
	@for name in $(EXPERIMENTS); do $(BIN)/python -m experiments page $$name || exit 1; done
	$(BIN)/python -m benchmarks.pages
	$(BIN)/python -m experiments numbers

reproduce: $(READY)  ## Rerun the digits experiments from scratch in runs/ and report them; takes hours on 2 cores.
	@for name in $(REPRODUCED); do \
	  $(BIN)/python -m experiments run $$name --only=digits --results=runs && \
	  $(BIN)/python -m experiments page $$name --results=runs || exit 1; done

reproduce-gpu: $(READY)  ## VGG-16 on CIFAR-10, 200 epochs, on this machine's GPU, from nothing to the page in runs/, resumable; ONLY=toy takes minutes.
	$(if $(filter toy,$(ONLY)),,$(BIN)/python -m pip install --quiet -e '.[cuda]')
	JAX_PLATFORMS= $(BIN)/python -m experiments run gpu --only="$(or $(ONLY),CIFAR)" --results=runs
	$(BIN)/python -m experiments page gpu --results=runs

reproduce-nodes: $(READY)  ## A 128 M transformer on two nodes of eight GPUs, seconds to a loss; ARGS=--launch=... and others (benchmarks/two_nodes.py); ARGS=--toy takes minutes here.
	JAX_PLATFORMS= $(BIN)/python -m benchmarks.two_nodes $(ARGS)

notebooks: $(READY)  ## Run the notebooks and save their outputs.
	$(BIN)/jupyter execute --inplace notebooks/*.ipynb

bench: $(READY)  ## Benchmark the optimizer stage and the training loop; 10 minutes on 2 cores.
	@for section in $(BENCHMARKS); do \
	  $(BIN)/python -m benchmarks.$$section --output=results/benchmarks/$$section.md || exit 1; done

bench-gpu: $(READY)  ## Benchmark the optimizer stage on this machine's accelerator, with JAX for it installed; PLATFORM=tpu.
	JAX_PLATFORMS=$(or $(PLATFORM),cuda) $(BIN)/python -m benchmarks.optimizer_stage --output=results/benchmarks/gpu.md

bench-compiled: $(COMPILERS)/.ready  ## Compile whole steps for H100 and TPU, without either; resumable, half an hour of CPU.
	$(COMPILERS)/bin/python -m benchmarks.accelerators --output=results/benchmarks

bench-cluster: $(READY)  ## As root: DEF, dense JAX and PyTorch (TORCH=a Python that has it) on shaped networks; three quarters of an hour.
	$(BIN)/python -m benchmarks.cluster --rounds=4 --steps=3 --timeout=1500 $(if $(TORCH),--torch_python=$(TORCH))
	$(BIN)/python -m benchmarks.cluster --name=cluster_100mbit --bandwidth=100mbit --rounds=4 --steps=2 --timeout=1500 $(if $(TORCH),--torch_python=$(TORCH))
	$(BIN)/python -m benchmarks.sharded --output=results/benchmarks/sharded.md
	$(BIN)/python -m benchmarks.nodes --output=results/benchmarks

bench-accuracy: $(READY)  ## As root: accuracy against seconds on a slow network, with DATA=TFDS's folder; hours, resumable.
	$(BIN)/python -m benchmarks.time_to_accuracy --output=results/benchmarks $(if $(DATA),--data_dir=$(DATA))

faults: $(READY)  ## Long reliability tests: kill and resume runs 25 and 20 times, change the workers, let them die and return, watch an hour-long run.
	$(BIN)/python -m benchmarks.reliability.kills --output=results/reliability
	$(BIN)/python -m benchmarks.reliability.kills --output=results/reliability --kills=20 --processes=2
	$(BIN)/python -m benchmarks.reliability.workers --output=results/reliability
	$(BIN)/python -m benchmarks.reliability.strikes --output=results/reliability
	$(BIN)/python -m benchmarks.reliability.relay --output=results/reliability
	$(BIN)/python -m benchmarks.reliability.soak --output=results/reliability
	$(BIN)/python -m benchmarks.reliability.elastic --output=results/reliability --parts undisturbed elastic
	$(BIN)/python -m benchmarks.reliability.elastic --output=results/reliability --parts restart --minutes=20
	$(BIN)/python -m benchmarks.reliability.elastic --output=results/reliability --parts restart --minutes=5 --every=60

clean:  ## Remove virtual environments, caches and built pages; keep runs.
	rm -rf $(VENV) $(COMPILERS) docs/_build .pytest_cache .ruff_cache .mypy_cache

with := $(if $(CONSTRAINTS),-c $(CONSTRAINTS))
# uv comes from the package index and is several times as fast as pip, which installs where there is no uv.
$(BIN)/python:
	$(PYTHON) -m venv $(VENV)
	$(if $(filter uv,$(INSTALLER)),-$(BIN)/python -m pip install --quiet --disable-pip-version-check $(with) uv)

$(VENV)/.%: pyproject.toml $(CONSTRAINTS) | $(BIN)/python
	@if [ $(INSTALLER) = uv ] && [ -x $(BIN)/uv ]; then \
	  installer="$(BIN)/uv pip install --quiet --python $(BIN)/python"; \
	else \
	  installer="$(BIN)/python -m pip install --quiet --disable-pip-version-check"; \
	fi; \
	echo "$$installer $(with) -e .[$(EXTRAS_$*)]"; \
	$$installer $(with) -e '.[$(EXTRAS_$*)]'
	@touch $@

# XLA's compilers, of the version of the project's JAX: 1.2 GB, which `make test` does not need.
$(COMPILERS)/.ready: $(READY)
	$(PYTHON) -m venv $(COMPILERS)
	version=$$($(BIN)/python -c 'import jax; print(jax.__version__)') && \
	  $(COMPILERS)/bin/python -m pip install --quiet --disable-pip-version-check "jax[tpu]==$$version" \
	  "jax-cuda12-plugin==$$version" "jax-cuda12-pjrt==$$version" nvidia-cuda-nvcc-cu12 -e . chex flax pytest
	@touch $@
