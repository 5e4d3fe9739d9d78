# `make demo` and `make test` need Python 3 with pip and venv, and nothing before them.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready

.PHONY: demo test lint clean

demo: $(READY)
	$(BIN)/numwatch demo

# One thread a worker: small operations on two busy threads wait for each other most of the time.
test: lint
	OMP_NUM_THREADS=1 $(BIN)/pytest -n auto

lint: $(READY)
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/lint-imports --cache-dir .import_linter_cache

clean:
	rm -rf $(VENV) build dist *.egg-info demo-run .mypy_cache .ruff_cache .pytest_cache \
		.hypothesis .import_linter_cache

$(READY): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	touch $(READY)
