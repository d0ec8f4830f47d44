"""Cancels a piece of work at one of its awaits."""

from __future__ import annotations

import asyncio
import types
from collections.abc import Coroutine, Generator
from functools import partial
from typing import Any


@types.coroutine
def _stepped(number: int, work: Coroutine[Any, Any, Any]) -> Generator[Any, Any, Any]:
    step = partial(work.send, None)
    while True:
        try:
            waits_for = step()
        except StopIteration as end:
            return end.value
        number -= 1
        if number == 0:
            task = asyncio.current_task()
            assert task
            task.cancel()
        try:
            yield waits_for
            step = partial(work.send, None)
        except BaseException as error:
            step = partial(work.throw, error)


async def _in_a_task(number: int, work: Coroutine[Any, Any, Any]) -> Any:
    return await _stepped(number, work)


async def was_cancelled_at(number: int, work: Coroutine[Any, Any, Any]) -> bool:
    """Run the work in a task, which is cancelled at this await of all that it comes to; False: it ended before."""
    task = asyncio.create_task(_in_a_task(number, work))
    await asyncio.wait([task])
    if task.cancelled():
        return True
    task.result()
    return False
