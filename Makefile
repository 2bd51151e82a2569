# make demo    set up, run the urea campaign, say where its report is
# make test    set up, run the tests
# make test-codes    set up, run the tests that need installed electronic-structure programs
# make test-slurm    set up, run the tests on a real Slurm, which they start
# Variables:   PYTHON=python3.12   VENV=.venv   JOBS=2 (tests side by side)
#              TORCH_SPEC='torch==2.9.1+cu128' (remembered in VENV; with PIP_EXTRA_INDEX_URL=… where pip finds it)
SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DELETE_ON_ERROR:
.DEFAULT_GOAL := help

PYTHON ?= python3
VENV ?= .venv
TORCH_SPEC ?=
PYTEST_ARGS ?=
JOBS ?= 2

STAMP := $(VENV)/.installed
UNFINISHED := $(VENV)/.installing
TORCH := $(VENV)/.torch-spec
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check
DEMO := runs/urea

.PHONY: help setup demo demo-target-only test test-codes test-slurm lint docs clean FORCE

help:
	@echo "make demo              set up and run the urea campaign ($(DEMO)/campaign.yaml)"
	@echo "make demo-target-only  the same campaign without its cheap level, and a report of both"
	@echo "make test              set up and run the tests"
	@echo "make test-slurm        the tests that start a real Slurm on this machine"
	@echo "make test-codes        set up and run the tests of installed programs (pw.x, GPAW, ...): minutes"
	@echo "make lint              ruff and mypy"
	@echo "make docs              write docs/commands.md anew"
	@echo "make clean             remove $(VENV) and caches; campaigns stay"

setup: $(STAMP)

# The build of torch that was asked for; without TORCH_SPEC the last one is kept.
$(TORCH): FORCE
	@mkdir -p $(VENV)
	@if [ ! -e $@ ] || { [ -n "$(TORCH_SPEC)" ] && [ "$$(cat $@)" != "$(TORCH_SPEC)" ]; }; then \
	  printf '%s\n' "$(TORCH_SPEC)" > $@; fi

$(STAMP): pyproject.toml constraints.txt $(TORCH)
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || { \
	  echo "error: Python 3.11 or newer is needed, and $(PYTHON) is" \
	    "$$($(PYTHON) -V 2>/dev/null || echo missing); try: make PYTHON=python3.12 $(MAKECMDGOALS)" >&2; exit 2; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || { \
	  echo "error: $(PYTHON) cannot make virtual environments;" \
	    "on Debian and Ubuntu: apt-get install python3-venv" >&2; exit 2; }
	@spec="$$(cat $(TORCH))"; \
	if [ -e $(UNFINISHED) ]; then \
	  echo "$(VENV) was left unfinished: making it anew"; \
	  $(PYTHON) -m venv --clear $(VENV); printf '%s\n' "$$spec" > $(TORCH); \
	elif ! $(BIN)/python -m pip --version >/dev/null 2>&1; then \
	  echo "making $(VENV)"; \
	  $(PYTHON) -m venv --clear $(VENV); printf '%s\n' "$$spec" > $(TORCH); \
	fi
	@touch $(UNFINISHED)
	@spec="$$(cat $(TORCH))"; \
	echo "installing torch$${spec:+ ($$spec)}: minutes, the largest part of the download"; \
	if [ -n "$$spec" ]; then \
	  $(PIP) install -qq "$$spec"; \
	  grep -v '^torch[=<>~! @]' constraints.txt > $(VENV)/constraints.txt || true; \
	else \
	  cp constraints.txt $(VENV)/constraints.txt; \
	  $(PIP) install -qq -c constraints.txt torch; \
	fi
	@$(BIN)/python -c 'from importlib.metadata import version; print("torch==" + version("torch"))' \
	  >> $(VENV)/constraints.txt
	@echo "installing alchemy and what it needs"
	@$(PIP) install -qq -c $(VENV)/constraints.txt -e '.[demo,dev,sella]'
	@$(BIN)/python -m tace.native
	@rm -f $(UNFINISHED)
	@touch $@

demo: $(STAMP)
	@$(BIN)/alchemy run $(DEMO)/campaign.yaml

demo-target-only: $(STAMP)
	@$(BIN)/alchemy run $(DEMO)/campaign.yaml --only pbe
	@if [ -e $(DEMO)/urea/campaign.json ]; then \
	  $(BIN)/alchemy report $(DEMO)/urea --beside $(DEMO)/urea-only-pbe \
	    --output $(DEMO)/comparison.html; \
	else echo "run 'make demo' too, then this again writes a report that compares both"; fi

test: $(STAMP)
	@$(BIN)/python -m pytest -n $(JOBS) --dist loadfile $(PYTEST_ARGS)

test-slurm: $(STAMP)
	@$(BIN)/python -m pytest -m slurm $(PYTEST_ARGS)

test-codes: $(STAMP)
	@$(BIN)/python -m pytest -m codes $(PYTEST_ARGS)

lint: $(STAMP)
	@$(BIN)/ruff check .
	@$(BIN)/mypy

docs: $(STAMP)
	@$(BIN)/python -m alchemy.cli_docs > docs/.commands.md.new
	@mv docs/.commands.md.new docs/commands.md

clean:
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache .hypothesis build dist
	find . -path ./.git -prune -o -type d -name __pycache__ -prune -exec rm -rf {} +
