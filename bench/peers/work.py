"""The work that every store does: ``python work.py ADAPTER DATABASE_URL REDIS_URL`` prints what it cost, as JSON.

Runs in the store's own environment, so it needs nothing but Python.
"""

from __future__ import annotations

import asyncio
import importlib
import json
import logging
import statistics
import sys
import time
import warnings
from typing import Any, Protocol
from uuid import uuid4

WRITERS, BATCHES, SIZE = 16, 20, 5
LOADS = 30
FILL = "What should I pack for Oslo? " * 7

Batch = list[tuple[str, str]]
"""Role (user or assistant) and text of each message."""


class Store(Protocol):
    """A chat store."""

    async def open(self, database_url: str, redis_url: str) -> None:
        """Connect, with a pool of 16, and make the tables."""

    async def handle(self, session_id: str, *, first: bool) -> Any:
        """Return what a request of its own would hold to write to a session; the first makes the session."""

    async def append(self, handle: Any, batch: Batch) -> None:
        """Store a batch."""

    async def load(self, session_id: str) -> list[str]:
        """Return the texts of the session."""

    async def close(self) -> None:
        """Disconnect."""


def batch(name: str, size: int) -> Batch:
    return [(("user", "assistant")[n % 2], f"{name}/{n}|{FILL}") for n in range(size)]


async def one_by_one(store: Store) -> dict[str, float]:
    """200 appends of 10, then loads of all 2,000."""
    session_id, appends, loads = str(uuid4()), [], []
    handle = await store.handle(session_id, first=True)
    for number in range(200):
        began = time.perf_counter()
        await store.append(handle, batch(f"{number}", 10))
        appends.append(time.perf_counter() - began)
    for _ in range(LOADS):
        began = time.perf_counter()
        texts = await store.load(session_id)
        loads.append(time.perf_counter() - began)
        if len(texts) != 2_000:
            raise SystemExit(f"loaded {len(texts)} of 2,000 messages")
    return {"append": statistics.median(appends) * 1e3, "load": statistics.median(loads) * 1e3}


async def all_at_once(store: Store) -> dict[str, float]:
    """16 writers, each with 20 batches of 5 for one session; what counts is what is there afterwards."""
    session_id = str(uuid4())
    handles = [await store.handle(session_id, first=writer == 0) for writer in range(WRITERS)]
    refused = 0

    async def write(writer: int) -> None:
        nonlocal refused
        for number in range(BATCHES):
            try:
                await store.append(handles[writer], batch(f"{writer}-{number}", SIZE))
            except Exception:  # whatever a store has for it
                refused += 1

    began = time.perf_counter()
    await asyncio.gather(*map(write, range(WRITERS)))
    took = time.perf_counter() - began
    stored = [text.partition("|")[0] for text in await store.load(session_id)]
    split = sum(
        place % SIZE != 0 and stored[index - 1] != f"{name}/{place - 1}"
        for index, (name, _, number) in enumerate(text.partition("/") for text in stored)
        for place in [int(number)]
    )
    return {
        "concurrent": took / max(len(set(stored)), 1) * 1e6,
        "refused": refused,
        "missing": (WRITERS * BATCHES - refused) * SIZE - len(set(stored)),
        "split": split,
    }


async def main() -> None:
    logging.disable(logging.ERROR)
    warnings.simplefilter("ignore")
    name, database_url, redis_url = sys.argv[1:]
    store: Store = importlib.import_module(f"adapters.{name}").Store()
    await store.open(database_url, redis_url)
    print(json.dumps(await one_by_one(store) | await all_at_once(store)))
    await store.close()


if __name__ == "__main__":
    asyncio.run(main())
