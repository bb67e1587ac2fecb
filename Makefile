# One environment in .venv, made on first use and again when its pins change.
SHELL := /bin/bash
BIN := .venv/bin
REAL ?= $(abspath ../shared/data/real)
# The stack's tests watch programs die and come back: they have the machine to themselves.
# In the order of the folders: the long files of hostile and landmarks come early and the short ones of unit last,
# so that no core is idle at the end.
PARALLEL := $(BIN)/python -m pytest --ignore tests/stack -n 2 --dist loadfile --no-loadscope-reorder
export RETROLN_REAL_DATA ?= $(if $(wildcard $(REAL)),$(REAL))
export MLFLOW_DISABLE_TELEMETRY := true
export DO_NOT_TRACK := 1
export PREFECT_SERVER_ANALYTICS_ENABLED := false

.PHONY: demo test stand-ins stack stack-down setup check coverage lint bench bench-platform wheel clean help

help: ## this list
	@grep -E '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed 's/:.*## /\t/'

demo: setup ## the whole way on one machine: phantom CT to measured nodes on a page
	$(BIN)/python -m flows.demo --fresh

test: setup stand-ins ## every test
	$(PARALLEL)
	$(BIN)/python -m pytest tests/stack

stand-ins: setup ## small networks in TotalSegmentator's layout, trained on phantoms once (minutes, then cached)
	$(BIN)/python -W ignore -m infra.stand_in_weights

stack: setup ## every server and worker on this machine
	$(BIN)/python -W ignore -m infra.stack up

stack-down: setup ## stop what `make stack` started; data stays
	$(BIN)/python -m infra.stack down

setup: .venv/.ready ## the set-up alone

check: setup ## everything a change must pass
	$(MAKE) -j2 --output-sync=target lint stand-ins
	$(MAKE) test

coverage: setup stand-ins ## which lines the tests leave out; they take a third longer
	$(PARALLEL) --cov --cov-report=
	$(BIN)/python -m pytest tests/stack --cov --cov-append --cov-report=term:skip-covered

lint: setup
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	bash infra/lint.sh

bench: setup ## ratios against stated baselines
	$(BIN)/python -m benchmarks.crop
	$(BIN)/python -m benchmarks.crop_folder
	$(BIN)/python -W ignore -m benchmarks.ingest
	$(BIN)/python -W ignore -m benchmarks.landmarks --cases 4

bench-platform: setup ## the same for the platform: workers, orchestration, accounting, approval (40 minutes)
	for name in workers orchestration accounting approval; do $(BIN)/python -W ignore -m benchmarks.$$name || exit 1; done

wheel: setup ## build the wheel and use it in a clean environment
	bash infra/check_wheel.sh

clean: ## forget what ran here, keep the environment and the stack
	find var -mindepth 1 -maxdepth 1 ! -name stack -exec rm -rf {} + 2>/dev/null || true
	rm -rf build dist .pytest_cache .mypy_cache .ruff_cache .coverage

.venv/.ready: pyproject.toml constraints.txt infra/setup.sh
	bash infra/setup.sh
