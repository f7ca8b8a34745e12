# Everything runs in .venv, which the first target that needs it creates, and which is brought up
# to date only when pyproject.toml or constraints.txt is newer than the last installation.
# Plain enough for GNU make 3.81, which macOS still ships.

VENV  := .venv
BIN   := $(VENV)/bin
STAMP := $(VENV)/.installed
PEERS := $(VENV)/.installed-bench

# No build isolation: an isolated build would fetch its backend past constraints.txt.
PIP    := $(BIN)/python -m pip --disable-pip-version-check --quiet install -c constraints.txt
# What `make bench` runs; a file of benchmarks/ each.
BENCH  ?= training perceptron watching distributed
# A file to each process with one thread: threads of the processes would wait for each other.
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --dist loadfile

# A .venv without a working interpreter (never made, or its Python was removed) is made again.
BROKEN := $(shell test -x $(BIN)/python || echo force)

.DEFAULT_GOAL := help
.PHONY: bench check clean force help install study test

help: ## show this list
	@awk 'BEGIN {FS = ":.*## "} /^[a-z]+:.*## / {printf "  make %-8s %s\n", $$1, $$2}' Makefile
	@echo
	@echo '  study, test, check and bench pass ARGS on:  make study ARGS="--data mnist"'
	@echo '  BENCH names one benchmark:  make bench BENCH=training ARGS="--only PTT"'
	@echo '  PYTHON chooses the interpreter of a new .venv:  make install PYTHON=python3.13'

install: $(STAMP) ## create .venv with freenergy and the tools to work on it
	@:

study: $(STAMP) ## run the study; it prints the path of its report
	@$(BIN)/freenergy study $(ARGS)

test: $(STAMP) ## run the tests and doctests
	@$(PYTEST) $(ARGS)

check: $(STAMP) ## what a change must pass: lint, format, types, tests with coverage
	@$(BIN)/ruff check
	@$(BIN)/ruff format --check
	@$(BIN)/mypy
	@$(PYTEST) --cov $(ARGS)

bench: $(PEERS) ## measure training against other packages, and the instrument
	@for name in $(BENCH); do $(BIN)/python benchmarks/$$name.py $(ARGS) || exit 1; done

clean: ## remove what can be made again; .venv and runs/ stay
	@rm -rf build dist htmlcov .coverage .coverage.* coverage.xml src/*.egg-info
	@rm -rf .hypothesis .mypy_cache .pytest_cache .ruff_cache
	@find . -name .venv -prune -o -name __pycache__ -type d -prune -exec rm -rf {} +

$(STAMP): pyproject.toml constraints.txt $(BROKEN)
	@if [ ! -x $(BIN)/python ]; then \
	  for python in $(PYTHON) python3.13 python3.12 python3.11 python3; do \
	    "$$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null \
	      && break || python=; \
	  done; \
	  if [ -z "$$python" ]; then \
	    echo 'freenergy needs Python 3.11 or newer and found none;' \
	         'install one, or name it: make PYTHON=/path/to/python3' >&2; exit 1; \
	  fi; \
	  "$$python" -m venv --clear $(VENV) || { rm -rf $(VENV); exit 1; }; \
	fi
	@echo 'Installing freenergy into $(VENV); the first time takes some minutes.'
	@$(PIP) setuptools
	@$(PIP) --no-build-isolation -e '.[dev]'
	@touch $@

$(PEERS): $(STAMP)
	@echo 'Installing the packages that the benchmark compares with.'
	@$(PIP) --no-build-isolation -e '.[bench]'
	@touch $@
