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

test: lint ## everything that has to hold
	$(BIN)/pytest

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: setup ## lay the code out as the linter wants it
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean: ## remove what was built here; runs in outputs/ stay
	rm -rf $(VENV) dist build .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache

.PHONY: help setup run test lint format clean
