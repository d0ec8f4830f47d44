"""A server for the run, a database for the test.

The controller starts one embedded server before anything else (CHATLEDGER_TEST_POSTGRES: the bin folder of another
PostgreSQL); xdist's workers connect to it. Each test that asks for a database gets a fresh one, copied from a template
that was migrated once.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import tempfile
from collections.abc import AsyncIterator
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qs, quote, urlsplit

import asyncpg
import psycopg
import pytest
from pytest_postgresql import factories

from chatledger import ChatLedger, embedded, migrate

if TYPE_CHECKING:
    from tests.helpers.sql import Connect, Connection, Psql

_servers = pytest.StashKey[embedded.EmbeddedServers]()
_folder = pytest.StashKey[Path]()
BIN_DIR = "CHATLEDGER_TEST_BIN_DIR"
SOCKET_DIR = "CHATLEDGER_TEST_SOCKET_DIR"


def pytest_configure(config: pytest.Config) -> None:
    if not hasattr(config, "workerinput"):
        _start_server(config)
    config.option.postgresql_host = os.environ[SOCKET_DIR]  # xdist's workers get the environment, not the options
    config.option.postgresql_port = "5432"


def _start_server(config: pytest.Config) -> None:
    # Nothing of the developer's own settings may reach a test.
    for name in [name for name in os.environ if name.startswith("CHATLEDGER_") and "_TEST_" not in name]:
        del os.environ[name]
    # Not below pytest's own temporary folder, which the server's user could not enter when we are root.
    folder = Path(tempfile.mkdtemp(prefix="chatledger-tests-"))
    folder.chmod(0o755)
    other = os.environ.get("CHATLEDGER_TEST_POSTGRES")
    servers = embedded.start(
        folder, bin_dir=Path(other) if other else None, settings={"max_connections": "300"}, durable=False
    )
    config.stash[_servers], config.stash[_folder] = servers, folder
    os.environ[SOCKET_DIR] = parse_qs(urlsplit(servers.database_url).query)["host"][0]
    os.environ[BIN_DIR] = str(servers.bin_dir)


def pytest_unconfigure(config: pytest.Config) -> None:
    if _servers in config.stash:
        config.stash[_servers].close()
        shutil.rmtree(config.stash[_folder], ignore_errors=True)


def url_of(host: str, dbname: str, user: str = "chatledger") -> str:
    return f"postgresql://{user}@/{dbname}?host={quote(str(host))}"


def _migrate_template(host: str, dbname: str, **_: Any) -> None:
    async def run() -> None:
        connection = await asyncpg.connect(url_of(host, dbname))
        await migrate(connection)
        await connection.close()

    asyncio.run(run())


_server = factories.postgresql_noproc(user="chatledger", dbname="migrated", load=[_migrate_template])
postgresql = factories.postgresql("_server")
_empty_server = factories.postgresql_noproc(user="chatledger", dbname="bare")
_empty_postgresql = factories.postgresql("_empty_server")


@pytest.fixture
def database_url(postgresql: psycopg.Connection[Any]) -> str:
    """A fresh, migrated database."""
    return url_of(postgresql.info.host, postgresql.info.dbname)


@pytest.fixture
def empty_database_url(_empty_postgresql: psycopg.Connection[Any]) -> str:
    """A fresh database without a ledger."""
    return url_of(_empty_postgresql.info.host, _empty_postgresql.info.dbname)


@pytest.fixture
async def connection(database_url: str) -> AsyncIterator[Connection]:
    """A connection to the test's database."""
    connection = await asyncpg.connect(database_url)
    yield connection
    await connection.close()


@pytest.fixture
async def connect(database_url: str) -> AsyncIterator[Connect]:
    """Opens as many connections to the test's database as are wanted, and closes them."""
    opened = []

    async def open_connection() -> Connection:
        opened.append(await asyncpg.connect(database_url))
        return opened[-1]

    yield open_connection
    for connection in opened:
        connection.terminate()


@pytest.fixture
async def ledger(database_url: str) -> AsyncIterator[ChatLedger]:
    """An open ledger on the test's database."""
    async with ChatLedger(database_url) as ledger:
        yield ledger


@pytest.fixture(scope="session")
def bin_dir() -> Path:
    """Where psql and pg_dump of the running server are."""
    return Path(os.environ[BIN_DIR])


@pytest.fixture
def psql(database_url: str, bin_dir: Path) -> Psql:
    """Runs SQL in psql, in a process of its own; returns its output, raises on an error."""

    async def run(sql: str, url: str = database_url) -> str:
        process = await asyncio.create_subprocess_exec(
            bin_dir / "psql", "-X", "-q", "-A", "-t", "-v", "ON_ERROR_STOP=1", url,
            stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
        )  # fmt: skip
        output, errors = await process.communicate(sql.encode())
        if process.returncode:
            raise RuntimeError(errors.decode())
        return output.decode()

    return run
