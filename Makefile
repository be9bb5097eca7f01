# Everything sets up its own environment in .venv from the lock files; nothing but
# Python (3.11 or newer) with pip is needed. `make help` lists the targets.

SHELL := /bin/bash
VENV ?= .venv
PYTHON ?= python3
CACHE := .cache

PY := $(VENV)/bin/python
LAUNCH := $(PY) -m tests.support.launch
PYTEST_OPTIONS ?=
BENCH_OPTIONS ?=
# The tests of a file stay together: they share its servers.
PARALLEL ?= -n auto --maxprocesses=4 --dist loadfile
SOURCES := src tests benchmarks setup.py
BUILT_FROM := pyproject.toml setup.py $(wildcard src/pgrecall/codec/_native.c \
	src/pgrecall/agent/client/pgrecall_client.c)

# What the caller's shell has set for its own Python does not concern this environment.
unexport PYTHONPATH PYTHONHOME VIRTUAL_ENV PIP_USER PIP_REQUIRE_VIRTUALENV PIP_TARGET PIP_PREFIX
export PIP_DISABLE_PIP_VERSION_CHECK := 1

.DEFAULT_GOAL := help
.PHONY: help demo test test-matrix test-azure test-slow test-soak test-root soak check format-check lint types layers docs-check \
	locks-check unit format docs bench bench-catalog bench-million bench-startup bench-backlog bench-verify bench-wal freeze lock clean setup

help: ## List the targets.
	@grep -hE '^[a-z-]+:.*## ' $(firstword $(MAKEFILE_LIST)) | sort \
		| awk -F ':.*## ' '{ printf "  %-12s %s\n", $$1, $$2 }'

# --- what users want ---------------------------------------------------------

demo: $(VENV)/.product ## Watch a real server lose a table and come back to the moment before.
	@$(VENV)/bin/pgrecall demo

# --- tests: one target for each tier ------------------------------------------

test: $(VENV)/.dev ## Run every test that needs only Python and pip (a quarter of an hour).
	$(LAUNCH) pytest $(PARALLEL) -m "not matrix and not azure and not slow and not soak" $(PYTEST_OPTIONS)

test-matrix: $(VENV)/.dev ## Install PostgreSQL 13 to 17 beside 18 and run the tests of all versions.
	$(PY) -m tests.support.matrix install
	PGRECALL_EXPECT_VERSIONS=13,14,15,16,17,18 $(LAUNCH) pytest $(PARALLEL) -m matrix $(PYTEST_OPTIONS)

test-azure: $(VENV)/.dev ## Run the contract of stores on Azurite (needs npm).
	@# Azurite is installed by the tests, as the ordinary user that they run as.
	cache=$$(mktemp -d) && chmod 1777 "$$cache" && trap 'rm -rf "$$cache"' EXIT && \
		PGRECALL_TEST_CACHE="$$cache" $(LAUNCH) pytest -m azure $(PYTEST_OPTIONS)

test-slow: $(VENV)/.dev ## Run the tests that take long: faults at every call, a million files.
	$(LAUNCH) pytest -m "slow and not matrix and not azure" $(PYTEST_OPTIONS)

test-soak: $(VENV)/.dev ## Kill agent, clients and server at random, 20 rounds.
	$(LAUNCH) pytest -m soak tests/soak $(PYTEST_OPTIONS)

soak: $(VENV)/.dev ## The same, 200 rounds.
	PGRECALL_SOAK_ROUNDS=200 $(LAUNCH) pytest -m soak tests/soak $(PYTEST_OPTIONS)

# As root the benchmark runs in a copy of the checkout: its report is carried back.
test-root: $(VENV)/.dev ## Run what only root can start: the demo from a closed clone.
	$(PY) -m pytest -q tests/root -p no:cacheprovider $(PYTEST_OPTIONS)

