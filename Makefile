# The commands of this project. `make demo` and `make test` work on a fresh checkout.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
export PIP_DISABLE_PIP_VERSION_CHECK = 1

.PHONY: help install demo test lint format

help:
	@echo "make demo    install into $(VENV), then run the whole pipeline on the bundled hub"
	@echo "make test    install into $(VENV), then run the tests"
	@echo "make lint    ruff, import bans, mypy, yamllint"
	@echo "make format  let ruff rewrite the sources"

$(VENV)/.installed: requirements.lock pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --requirement requirements.lock
	$(BIN)/pip install --quiet --no-deps --no-build-isolation --editable .
	touch $@

install: $(VENV)/.installed

demo: install
	$(BIN)/lorascope demo

test: install
	$(BIN)/pytest

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/yamllint --strict deployments infra

format: install
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
