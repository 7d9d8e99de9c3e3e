# make run         run the whole pipeline on the embedded sample, offline
# make ui          serve the Dagster UI
# make test        run the tests: at most five minutes on two cores
# make test-all    also run whole pipelines, launched processes and fault injection
# make node        install the node packages that read exported files in the slow tests
# make test-ui     run the tests that drive a real browser
# make test-faults inject faults for about an hour: hundreds of kills, thousands of damaged files
# make lint        check style, types, imports and known vulnerabilities
# make docs        build the documentation into site/
# make bench       run the benchmarks
PYTHON ?= python3
ARTIFACTS ?= artifacts
VENV := .venv
BIN := $(VENV)/bin
PORT ?= 3000

.DEFAULT_GOAL := help
.PHONY: help run test test-all test-faults test-ui node browser postgres lint format bench ui docs clean

help:
	@sed -n 's/^# \(make .*\)/\1/p' Makefile

$(VENV)/.installed: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e .
	touch $@

$(VENV)/.installed-dev: $(VENV)/.installed
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	touch $@

run: $(VENV)/.installed
	$(BIN)/ivr --artifacts-dir $(ARTIFACTS) run --sample

ui: $(VENV)/.installed
	$(BIN)/ivr --artifacts-dir $(ARTIFACTS) ui --port $(PORT)

PYTEST := HF_HUB_OFFLINE=1 OMP_NUM_THREADS=1 $(BIN)/python -m pytest

test: $(VENV)/.installed-dev
	$(PYTEST) -m "not browser and not slow" -n 2 --no-loadscope-reorder

NODE := ivr_dagster_tests/node

# a prebuilt llama.cpp and the tokenizers of transformers.js; without node and npm, their tests are skipped
$(NODE)/node_modules/.package-lock.json: $(NODE)/package.json $(NODE)/package-lock.json
	@if command -v npm >/dev/null; then cd $(NODE) && npm ci --ignore-scripts --no-audit --no-fund && touch node_modules/.package-lock.json; \
	else echo "npm is not installed: tests that read exported files in node are skipped"; fi

node: $(NODE)/node_modules/.package-lock.json

test-all: PYTEST += --hypothesis-profile=thorough
test-all: node test
	$(PYTEST) -m "slow and not browser" -n 2 --no-loadscope-reorder

test-faults: $(VENV)/.installed-dev
	FAULTS_FUZZ_CASES=10000 FAULTS_KILLS=200 FAULTS_SEED=$$(date +%s) $(PYTEST) ivr_dagster_tests/faults -s

# Debian's chromium where root can install it, else playwright's own browser
browser: $(VENV)/.installed-dev
	@command -v chromium chromium-browser google-chrome >/dev/null || \
	if [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then apt-get update -qq && apt-get install -y -qq chromium; \
	else $(BIN)/python -m playwright install chromium; fi

# a PostgreSQL server for the tests; without one, its tests are skipped
postgres:
	@command -v initdb >/dev/null || ls /usr/lib/postgresql/*/bin/initdb >/dev/null 2>&1 || \
	if [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then apt-get update -qq && apt-get install -y -qq postgresql; fi

test-ui: browser postgres
	HF_HUB_OFFLINE=1 $(BIN)/python -m pytest -m "browser and not slow"

lint: $(VENV)/.installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python .ci/audit.py

format: $(VENV)/.installed-dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

$(VENV)/.installed-docs: $(VENV)/.installed
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[docs]'
	touch $@

# the site, in site/; warnings are errors
docs: $(VENV)/.installed-docs
	$(BIN)/python docs/generate_reference.py
	PYTHONPATH=docs $(BIN)/zensical build --clean --strict

bench: $(VENV)/.installed-dev
	$(BIN)/python -m benchmarks

clean:
	rm -rf $(VENV) artifacts/* .mypy_cache .ruff_cache .pytest_cache
