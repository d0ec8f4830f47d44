"""The same schema from Python and from psql, once, and never the wrong way round."""

from __future__ import annotations

import asyncio
from pathlib import Path

import asyncpg
import pytest

from chatledger import MigrationError, migrate
from chatledger.postgres.migrations import migrations, pending, plain_script, sql_folder
from tests.helpers.schema import dump
from tests.helpers.sql import Psql

INSTALL = f"\\i '{sql_folder() / 'install.sql'}'"


async def test_psql_and_python_give_the_same_schema(
    database_url: str, empty_database_url: str, psql: Psql, bin_dir: Path
) -> None:
    await psql(INSTALL, empty_database_url)
    by_psql, by_python = await dump(bin_dir, empty_database_url), await dump(bin_dir, database_url)
    assert "GRANT ALL ON FUNCTION chatledger.append_messages" in by_python
    assert by_psql == by_python


async def test_the_printed_script_gives_the_same_schema(
    database_url: str, empty_database_url: str, psql: Psql, bin_dir: Path
) -> None:
    await psql(plain_script(list(migrations())), empty_database_url)
    assert await dump(bin_dir, empty_database_url) == await dump(bin_dir, database_url)


async def test_again_changes_nothing_from_either_side(database_url: str, psql: Psql, bin_dir: Path) -> None:
    before = await dump(bin_dir, database_url)
    await psql(INSTALL)
    connection = await asyncpg.connect(database_url)
    assert await migrate(connection) == []
    await connection.close()
    assert await dump(bin_dir, database_url) == before


@pytest.mark.parametrize("by_psql", [True, False])
async def test_again_mends_privileges(database_url: str, psql: Psql, bin_dir: Path, by_psql: bool) -> None:
    """A restore into a server without the roles loses them, and leaves the functions to everybody."""
    before = await dump(bin_dir, database_url)
    await psql("""
        grant usage on schema chatledger, chatledger_internal to public, chatledger_writer;
        grant execute on all functions in schema chatledger to public;
        grant insert on chatledger.messages to chatledger_writer;
        revoke all on schema chatledger from chatledger_reader;
        revoke execute on all functions in schema chatledger from chatledger_writer;
        revoke select on chatledger.transcript, chatledger.messages from chatledger_reader;
    """)
    assert await dump(bin_dir, database_url) != before
    if by_psql:
        await psql(INSTALL)
    else:
        connection = await asyncpg.connect(database_url)
        await migrate(connection)
        await connection.close()
    assert await dump(bin_dir, database_url) == before


async def test_locks_of_strangers_do_not_hold_a_migrator_up(empty_database_url: str) -> None:
    stranger = await asyncpg.connect(empty_database_url)
    await stranger.execute("select pg_advisory_lock(hashtext('chatledger.migrations'))")
    connection = await asyncpg.connect(empty_database_url)
    assert await asyncio.wait_for(migrate(connection), 60) == list(migrations())
    for one in (stranger, connection):
        await one.close()


async def test_five_at_once_apply_once(empty_database_url: str) -> None:
    async def run() -> int:
        connection = await asyncpg.connect(empty_database_url)
        try:
            return len(await migrate(connection))
        finally:
            await connection.close()

    assert sorted(await asyncio.gather(*(run() for _ in range(5)))) == [0, 0, 0, 0, len(migrations())]


async def test_five_psql_at_once_apply_once(empty_database_url: str, psql: Psql) -> None:
    await asyncio.gather(*(psql(INSTALL, empty_database_url) for _ in range(5)))
    assert await psql("select count(*) from chatledger.migrations", empty_database_url) == f"{len(migrations())}\n"


async def test_pending_names_what_is_missing(empty_database_url: str) -> None:
    connection = await asyncpg.connect(empty_database_url)
    assert await pending(connection) == list(migrations())
    await migrate(connection)
    assert await pending(connection) == []
    await connection.close()


NEWER_RELEASE = (
    "create or replace function chatledger.version() returns text language sql as $$ select '99.0.0' $$",
    "newer than this chatledger",
)
NEWER_MIGRATION = (
    "insert into chatledger.migrations (number, name, checksum) values (9999, '9999_later', 'x')",
    "newer than this chatledger",
)
CHANGED_MIGRATION = (
    "update chatledger.migrations set checksum = 'x' where number = 1",
    "0001_ledger was applied to this database with other contents",
)


@pytest.mark.parametrize(("change", "message"), [NEWER_RELEASE, NEWER_MIGRATION, CHANGED_MIGRATION])
async def test_a_database_that_does_not_fit_is_refused_and_left_alone(
    database_url: str, psql: Psql, bin_dir: Path, change: str, message: str
) -> None:
    await psql(change)
    before = await dump(bin_dir, database_url)
    connection = await asyncpg.connect(database_url)
    with pytest.raises(MigrationError, match=message):
        await migrate(connection)
    await connection.close()
    with pytest.raises(RuntimeError, match=message):
        await psql(INSTALL)
    assert await dump(bin_dir, database_url) == before
