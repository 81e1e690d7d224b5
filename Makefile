# make <target>: sets up .venv from the project's own files (once), then runs `snakemake --cores N <target>`
# with as many cores as there are; each job takes one, and the numbers do not depend on how many run side by side.
#   make table4       make table4 CORES=1       make table4 CONFIG="scale=smoke"       make table4 ARGS=--verbose
# Targets: table1 to table12, figure1 to figure12, parameters, figure_glue_rates, figure_instruct_rates, figure_vtab_rates;
# tables, figures, claims, all; foundation (worlds and models), site (pages), report (one file), publish (a copy).
# make setup does the set-up alone; make test sets up and runs the tests, on all cores (TEST_WORKERS=N).
# make setup LOCKED=1 installs the exact versions of requirements.lock; make lock makes that file; make audit checks it.
PYTHON ?= python3
CORES ?= $(shell nproc 2>/dev/null || echo 1)
TEST_WORKERS ?= $(CORES)
CONFIG ?=
ARGS ?=
LOCKED ?=
# The build of torch. A plain CPU or CUDA build of this version serves; another version: TORCH="torch==2.12.*"
TORCH ?= torch==2.13.0
VENV := .venv
RUN := . $(VENV)/bin/activate &&
READY := $(VENV)/.ready$(if $(LOCKED),-locked)

.PHONY: help setup test lint lock audit
.DEFAULT_GOAL := help

help:
	@sed -n '1,7p' Makefile

setup: $(READY)

# torch first, and by its exact version: a range would take the registry's newest build.
$(READY): pyproject.toml $(if $(LOCKED),requirements.lock)
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "ether needs Python 3.11 or newer; this is %s. Try: make PYTHON=python3.11 ..." % sys.version.split()[0])'
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/python -m pip install --quiet --upgrade pip
	$(VENV)/bin/python -m pip install --quiet "$(TORCH)"
	$(if $(LOCKED),$(VENV)/bin/python -m pip install --quiet --requirement requirements.lock)
	$(VENV)/bin/python -m pip install --quiet $(if $(LOCKED),--constraint requirements.lock )--editable ".[suite,test]"
	@touch $(VENV)/.ready $(READY)

test: $(READY)
	$(RUN) python -m pytest -n $(TEST_WORKERS) --dist worksteal

lint: $(READY)
	$(RUN) ruff check . && ruff format --check . && mypy

# uv and pip-audit are installed into the environment when they are first used; both need a network.
CUDA := cuda-bindings cuda-pathfinder cuda-toolkit nvidia-cublas nvidia-cuda-cccl nvidia-cuda-cupti nvidia-cuda-nvrtc \
	nvidia-cuda-runtime nvidia-cudnn-cu13 nvidia-cufft nvidia-cufile nvidia-curand nvidia-cusolver nvidia-cusparse \
	nvidia-cusparselt-cu13 nvidia-nccl-cu13 nvidia-nvjitlink nvidia-nvshmem-cu13 nvidia-nvtx

# Newer versions within the ranges of pyproject.toml, with the header of the file kept. The build of torch is $(TORCH).
lock: $(READY)
	$(RUN) python -m pip install --quiet uv && sed -n '/^#/p' requirements.lock > .requirements.partial \
	&& echo "$(TORCH)" | uv pip compile pyproject.toml --extra suite --extra test --universal --python-version 3.11.7 --quiet \
	--constraints - --upgrade --no-annotate --no-header --no-emit-index-url $(addprefix --no-emit-package ,$(CUDA)) \
	>> .requirements.partial && mv .requirements.partial requirements.lock

# Known vulnerabilities of the locked versions.
audit: $(READY)
	$(RUN) python -m pip install --quiet pip-audit && pip-audit --requirement requirements.lock --no-deps --disable-pip

# Everything else is a target of the workflow.
%: $(READY)
	$(RUN) snakemake --cores $(CORES) $@ $(ARGS) $(if $(CONFIG),--config $(CONFIG))

Makefile pyproject.toml requirements.lock: ;
