"""Cancelling the task that holds a stream, and taking that back: as a part of asyncio's structured cancellation."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable

import pytest

from chatledger.streams.holder import HolderTask

Body = Callable[[], Awaitable[object]]


class Lost(Exception):
    """What the block raises in place of our cancellation."""


async def forever() -> None:
    await asyncio.Event().wait()


async def held(body: Body, *, by_us: bool, by_others: bool) -> None:
    """A block of a holder that is cancelled in the middle."""
    holder = HolderTask()
    task = asyncio.current_task()
    assert task is not None
    loop = asyncio.get_running_loop()
    if by_us:
        loop.call_soon(holder.cancel)
    if by_others:
        loop.call_soon(task.cancel)
    cancelled = False
    try:
        await body()
    except asyncio.CancelledError:
        cancelled = True
        raise
    finally:
        only_we_cancelled = holder.take_back()
        if by_us and (only_we_cancelled or not cancelled):
            raise Lost


@pytest.mark.parametrize(
    ("by_us", "by_others", "raised"),
    [(True, False, Lost), (False, True, asyncio.CancelledError), (True, True, asyncio.CancelledError)],
)
async def test_our_own_cancellation_becomes_an_error_and_that_of_others_stays(
    by_us: bool, by_others: bool, raised: type[BaseException]
) -> None:
    task = asyncio.create_task(held(forever, by_us=by_us, by_others=by_others))
    await asyncio.wait([task])
    assert task.cancelled() is (raised is asyncio.CancelledError)
    assert task.cancelling() == by_others  # ours was taken back
    if raised is Lost:
        with pytest.raises(Lost):
            await task


async def test_a_body_that_swallows_the_cancellation_is_told_on_leaving() -> None:
    async def stubborn() -> None:
        with contextlib.suppress(asyncio.CancelledError):
            await forever()

    with pytest.raises(Lost):
        await held(stubborn, by_us=True, by_others=False)
    await asyncio.sleep(0)  # the task goes on, uncancelled


async def test_it_nests_with_a_timeout() -> None:
    with pytest.raises(Lost):
        async with asyncio.timeout(30):
            await held(forever, by_us=True, by_others=False)
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0):
            await held(forever, by_us=False, by_others=False)
    await asyncio.sleep(0)


async def test_the_holder_itself_is_not_cancelled() -> None:
    """It is told by an exception."""
    holder = HolderTask()
    holder.cancel()
    await asyncio.sleep(0)
    assert holder.take_back()


async def test_a_task_that_has_ended_is_no_trouble() -> None:
    async def enter() -> HolderTask:
        return HolderTask()

    holder = await asyncio.create_task(enter())
    holder.cancel()
    assert holder.take_back()
