# The commands of this project. `make demo` and `make test` work on a fresh checkout.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
# Tests that run side by side. Many wait for processes and servers, so two are right for two cores.
WORKERS ?= 2
PARALLEL := --numprocesses $(WORKERS) --dist worksteal
export PIP_DISABLE_PIP_VERSION_CHECK = 1

.PHONY: help install demo test test-hub1 lint format

help:
	@echo "make install the locked requirements and lorascope, into $(VENV)"
	@echo "make demo    install into $(VENV), then run the whole pipeline on the bundled hub"
	@echo "make test    install into $(VENV), then run the tests"
	@echo "make test-hub1  the Hub's tests with huggingface_hub 1.33"
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
	$(BIN)/pytest $(PARALLEL) -m "not serial"
	$(BIN)/pytest -m serial

# The oldest supported major version of the Hub's client, laid over the installed one: its HTTP library is another.
$(VENV)/.hub1: $(VENV)/.installed
	rm -rf $(VENV)/hub1
	$(BIN)/pip install --quiet --no-deps --target $(VENV)/hub1 huggingface_hub==1.33.0
	touch $@

test-hub1: $(VENV)/.hub1
	PYTHONPATH=$(VENV)/hub1 $(BIN)/python -c 'import huggingface_hub as h; assert h.__version__ == "1.33.0", h.__version__'
	PYTHONPATH=$(VENV)/hub1 $(BIN)/pytest $(PARALLEL) -m "not serial" tests/scanner/hub
	PYTHONPATH=$(VENV)/hub1 $(BIN)/pytest -m serial tests/scanner/hub

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/yamllint --strict deployments infra

format: install
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
