# `make run` and `make test` set up all they need, once, in .venv.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
ARGS ?=

.DEFAULT_GOAL := help

help: ## what there is to make
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /\t/' | expand -t 14

$(VENV)/.ready: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev]'
	@touch $@

setup: $(VENV)/.ready ## the virtual environment, with pinned packages

run: setup ## a run; ARGS="GROUP=OPTION GROUP.KEY=VALUE ..." passes overrides
	@$(BIN)/python -m klotski $(ARGS)

monitor: setup ## watch the newest run, or ARGS=RUN
	@$(BIN)/klotski-monitor $(ARGS)

test: lint ## everything that has to hold
	$(BIN)/pytest -n 2 --dist loadscope --no-loadscope-reorder

test-examples: setup ## new random examples for the property tests, 20 times the number of `make test` (EXAMPLES=20)
	EXAMPLES=$(or $(EXAMPLES),20) $(BIN)/pytest -n 2 -m 'hypothesis and not slow'

test-slow: setup ## random schedules over three tiers, runs ended at random moments, the paper's tables predicted; an hour
	EXAMPLES=1 $(BIN)/pytest -m slow -n 2

test-oldest: $(VENV)-oldest/.ready ## all tests on the oldest torch and transformers that are allowed; downloads gigabytes of CUDA
	$(VENV)-oldest/bin/pytest -n 2 --dist loadscope --no-loadscope-reorder

test-gpu: setup ## what only a GPU can show: parity, memory, races, the waits of a sweep; skipped without CUDA
	$(BIN)/pytest -m gpu tests/gpu

bench-models: $(VENV)/.bench ## random checkpoints of twice 3 GiB under outputs/, to measure on
	$(BIN)/python -m tests.benchmarks.models

bench: $(VENV)/.bench ## all measurements, ours and Accelerate's, within 3 GiB; hours, root, and fio
	$(BIN)/python -m tests.benchmarks.bench $(ARGS)

bench-ablation: $(VENV)/.bench ## what each idea adds, and the rivals' strategies; two hours, and root
	$(BIN)/python -m tests.benchmarks.ablation $(ARGS)

bench-planner: $(VENV)/.bench ## what the planner chooses against a grid of choices; hours, and root
	$(BIN)/python -m tests.benchmarks.planner $(ARGS)

bench-prediction: $(VENV)/.bench ## what the simulator says of a run, and what the run did; an hour, and root
	$(BIN)/python -m tests.benchmarks.prediction $(ARGS)

bench-gpu: $(VENV)/.bench ## what a GPU reaches, ours and Accelerate's; nine minutes, and 100 GB of CPU memory
	$(BIN)/python -m tests.benchmarks.gpu $(ARGS)

bench-monitor: setup ## what klotski-monitor costs the run that it looks at; a quarter of an hour
	$(BIN)/python -m tests.benchmarks.monitor $(ARGS)

shapes: setup ## random checkpoints of five architectures under outputs/, 0.8 GB, for experiment=architectures
	$(BIN)/python -m scripts.random_checkpoint

outlines: setup ## what predictions know of the models in the package, written anew from their configs
	$(BIN)/python -m scripts.outlines

$(VENV)-oldest/.ready: pyproject.toml
	$(PYTHON) -m venv $(VENV)-oldest
	$(VENV)-oldest/bin/pip install --quiet --disable-pip-version-check 'torch==2.11.*' 'transformers==5.17.*' --editable '.[dev]'
	@touch $@

$(VENV)/.bench: $(VENV)/.ready
	$(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev,bench]'
	@touch $@

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: setup ## lay the code out as the linter wants it
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean: ## remove what was built here; runs in outputs/ stay
	rm -rf $(VENV) $(VENV)-oldest dist build .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache

.PHONY: help setup run monitor test test-examples test-slow test-oldest test-gpu bench-models bench bench-ablation bench-planner bench-prediction bench-gpu bench-monitor shapes outlines lint format clean
