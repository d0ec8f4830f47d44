"""G5 while followers and writers come and go: each follower ends with exactly the stored history, in order.

A few seconds; a minute with CHATLEDGER_TEST_TORTURE=1.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import sys
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncIterator, Callable
from contextlib import suppress

import asyncpg

from chatledger import ChatLedger, SessionEvent
from tests.helpers.program import start
from tests.helpers.sql import Connect

SECONDS = 60 if os.environ.get("CHATLEDGER_TEST_TORTURE") else 4
WRITERS = 4
# Appends to s1, and amends what it appended, until its standard input ends.
WRITER = """
import asyncio, random, sys
from chatledger import ChatLedger, Settings

async def main(name):
    async with ChatLedger(settings=Settings(pool_size=1, retry_deadline=60)) as ledger:
        number = 0
        told_to_end = asyncio.create_task(asyncio.to_thread(sys.stdin.read))
        while not told_to_end.done():
            batch = [f"{name}/{number + n}" for n in range(random.randint(1, 5))]
            await ledger.append_messages(
                "s1", [{"message_id": message_id, "role": "user", "content": "first"} for message_id in batch]
            )
            number += len(batch)
            if random.random() < 0.3:
                amended = f"{name}/{random.randrange(number)}"
                await ledger.amend_message("s1", amended, {"content": f"{number}"}, expected_version=10**9)
            await asyncio.sleep(random.uniform(0, 0.03))

asyncio.run(main(sys.argv[1]))
"""


class Seen:
    """What a follower has of the session: it goes on after its last message whenever it comes back."""

    def __init__(self) -> None:
        self.history: list[tuple[str, object]] = []
        self.returns = -1

    @property
    def last(self) -> int:
        return len(self.history) - 1

    def take(self, event: SessionEvent) -> None:
        assert event.message is not None
        assert event.sequence is not None
        told = (event.message.message_id, event.message.content)
        if event.kind == "appended":
            assert event.sequence == len(self.history), "once, and in order"
            self.history.append(told)
        else:
            assert event.kind == "amended"
            assert self.history[event.sequence][0] == told[0]
            self.history[event.sequence] = told


async def printed(process: Process) -> AsyncIterator[SessionEvent]:
    assert process.stdout is not None
    while line := await process.stdout.readline():
        yield SessionEvent.model_validate(json.loads(line))


async def take_for(events: AsyncIterator[SessionEvent], seen: Seen, stay: float) -> None:
    """Take events for so long after the first one, however slow the machine is to bring that."""
    with suppress(TimeoutError):
        async with asyncio.timeout(None) as staying:
            async for event in events:
                seen.take(event)
                if staying.when() is None:
                    staying.reschedule(asyncio.get_running_loop().time() + stay)


async def in_this_process(database_url: str, seen: Seen, stay: Callable[[], float]) -> None:
    """Follow, with a new ledger after every stay."""
    while True:
        seen.returns += 1
        async with ChatLedger(database_url) as ledger:
            await take_for(ledger.follow("s1", after=seen.last), seen, stay())


async def in_others(database_url: str, seen: Seen, stay: Callable[[], float]) -> None:
    """Follow in processes, each of which is killed after its stay."""
    while True:
        seen.returns += 1
        process = await start(database_url, "follow", "s1", "--json", "--after", str(seen.last))
        try:
            await take_for(printed(process), seen, stay())
        finally:
            process.kill()
            await process.communicate()


async def end_connections(connection: asyncpg.Connection[asyncpg.Record]) -> None:
    """Of writers and followers alike, now and then."""
    while True:
        await asyncio.sleep(random.uniform(0, 0.4))
        await connection.execute(
            "select pg_terminate_backend(pid) from pg_stat_activity"
            " where datname = current_database() and pid <> pg_backend_pid() order by random() limit 1"
        )


async def stored(ledger: ChatLedger) -> list[tuple[str, object]]:
    return [(message.message_id, message.content) for message in await ledger.get_messages("s1", limit=None)]


async def test_g5_every_follower_ends_with_what_is_stored(
    ledger: ChatLedger, database_url: str, connect: Connect
) -> None:
    await ledger.create_session("s1")
    steady, here, elsewhere, too = Seen(), Seen(), Seen(), Seen()
    environment = os.environ | {"CHATLEDGER_DATABASE_URL": database_url}
    writers = [
        await asyncio.create_subprocess_exec(sys.executable, "-c", WRITER, str(name), stdin=PIPE, env=environment)
        for name in range(WRITERS)
    ]

    async def all_there() -> None:
        history = await stored(ledger)
        while not all(seen.last == len(history) - 1 for seen in (here, elsewhere, too)) or steady.history != history:
            await asyncio.sleep(0.05)

    writing = True

    def stay() -> float:
        return random.uniform(0, 0.5) if writing else 3600

    async with asyncio.TaskGroup() as group:
        following = [
            group.create_task(in_this_process(database_url, steady, lambda: 3600)),
            group.create_task(in_this_process(database_url, here, stay)),
            group.create_task(in_others(database_url, elsewhere, stay)),
            group.create_task(in_others(database_url, too, stay)),
        ]
        ending = group.create_task(end_connections(await connect()))
        await asyncio.sleep(SECONDS)
        ending.cancel()
        for writer in writers:
            await writer.communicate(b"")  # ends its standard input
            assert writer.returncode == 0
        writing = False
        try:
            async with asyncio.timeout(120):
                await all_there()
        finally:
            for task in following:
                task.cancel()

    history = await stored(ledger)
    ids = [message_id for message_id, _ in history]
    assert len(history) > 50
    assert steady.history == history  # with all amendments, since it never went away
    assert steady.returns == 0
    for seen in (here, elsewhere, too):
        assert [message_id for message_id, _ in seen.history] == ids
        assert seen.returns > 0
    assert await ledger.verify_session("s1") == []
