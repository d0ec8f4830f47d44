"""Wait until something is so."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

HANGS = 120  # seconds, far more than anything here takes


async def until(condition: Callable[[], Any]) -> None:
    """Return when the condition, a function or a coroutine function, gives something true."""
    async with asyncio.timeout(HANGS):
        while not (await found if isinstance(found := condition(), Awaitable) else found):
            await asyncio.sleep(0.005)
