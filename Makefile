# Everything a newcomer needs: `make demo` and `make test`, from python3 and make alone.
SHELL := /bin/sh
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.ready
# What generates clients of the API, for the tests alone: it is large, and nothing that runs needs it.
CLIENTS := .clients
CLIENTS_STAMP := $(CLIENTS)/.ready

LOCK := requirements.lock
# Test processes, each with an installation of its own. A file is never split.
PROCESSES ?= 2
PARALLEL = -n $(PROCESSES) --dist loadfile --no-loadscope-reorder
# As `du -sm .venv` says of the whole.
SIZE := 1300 MB
# What a command says, without the list of everything it has installed, and its status.
shown = ( { $(1) 2>&1; echo $$? >$(VENV)/.status; } | grep -v '^ [-+~] '; exit "$$(cat $(VENV)/.status)" )

.PHONY: help setup packages demo up test test-fast check names bench lock clean

help: ## what there is
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 10

setup: $(STAMP) ## install into .venv; leaves .venv/bin/paddock

$(STAMP): pyproject.toml requirements.lock
	@$(MAKE) --no-print-directory packages
	@$(BIN)/uv pip install --quiet --python $(BIN)/python --no-deps --no-build-isolation -e .
	@touch $(STAMP)

packages: # what is locked, into .venv; a part of setup
	@$(PYTHON) -c 'import sys; sys.exit("paddock needs Python 3.11 or newer, this is %s" % sys.version.split()[0] if sys.version_info < (3, 11) else 0)'
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV) || { rm -rf $(VENV); echo "python3 cannot make a virtual environment; install the package python3-venv" >&2; exit 1; }
	@test -x $(BIN)/uv || $(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes --no-deps -r requirements-uv.lock
	@echo "Installing $$(grep -c '==' $(LOCK)) packages into $(VENV), $(SIZE) on disk; the first time they are downloaded."
	@$(call shown,$(BIN)/uv pip sync --compile-bytecode --python $(BIN)/python --require-hashes $(LOCK)) || { \
		echo "uv could not install; trying pip, which may be configured otherwise. It says nothing until it is done."; \
		$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes --no-deps -r $(LOCK); }

$(CLIENTS_STAMP): $(STAMP) tests/generated_clients/requirements.lock tests/generated_clients/package-lock.json
	@test -x $(CLIENTS)/bin/python || $(PYTHON) -m venv $(CLIENTS)
	@$(BIN)/uv pip sync --quiet --python $(CLIENTS)/bin/python --require-hashes tests/generated_clients/requirements.lock || \
		$(CLIENTS)/bin/python -m pip install --quiet --disable-pip-version-check --require-hashes --no-deps -r tests/generated_clients/requirements.lock
	@cp tests/generated_clients/package.json tests/generated_clients/package-lock.json $(CLIENTS)/
	@cd $(CLIENTS) && PATH="$$PWD/bin:$$PATH" npm ci --no-audit --no-fund --loglevel=error --ignore-scripts >/dev/null
	@touch $(CLIENTS_STAMP)

demo: setup ## start everything, run the main job, serve until Ctrl-C (ARGS=--once ends after the job)
	@$(BIN)/paddock demo $(ARGS)

up: setup ## start everything and serve
	@$(BIN)/paddock up $(ARGS)

test: setup $(CLIENTS_STAMP) ## every test, on the real parts (ARGS="tests/api" for some)
	@$(BIN)/python -m pytest $(PARALLEL) $(ARGS)

test-fast: setup ## the tests that need no installation and no sandbox: what to run while you type
	@$(BIN)/python -m pytest $(PARALLEL) -m fast $(ARGS)

check: setup $(CLIENTS_STAMP) ## format, lint, types, imports, lock file, then the tests
	@$(BIN)/ruff format --check .
	@$(BIN)/ruff check .
	@$(BIN)/mypy
	@$(BIN)/lint-imports
	@$(BIN)/python -m scripts.lockcheck
	@$(BIN)/python -m pytest $(PARALLEL) $(ARGS)

names: setup ## the names, docstrings and words that break the rules, and the share of one-word names by package
	@$(BIN)/python -m tests.language $(ARGS)

bench: setup ## the benchmarks, as ratios measured in one run
	@$(BIN)/python -m scripts.bench $(ARGS)

lock: setup ## compile the lock files anew from pyproject.toml
	@$(BIN)/uv pip compile --quiet --universal --generate-hashes --no-emit-index-url --no-emit-find-links --no-header --extra embedded --extra model --extra dev pyproject.toml -o requirements.lock
	@$(BIN)/uv pip compile --quiet --universal --generate-hashes --no-emit-index-url --no-emit-find-links --no-header pyproject.toml -o requirements-runtime.lock
	@$(BIN)/uv pip compile --quiet --no-config --universal --python-version 3.11 --generate-hashes --no-emit-index-url --no-emit-find-links --no-header tests/generated_clients/requirements.in -o tests/generated_clients/requirements.lock
	@grep -A40 '^uv==' requirements.lock | awk 'NR==1 || /--hash/ {print; next} {exit}' > requirements-uv.lock

clean: ## remove the environment and the data of the demo
	rm -rf $(VENV) $(CLIENTS) .paddock
