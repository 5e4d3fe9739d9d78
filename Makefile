# `make demo` and `make test` need Python 3 with pip and venv, and nothing before them.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
EDGES := tests/callbacks tests/diagnose tests/emulate tests/forensics tests/formats tests/plan \
	tests/ranks tests/recipes tests/recommend tests/record tests/replay tests/report tests/shadow \
	tests/stats tests/taps tests/trainers tests/updates tests/watching tests/test_cli.py \
	tests/test_cli_planning.py tests/test_imports.py
READY := $(VENV)/.ready

.PHONY: demo test lint docs oldest newest oldest-torch newest-torch deepspeed deepspeed-install clean
.SECONDARY:

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

# The edges of what is supported: the lowest versions that pyproject.toml admits, and the newest
# torch with the newest of all else. Every folder that torch and Lightning matter to, without the
# slow tests. Both torches are CUDA builds of 6 GB; there is no smaller one on the usual index.
oldest newest: %: .venv-%/.ready
	OMP_NUM_THREADS=1 $(<D)/bin/pytest -n auto --dist loadscope -m 'not slow' $(EDGES)

# What a machine may lack the room or the network for; CI goes on without it.
oldest-torch newest-torch: %-torch: .venv-%/.torch

.venv-%/.torch: constraints-%.txt
	@test $$(df -Pm . | awk 'NR == 2 { print $$4 }') -gt 10000 \
		|| { echo "the $* torch needs 10 GB of disk"; exit 1; }
	$(PYTHON) -m venv --clear $(@D)
	$(@D)/bin/python -m pip install --quiet $$(grep ^torch== $<)
	touch $@

.venv-%/.ready: .venv-%/.torch pyproject.toml
	$(@D)/bin/python -m pip install --quiet --constraint constraints-$*.txt --editable '.[edges]'
	touch $@

# DeepSpeed is built against the torch that is there, and trains on CPUs too.
deepspeed: .venv-deepspeed/.ready
	OMP_NUM_THREADS=1 $(<D)/bin/pytest -n auto tests/trainers/test_deepspeed.py

deepspeed-install: .venv-deepspeed/.ready

.venv-deepspeed/.ready: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(@D)
	$(@D)/bin/python -m pip install --quiet --constraint constraints.txt --editable '.[edges]' \
		setuptools wheel
	DS_BUILD_OPS=0 $(@D)/bin/python -m pip install --quiet --no-build-isolation \
		--constraint constraints.txt 'deepspeed>=0.16,<1'
	touch $@

clean:
	rm -rf $(VENV) .venv-oldest .venv-newest .venv-deepspeed build dist site *.egg-info demo-run \
		.mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache

$(READY): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev,docs]'
	touch $(READY)
