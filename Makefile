# make <target>: sets up .venv from the project's own files (once), then runs `snakemake --cores N <target>`
# with as many cores as there are; each job takes one, and the numbers do not depend on how many run side by side.
#   make table4       make table4 CORES=1       make table4 CONFIG="scale=smoke"       make table4 ARGS=--verbose
# make setup does the set-up alone; make test sets up and runs the tests, on all cores (TEST_WORKERS=N).
PYTHON ?= python3
CORES ?= $(shell nproc 2>/dev/null || echo 1)
TEST_WORKERS ?= $(CORES)
CONFIG ?=
ARGS ?=
# The build of torch. A plain CPU or CUDA build of this version serves; another version: TORCH="torch==2.12.*"
TORCH ?= torch==2.13.0
VENV := .venv
RUN := . $(VENV)/bin/activate &&
READY := $(VENV)/.ready

.PHONY: help setup test lint
.DEFAULT_GOAL := help

help:
	@sed -n '1,4p' Makefile

setup: $(READY)

# torch first, and by its exact version: a range would take the registry's newest build.
$(READY): pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "ether needs Python 3.11 or newer; this is %s. Try: make PYTHON=python3.11 ..." % sys.version.split()[0])'
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/python -m pip install --quiet --upgrade pip
	$(VENV)/bin/python -m pip install --quiet "$(TORCH)"
	$(VENV)/bin/python -m pip install --quiet --editable ".[suite,test]"
	@touch $(READY)

test: $(READY)
	$(RUN) python -m pytest -n $(TEST_WORKERS) --dist worksteal

lint: $(READY)
	$(RUN) ruff check . && ruff format --check . && mypy

# Everything else is a target of the workflow.
%: $(READY)
	$(RUN) snakemake --cores $(CORES) $@ $(ARGS) $(if $(CONFIG),--config $(CONFIG))

Makefile pyproject.toml: ;
