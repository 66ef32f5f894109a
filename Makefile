# `make demo`, `make test`: each sets up all it needs first. Wanted on the machine: Python 3.11 to 3.13 with venv, and make.
#
#   PYTHON=python3.12   another interpreter
#   TORCH_INDEX=URL     another build of torch, e.g. https://download.pytorch.org/whl/cpu (read when .venv is first made)
#   JOBS=8              test processes

PYTHON ?= python3
TORCH_INDEX ?=
JOBS ?= 2

BIN := .venv/bin
INSTALLED := .venv/installed
LINK := .link/forethought
PYTEST = $(BIN)/pytest -n $(JOBS) --dist worksteal

.DEFAULT_GOAL := help
.PHONY: help demo test test-slow lint setup clean

help:
	@echo "make demo       solve a few problems with the built-in model, live"
	@echo "make test       lint, type-check and the quick tests (under 5 minutes)"
	@echo "make test-slow  the slow tests"
	@echo "make lint       lint and type-check"
	@echo "make setup      .venv with everything installed"
	@echo "make clean      remove .venv and caches"

demo: setup
	$(BIN)/forethought demo

test: lint
	$(PYTEST) -m "not slow" --timeout 120

test-slow: setup
	$(PYTEST) -m slow --timeout 600

lint: setup
	$(BIN)/ruff check .
	MYPYPATH=.link $(BIN)/mypy -p forethought

setup: $(INSTALLED) $(LINK)

# Torch goes first and alone, so that TORCH_INDEX speaks for torch only: such an index carries few of the other
# packages. What torch itself needs then comes with the rest.
$(INSTALLED): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(None if (3, 11) <= sys.version_info < (3, 14) else "Python 3.11 to 3.13 is needed: name one with PYTHON=")'
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --no-deps -c constraints.txt $(if $(TORCH_INDEX),--index-url $(TORCH_INDEX)) torch
	$(BIN)/pip install -c constraints.txt -e ".[test]"
	@touch $@

# The repository root seen as a folder named `forethought`: for tools that follow files rather than installations.
$(LINK):
	@mkdir -p .link
	ln -s .. $@

clean:
	rm -rf .venv .link .mypy_cache .pytest_cache .ruff_cache .hypothesis build dist *.egg-info
