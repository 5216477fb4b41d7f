# Everything a newcomer needs: `make run` and `make test` do their own set-up, on a fresh machine, as root or not.
# Needs make and Python >= 3.11; choose another interpreter with `make PYTHON=/path/to/python ...`.

ifndef PYTHON
PYTHON := $(shell for p in python3.11 python3.12 python3.13 python3 python; do \
    $$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$p && break; done)
endif
ifeq ($(PYTHON),)
$(error Python 3.11 or newer is needed and none was found. Install it, or choose one: make PYTHON=/path/to/python3.11)
endif
VENV := .venv
BIN := $(if $(filter Windows_NT,$(OS)),$(VENV)/Scripts,$(VENV)/bin)
# Options for the app or for pytest: make run ARGS="--port 8000", make test ARGS="tests/test_cli.py -x".
ARGS ?=

.PHONY: help setup setup-dev run swarm test lint types check format clean

help: ## Show this list
	@grep -E '^[a-z-]+:.*## ' Makefile | sed -E 's/^([a-z-]+):.*## /  make \1\t/' | expand -t 18

setup: ## Install what running needs into .venv
	@$(PYTHON) .ci/setup.py run

setup-dev: ## Install what testing needs too, and a browser where possible
	@$(PYTHON) .ci/setup.py dev

run: setup ## Start the app with the demo model on http://127.0.0.1:7860
	@$(BIN)/python app.py $(ARGS)

swarm: setup ## Start a coordinator, three peers and the app: a swarm on this machine
	@$(BIN)/python -m examples.swarm $(ARGS)

test: setup-dev ## Run every test
	@$(BIN)/python -m pytest -n 2 --dist worksteal $(ARGS)

lint: setup-dev ## Check style and formatting
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .

types: setup-dev ## Check types
	@$(BIN)/mypy

check: lint types test ## All gates, as .ci/run does

format: setup-dev ## Format the code
	@$(BIN)/ruff check --fix .
	@$(BIN)/ruff format .

clean: ## Remove .venv and caches
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache .hypothesis
