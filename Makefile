# `make demo` and `make test` need Python 3 with pip and venv, and nothing before them.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
OLDEST := tests/record tests/callbacks tests/taps tests/updates tests/watching tests/report \
	tests/diagnose tests/test_cli.py tests/test_imports.py
READY := $(VENV)/.ready

.PHONY: demo test lint docs oldest clean

demo: $(READY)
	$(BIN)/numwatch demo

# One thread a worker: small operations on two busy threads wait for each other most of the time.
# One worker a file: what its fixtures train is trained once.
test: lint
	OMP_NUM_THREADS=1 $(BIN)/pytest -n auto --dist loadscope

lint: $(READY)
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/lint-imports --cache-dir .import_linter_cache

# Warnings are errors: a page that no list names, a link that leads nowhere, a name that is gone.
docs: $(READY)
	$(BIN)/python docs/write_commands.py
	$(BIN)/python -m sphinx -W --keep-going -q -b html docs site

# A part of the tests with the lowest versions that pyproject.toml admits. Not run by CI: the torch
# among them has no small build on the usual index, and takes gigabytes.
oldest:
	$(PYTHON) -m venv .venv-oldest
	.venv-oldest/bin/python -m pip install --quiet --constraint constraints-oldest.txt \
		--editable '.[oldest]'
	OMP_NUM_THREADS=1 .venv-oldest/bin/pytest -m 'not slow' $(OLDEST)

clean:
	rm -rf $(VENV) .venv-oldest build dist site *.egg-info demo-run .mypy_cache .ruff_cache .pytest_cache \
		.hypothesis .import_linter_cache

$(READY): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev,docs]'
	touch $(READY)
