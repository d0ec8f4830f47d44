"""status and version: health at a glance."""

from __future__ import annotations

import asyncio
import re
from typing import TYPE_CHECKING

from chatledger import __version__
from tests.helpers.sql import append, new_session, until_waiting, user_json

if TYPE_CHECKING:
    from tests.helpers.sql import Connect, Connection


async def status(connection: Connection) -> dict[str, str | None]:
    rows = await connection.fetch("select * from chatledger.status()")
    return {row["item"]: row["value"] for row in rows}


async def test_version_is_the_releases(connection: Connection) -> None:
    assert await connection.fetchval("select chatledger.version()") == __version__


async def test_says_what_is_installed(connection: Connection) -> None:
    found = await status(connection)
    assert found["release"] == __version__
    assert found["schema"] == str(await connection.fetchval("select max(number) from chatledger.migrations"))
    assert found["server"] == await connection.fetchval("show server_version")


async def test_values_are_numbers_that_scripts_can_read(connection: Connection) -> None:
    await new_session(connection, [user_json("a")])
    found = await status(connection)
    for item, value in found.items():
        assert re.fullmatch("[a-z_]+", item)
        assert item in ("release", "server") or float(str(value)) >= 0


async def test_empty_ledger_has_a_status(connection: Connection) -> None:
    found = await status(connection)
    assert found["writers_waiting"] == "0"


async def test_counts_are_those_of_the_last_analyze(connection: Connection) -> None:
    for number in range(3):
        await new_session(connection, [user_json("a"), user_json("b")], session_id=f"s{number}")
    await connection.execute("analyze chatledger.sessions, chatledger.messages")

    found = await status(connection)

    assert (found["sessions_estimate"], found["messages_estimate"]) == ("3", "6")


async def test_counts_writers_that_wait_for_a_session(connection: Connection, connect: Connect) -> None:
    await new_session(connection)
    holder, first, second = await connect(), await connect(), await connect()

    holding = holder.transaction()
    await holding.start()
    await append(holder, [user_json("m0")])
    waiting = [asyncio.create_task(append(writer, [user_json("m1")])) for writer in (first, second)]
    await until_waiting(connection, 2)

    assert (await status(connection))["writers_waiting"] == "2"

    await holding.commit()
    await asyncio.gather(*waiting)
    assert (await status(connection))["writers_waiting"] == "0"


async def test_longest_transaction_is_told(connection: Connection, connect: Connect) -> None:
    other = await connect()
    async with other.transaction():
        began = await other.fetchval("select now()")
        at_least = await connection.fetchval("select clock_timestamp() - $1 - interval '1 millisecond'", began)
        told = await connection.fetchval(
            "select value::numeric * interval '1 second' from chatledger.status() "
            "where item = 'longest_transaction_seconds'"
        )
    assert told >= at_least
