# Two commands for a fresh machine with Python >= 3.11, gcc and make:
#   make run    create .venv, install, generate text with the packaged model
#   make test   create .venv, install with the test tools, run every CPU test and the linters

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.sparkwell
JOBS ?= 2

# A plain `torch` brings gigabytes of CUDA libraries; a machine without a driver has no use for them.
TORCH := $(if $(shell command -v nvidia-smi 2>/dev/null),torch,torch==2.13.0)

.PHONY: run test lint unit kernels mutants clean

run: $(STAMP)-run
	$(BIN)/sparkwell demo

test: $(STAMP)-dev
	$(MAKE) lint unit kernels

lint: $(STAMP)-dev
	$(BIN)/ruff format --check src tests examples
	$(BIN)/ruff check src tests examples
	$(BIN)/mypy

unit: $(STAMP)-dev
	$(BIN)/python -m pytest -n $(JOBS) --ignore=tests/kernels

# Kernels under Triton's CPU interpreter, which a process chooses before it imports them.
kernels: $(STAMP)-dev
	TRITON_INTERPRET=1 $(BIN)/python -m pytest -n $(JOBS) tests/kernels

# One-line bugs in copies of the source, which the kernels' tests must find.  Slow; not in `test`.
mutants: $(STAMP)-dev
	$(BIN)/python tests/mutants/run.py

$(BIN)/python:
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "sparkwell needs Python 3.11 or newer; say make PYTHON=python3.12, say" >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)

$(STAMP)-torch: $(BIN)/python
	$(BIN)/python -m pip install --quiet "$(TORCH)"
	touch $@

$(STAMP)-run: $(STAMP)-torch pyproject.toml
	$(BIN)/python -m pip install --quiet --editable ".[serve]"
	touch $@

$(STAMP)-dev: $(STAMP)-torch pyproject.toml
	$(BIN)/python -m pip install --quiet --editable ".[dev]"
	touch $@

clean:
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache .hypothesis
