# Every target makes .venv where it is missing and installs what it needs; a second call installs nothing.
#   make demo                      the whole of goodnet on its own small data set, report in goodnet-demo/
#   make check test                what CI runs
#   make demo PYTHON=python3.12 PIP_ARGS="--index-url https://download.pytorch.org/whl/cpu --extra-index-url https://pypi.org/simple"

PYTHON ?= python3
TORCH ?= torch==2.13.0
PIP_ARGS ?=

BIN := .venv/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check install $(PIP_ARGS)
PEERS_PIP := .venv-peers/bin/python -m pip --disable-pip-version-check install $(PIP_ARGS)

.PHONY: help demo test test-slow check bench docs venv venv-ci peers locked lock clean
.DELETE_ON_ERROR:

help:
	@echo "make demo | test | test-slow | check | bench | docs | venv | venv-ci | peers | locked | lock | clean   (see CONTRIBUTING.md)"

demo: .venv/.goodnet
	$(BIN)/goodnet demo --out goodnet-demo --overwrite

# three processes of one thread each for two cores: most tests are too small to share, and some wait for a child; a file
# is one process's, so that what its tests share is made once
test: .venv/.dev
	OMP_NUM_THREADS=1 $(BIN)/pytest -n 3 --dist loadfile

test-slow: .venv/.dev
	OMP_NUM_THREADS=1 $(BIN)/pytest -n 3 -m slow

check: .venv/.dev
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/lint-imports

bench: .venv/.dev
	$(BIN)/goodnet bench scan

# The documentation as a site, in site/; a warning fails it. Opens from the folder; search needs it served:
# .venv/bin/mkdocs serve
docs: .venv/.docs
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

venv: .venv/.dev

# and what some tests want beside it: the documentation's tools, an MLflow server
venv-ci: .venv/.ci

# .venv-peers, an environment of its own: other programs of the field, for `goodnet bench peers`. Python 3.11 or later.
peers: .venv-peers/.made

.venv-peers/.made: bench/peers.txt bench/peers-alone.txt pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "the other programs need Python 3.11 or later; say which: make peers PYTHON=python3.12" >&2; exit 1; }
	$(PYTHON) -m venv .venv-peers
	$(PEERS_PIP) "$(TORCH)"
	$(PEERS_PIP) --quiet -e . -r bench/peers.txt
	$(PEERS_PIP) --quiet --no-deps -r bench/peers-alone.txt
	@touch $@

# .venv with exactly the versions of requirements.lock, each checked by its hash. torch is pinned by its version alone: its
# hash hangs on where it comes from (PyPI, or torch's own CPU and CUDA indexes).
locked: .venv/.locked

.venv/.locked: .venv/.torch requirements.lock
	$(PIP) --require-hashes --no-deps -r requirements.lock
	$(PIP) --quiet --no-deps -e .
	@touch .venv/.goodnet .venv/.dev $@

# Renews requirements.lock: every version anew, for all systems and Pythons; needs the network.
lock: .venv/.python
	$(PIP) --quiet uv
	$(BIN)/uv pip compile pyproject.toml --extra dev --universal --python-version 3.10 --generate-hashes --upgrade \
	  --no-emit-package torch --custom-compile-command "make lock" --output-file requirements.lock

# What was made and can be made again; `rm -rf .venv .venv-peers` to start over with the environments too.
clean:
	rm -rf goodnet-demo site build dist .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis
	find src tests bench -type d -name __pycache__ -prune -exec rm -rf {} +

.venv/.python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || \
	  { echo "goodnet needs Python 3.10 or later; say which: make PYTHON=python3.12 ..." >&2; exit 1; }
	$(PYTHON) -m venv .venv
	@touch $@

# torch first and pinned: it is the one large download, and it decides the figures that the benchmarks state.
.venv/.torch: .venv/.python
	$(PIP) "$(TORCH)"
	@touch $@

.venv/.goodnet: .venv/.torch pyproject.toml
	$(PIP) --quiet -e .
	@touch $@

.venv/.dev: .venv/.goodnet
	$(PIP) --quiet -e ".[dev]"
	@touch $@

.venv/.docs: .venv/.goodnet
	$(PIP) --quiet -e ".[docs]"
	@touch $@

# Not `-e .`, which would take goodnet away for a moment: CI runs its checks meanwhile. It is there, so pip adds the extras.
.venv/.ci: .venv/.dev
	$(PIP) --quiet "goodnet[docs,mlflow-test,notebooks,ray]"
	@touch $@
