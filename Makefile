# Everything a newcomer needs: `make demo` and `make test`, from python3 and make alone.
SHELL := /bin/sh
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.ready

.PHONY: help setup demo up test check bench lock clean

help: ## what there is
	@grep -E '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 10

setup: $(STAMP) ## install into .venv; leaves .venv/bin/paddock

$(STAMP): pyproject.toml requirements.lock
	@$(PYTHON) -c 'import sys; sys.exit("paddock needs Python 3.11 or newer, this is %s" % sys.version.split()[0] if sys.version_info < (3, 11) else 0)'
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV) || { rm -rf $(VENV); echo "python3 cannot make a virtual environment; install the package python3-venv" >&2; exit 1; }
	@test -x $(BIN)/uv || $(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes --no-deps -r requirements-uv.lock
	@$(BIN)/uv pip sync --quiet --compile-bytecode --python $(BIN)/python --require-hashes requirements.lock || { \
		echo "uv could not install; trying pip, which may be configured otherwise"; \
		$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes --no-deps -r requirements.lock; }
	@$(BIN)/uv pip install --quiet --python $(BIN)/python --no-deps --no-build-isolation -e .
	@touch $(STAMP)

demo: setup ## start everything, run the main job, serve until Ctrl-C (ARGS=--once ends after the job)
	@$(BIN)/paddock demo $(ARGS)

up: setup ## start everything and serve
	@$(BIN)/paddock up $(ARGS)

test: setup ## every test, on the real parts
	@$(BIN)/python -m pytest $(ARGS)

check: setup ## format, lint, types, imports, lock file, then the tests
	@$(BIN)/ruff format --check .
	@$(BIN)/ruff check .
	@$(BIN)/mypy
	@$(BIN)/lint-imports
	@$(BIN)/python -m scripts.lockcheck
	@$(BIN)/python -m pytest $(ARGS)

bench: setup ## the benchmarks, as ratios measured in one run
	@$(BIN)/python -m scripts.bench $(ARGS)

lock: setup ## compile the lock files anew from pyproject.toml
	@$(BIN)/uv pip compile --quiet --universal --generate-hashes --no-emit-index-url --no-emit-find-links --no-header --extra embedded --extra model --extra dev pyproject.toml -o requirements.lock
	@$(BIN)/uv pip compile --quiet --universal --generate-hashes --no-emit-index-url --no-emit-find-links --no-header pyproject.toml -o requirements-runtime.lock
	@grep -A40 '^uv==' requirements.lock | awk 'NR==1 || /--hash/ {print; next} {exit}' > requirements-uv.lock

clean: ## remove the environment and the data of the demo
	rm -rf $(VENV) .paddock
