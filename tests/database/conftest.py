"""One database for the whole folder, emptied before each test: a copy for each would take most of the run's time."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from typing import TYPE_CHECKING, Any

import asyncpg
import psycopg
import pytest

if TYPE_CHECKING:
    from pytest_postgresql.executors import NoopExecutor

    from tests.helpers.sql import ConnectAs, Connection


@pytest.fixture(scope="session")
def kept_database_url(_server: NoopExecutor) -> Iterator[str]:
    """A migrated database for all tests of this worker, under a name that no other fixture uses."""
    name = f"{_server.dbname}_contract"
    where: dict[str, Any] = {"host": _server.host, "port": _server.port, "user": _server.user}
    with psycopg.connect(dbname="postgres", autocommit=True, **where) as server:
        server.execute(f"create database {name} template {_server.template_dbname}".encode())
        yield f"postgresql://{_server.user}@/{name}?host={_server.host}"
        server.execute(f"drop database {name} with (force)".encode())


@pytest.fixture
def database_url(kept_database_url: str) -> str:
    """An empty ledger. What a test makes beside the ledger's rows (roles, functions), it takes away again."""
    with psycopg.connect(kept_database_url, autocommit=True) as connection:
        connection.execute("truncate chatledger.sessions, chatledger.user_locks cascade")
    return kept_database_url


@pytest.fixture
async def connect_as(connection: Connection, database_url: str) -> AsyncIterator[ConnectAs]:
    """Opens a connection as a login role that is a member of one of our roles, and nothing else."""
    opened: list[Connection] = []
    # Roles belong to the server, which the other workers use too.
    database = await connection.fetchval("select current_database()")

    async def open_connection(group: str) -> Connection:
        role = f"{group}_in_{database}"
        if not await connection.fetchval("select exists (select from pg_roles where rolname = $1)", role):
            await connection.execute(f"create role {role} login in role {group}")
        opened.append(await asyncpg.connect(database_url, user=role))
        return opened[-1]

    yield open_connection
    for one in opened:
        one.terminate()