freeze: $(VENV)/.dev ## Keep two repositories of the format as it is: make freeze NAME=0.2 (tests/formats).
	@made=$$(mktemp -d) && chmod 0777 "$$made" && trap 'rm -rf "$$made"' EXIT && \
		$(LAUNCH) tests.formats.freeze "$(NAME)" --into "$$made" && \
		mkdir "tests/formats/$(NAME)" && cp "$$made/$(NAME)"/* "tests/formats/$(NAME)/"

bench: $(VENV)/.dev ## Measure against pgBackRest and pg_basebackup; writes docs/benchmarks.md.
	@report=$$(mktemp -d) && chmod 0777 "$$report" && trap 'rm -rf "$$report"' EXIT && \
		$(LAUNCH) benchmarks.run --report "$$report/benchmarks.md" $(BENCH_OPTIONS) && \
		cat "$$report/benchmarks.md" > docs/benchmarks.md

bench-million: $(VENV)/.dev ## Plan a backup and a restore of a million files: time and memory.
	$(LAUNCH) benchmarks.million $(BENCH_OPTIONS)

bench-catalog: $(VENV)/.dev ## Time commands on 10,000 backups and a million segments (needs 5 GB).
	$(LAUNCH) benchmarks.catalog $(BENCH_OPTIONS)

bench-startup: $(VENV)/.dev ## Measure what wal push and wal fetch take, call by call.
	$(LAUNCH) benchmarks.startup $(BENCH_OPTIONS)

bench-backlog: $(VENV)/.dev ## Measure the agent's archiving of a backlog against pgBackRest and cp.
	$(LAUNCH) benchmarks.backlog $(BENCH_OPTIONS)

bench-verify: $(VENV)/.dev ## Measure verify against pgBackRest and pg_verifybackup.
	$(LAUNCH) benchmarks.verify $(BENCH_OPTIONS)

bench-wal: $(VENV)/.dev ## Measure archiving (directory, S3), recovery, receiving; writes docs/benchmarks-wal.md.
	@report=$$(mktemp -d) && chmod 0777 "$$report" && trap 'rm -rf "$$report"' EXIT && \
		$(LAUNCH) benchmarks.wal --report "$$report/benchmarks-wal.md" $(BENCH_OPTIONS) && \
		cat "$$report/benchmarks-wal.md" > docs/benchmarks-wal.md

# --- checks --------------------------------------------------------------------

check: format-check lint types layers docs-check locks-check unit ## Format, lint, types, layers, documents, unit tests (about a minute).

format-check: $(VENV)/.dev
	$(VENV)/bin/ruff format --check $(wildcard $(SOURCES))

lint: $(VENV)/.dev ## Look for mistakes with ruff.
	$(VENV)/bin/ruff check $(wildcard $(SOURCES))

types: $(VENV)/.dev ## Check types with mypy.
	$(VENV)/bin/mypy

layers: $(VENV)/.dev ## Check that imports go down only.
	$(VENV)/bin/lint-imports

docs-check: $(VENV)/.dev
	$(PY) -m pgrecall.cli.generate --check docs

locks-check:
	@if grep -nE '://|^ *-(i|f|r|c|e) |--(extra-)?index-url|--find-links|file:|(^|[ =])/' $(wildcard requirements*.lock); \
	then echo 'a lock file names an index, a URL or a path' >&2; exit 1; fi
	@for lock in requirements.lock requirements-dev.lock; do \
		grep -q -- '--hash=sha256:' $$lock || { echo "$$lock has no hashes" >&2; exit 1; }; done

unit: $(VENV)/.dev ## Run the unit tests.
	$(PY) -m pytest -q $(PARALLEL) tests/unit $(PYTEST_OPTIONS)

format: $(VENV)/.dev ## Format the sources.
	$(VENV)/bin/ruff format $(wildcard $(SOURCES))
	$(VENV)/bin/ruff check --fix-only --select I $(wildcard $(SOURCES))

docs: $(VENV)/.dev ## Generate settings.md, settings.schema.json and errors.md.
	$(PY) -m pgrecall.cli.generate docs

# --- the environment -----------------------------------------------------------

setup: $(VENV)/.dev ## Set up .venv for development.

# $(call python) is an interpreter that is new enough: $(PYTHON), or the newest other one.
python = $(shell for name in $(PYTHON) python3.14 python3.13 python3.12 python3.11; do \
	"$$name" -c 'import sys; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1 \
	&& { echo "$$name"; break; }; done)

# Debian's Python comes without ensurepip: then the interpreter's own pip installs one.
$(VENV)/.created:
	@chosen='$(call python)'; \
	[ -n "$$chosen" ] || { echo 'Python 3.11 or newer is needed; name one: make PYTHON=...' >&2; exit 1; }; \
	rm -rf '$(VENV)'; echo "setting up $(VENV) with $$chosen"; \
	"$$chosen" -m venv '$(VENV)' >/dev/null 2>&1 \
		|| { rm -rf '$(VENV)'; "$$chosen" -m venv --without-pip '$(VENV)' \
		&& "$$chosen" -m pip --python '$(PY)' install --quiet pip; }
	@touch $@

# The product and the demonstration's PostgreSQL. Hashes are checked; the package
# itself is built without the network, and without a compiler if there is none. It is
# compiled to bytecode here: the user of PostgreSQL, who runs wal push for every
# segment, cannot write into this directory, and without bytecode it starts half as fast.
$(VENV)/.product: $(VENV)/.created requirements.lock $(BUILT_FROM)
	@echo 'installing pgrecall and an embedded PostgreSQL (half a minute)'
	$(PY) -m pip install --quiet --require-hashes --requirement requirements.lock
	$(PY) -m pip install --quiet --no-build-isolation --no-deps --editable .
	$(PY) -m compileall -q src/pgrecall
	@touch $@

$(VENV)/.dev: $(VENV)/.created requirements-dev.lock $(BUILT_FROM)
	$(PY) -m pip install --quiet --require-hashes --requirement requirements-dev.lock
	$(PY) -m pip install --quiet --no-build-isolation --no-deps --editable .
	$(PY) -m compileall -q src/pgrecall
	@touch $(VENV)/.product $@

LOCK := $(CACHE)/lock/bin/uv pip compile pyproject.toml --quiet --universal --python-version 3.11 \
	--generate-hashes --no-emit-index-url --no-emit-find-links --custom-compile-command 'make lock'

lock: ## Resolve the dependencies anew and write the lock files.
	test -x $(CACHE)/lock/bin/uv || { $(call python) -m venv $(CACHE)/lock && \
		$(CACHE)/lock/bin/python -m pip install --quiet uv; }
	$(LOCK) --extra demo --group build --output-file requirements.lock
	$(LOCK) --extra demo --group dev --constraint requirements.lock --output-file requirements-dev.lock
	@$(MAKE) --no-print-directory locks-check

clean: ## Remove the environment, caches and built files.
	rm -rf $(VENV) $(CACHE) build dist .mypy_cache .ruff_cache .pytest_cache .import_linter_cache .hypothesis
	find src tests -name '__pycache__' -prune -exec rm -rf {} +
	rm -rf src/pgrecall.egg-info src/pgrecall/codec/*.so
