# `make demo` and `make test` are all a newcomer needs; both install what they need on the first call.
PYTHON ?= python3
minor   = $(shell $(1) -c 'import sys; print("%d.%d" % sys.version_info[:2])')
# A Python that is named, and is another one than that of .venv, has an environment of its own, such as .venv-3.12.
ifeq ($(origin VENV),undefined)
VENV := .venv
ifneq ($(origin PYTHON),file)
ifneq ($(wildcard .venv/bin/python),)
ifneq ($(call minor,$(PYTHON)),$(call minor,.venv/bin/python))
VENV := .venv-$(call minor,$(PYTHON))
endif
endif
endif
endif
BIN    := $(VENV)/bin
READY  := $(VENV)/.ready

.PHONY: env demo demo-all test test-fast lowest newest release-check release-check-download check lint
.PHONY: format types docs site bench stacks pairs cuda cuda-sheet clean
.DEFAULT_GOAL := test

env: $(READY)

$(READY): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "modbalance needs Python 3.11 or newer; found %s. Try: make PYTHON=python3.11" % sys.version.split()[0])'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[recipes,dev,docs]'
	touch $@

demo: env
	$(BIN)/python recipes/cremad.py --methods none ogm_ge --output runs/demo --overwrite

demo-all: env
	$(BIN)/python recipes/cremad.py --methods all --output runs/demo-all --overwrite

# All tests, and the fast loop: without trainings of real recipes, further processes and searches by hypothesis.
test: env
	$(BIN)/python -m pytest -n auto --dist worksteal

test-fast: env
	$(BIN)/python -m pytest -n auto --dist worksteal -m "not slow"

# Both write their column of docs/versions.md.
lowest:
	$(PYTHON) tests/lowest_versions.py --report -n auto --dist worksteal

newest:
	$(PYTHON) tests/lowest_versions.py --newest --report -n auto --dist worksteal

# Builds wheel and sdist and tries both in a fresh environment, with the dependencies of .venv, or of that for PYTHON.
release-check: env
	$(BIN)/python tests/release_check.py

# The same with the newest dependencies from the package index; needs no .venv.
release-check-download:
	$(PYTHON) tests/release_check.py --download

check: lint types test

lint: env
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

format: env
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

types: env
	$(BIN)/mypy

docs: env
	$(BIN)/python docs/generate.py
	$(BIN)/python -m pytest tests/meta/test_docs.py

# Trains every method in every training stack, in two minutes; writes docs/stacks.md.
stacks: env
	PYTHONPATH=tests $(BIN)/python -m stacks

# Trains every pair of methods, in a minute; writes docs/pairs.md.
pairs: env
	PYTHONPATH=tests $(BIN)/python -m pairs

# The pages as a site, warnings as errors, into build/site. No network.
site: env
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --quiet

bench: env
	$(BIN)/python -m pytest -m bench -s --timeout 1200 tests/bench

cuda: env
	$(BIN)/python -m pytest -m cuda

# At most 8 minutes on a GPU; writes docs/benchmarks/cuda.md. Without one, shortened: writes runs/cuda-sheet.md.
cuda-sheet: env
	PYTHONPATH=tests:recipes $(BIN)/python -m bench.cuda_sheet

clean:
	rm -rf .venv .venv-* $(VENV) runs build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis
