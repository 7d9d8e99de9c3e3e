# make run    the whole pipeline on the embedded sample, offline but for the package registry
# make test   the tests; make test-ui those that drive a real browser; make lint; make bench; make ui
# make test-slow   whole runs of the pipeline that make test leaves out: some minutes
# make test-faults   runs killed hundreds of times, starved, fed with damaged files: about an hour
PYTHON ?= python3
ARTIFACTS ?= artifacts
VENV := .venv
BIN := $(VENV)/bin
PORT ?= 3000

.DEFAULT_GOAL := help
.PHONY: help run test test-slow test-faults test-ui browser postgres lint format bench ui docs clean

help:
	@sed -n 's/^# //p' Makefile

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

test: $(VENV)/.installed-dev
	HF_HUB_OFFLINE=1 OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m "not browser and not slow" -n 2 --dist loadfile --no-loadscope-reorder

test-slow: $(VENV)/.installed-dev
	HF_HUB_OFFLINE=1 OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m "slow and not browser" -n 2 --dist load \
	--ignore ivr_dagster_tests/faults

test-faults: $(VENV)/.installed-dev
	HF_HUB_OFFLINE=1 OMP_NUM_THREADS=1 IVR_FUZZ_CASES=10000 IVR_KILLS=200 \
	IVR_FAULTS_SEED=$$(date +%s) $(BIN)/python -m pytest ivr_dagster_tests/faults -s

# Debian's chromium where we may install it, else the browser that playwright brings
browser: $(VENV)/.installed-dev
	@command -v chromium chromium-browser google-chrome >/dev/null || \
	if [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then apt-get update -qq && apt-get install -y -qq chromium; \
	else $(BIN)/python -m playwright install chromium; fi

# a PostgreSQL of the tests' own; without one its tests are skipped
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
