"""Reading a session through the cache: the copy says what it is at, Postgres says what changed since.

So a read is never older than what was committed when it began, and the cache only saves Postgres and the network the
messages that the copy already has. Writes do not touch the cache: the next read brings the copy up to date.
"""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Iterable
from datetime import datetime
from typing import TYPE_CHECKING

from pydantic import TypeAdapter
from pydantic_core import to_json

from chatledger.postgres import functions
from chatledger.postgres.rows import SEQUENCE, MessageRow, session_of

if TYPE_CHECKING:
    from chatledger.cache.copies import CachedSession
    from chatledger.cache.link import SessionCache
    from chatledger.models.session import ChatSession
    from chatledger.postgres.connections import Run
    from chatledger.postgres.rows import Changes

_blocks_of_rows = TypeAdapter(list[list[MessageRow]])
# So many sequences make a block of the copy: a read is faster with large blocks, and a change writes all of its block.
_BLOCK = 16


async def read_through(
    cache: SessionCache, run: Run, session_id: str, user_id: str | None, min_messages: int
) -> ChatSession | None:
    """Return a session with its messages; None when it is missing or not this user's.

    Args:
        cache: Where copies are.
        run: Asks Postgres.
        session_id: The session.
        user_id: Only if the session belongs to this user; None skips the check (a trusted caller).
        min_messages: How many messages a session must have to be worth a copy.
    """
    copy = await cache.get(session_id)
    if copy is not None:
        try:
            return await _from_copy(copy, cache, run, session_id, user_id, min_messages)
        except (ValueError, KeyError, TypeError):
            # Garbage of the right shape, or a copy of another session that had this id: Postgres has it right.
            await cache.drop(session_id)
    return await _from_postgres(cache, run, session_id, user_id, min_messages)


async def _from_postgres(
    cache: SessionCache, run: Run, session_id: str, user_id: str | None, min_messages: int
) -> ChatSession | None:
    changes = await run(functions.read_changes(session_id, user_id, None))
    if changes is None:
        return None
    header, rows = changes.header, [*changes.messages.values()]
    if len(rows) >= min_messages:
        await cache.put(session_id, header, _blocks(rows))
    return session_of(header, rows)


async def _from_copy(
    copy: CachedSession, cache: SessionCache, run: Run, session_id: str, user_id: str | None, min_messages: int
) -> ChatSession | None:
    version = copy.header["version"]
    since = version, copy.header["next_sequence"]
    asking = asyncio.ensure_future(run(functions.read_changes(session_id, user_id, since)))
    try:
        await asyncio.sleep(0)  # the call is sent, so that Postgres works while the copy is parsed
        rows = _rows(copy)
    except BaseException:
        asking.cancel()  # nobody waits for the answer
        await asyncio.gather(asking, return_exceptions=True)
        raise
    changes = await asking
    if changes is None:
        if user_id in (None, copy.header["user_id"]):
            await cache.drop(session_id)  # it is gone, not just another user's
        return None
    if not _same_session(copy, changes):
        raise ValueError("the id was purged and created anew, or the database restored")

    header = changes.header | {"usage": copy.header["usage"] + changes.header["usage"]}
    if changes.messages or changes.removed:
        merged = {row[SEQUENCE]: row for row in rows if row[SEQUENCE] not in changes.removed} | changes.messages
        rows = [merged[sequence] for sequence in sorted(merged)]
    if header["version"] != version:
        touched = {sequence // _BLOCK for sequence in (*changes.messages, *changes.removed)}
        blocks = _blocks(row for row in rows if row[SEQUENCE] // _BLOCK in touched)
        await cache.update(session_id, version, header, blocks, copy.blocks.keys() & touched - blocks.keys())
    return session_of(header, rows)


def _same_session(copy: CachedSession, changes: Changes) -> bool:
    created = (datetime.fromisoformat(header["created_at"]) for header in (copy.header, changes.header))
    return len(set(created)) == 1 and changes.header["version"] >= copy.header["version"]


def _blocks(rows: Iterable[MessageRow]) -> dict[int, bytes]:
    blocks: defaultdict[int, list[MessageRow]] = defaultdict(list)
    for row in rows:
        blocks[row[SEQUENCE] // _BLOCK].append(row)
    return {number: to_json(block) for number, block in blocks.items()}


def _rows(copy: CachedSession) -> list[MessageRow]:
    blocks = _blocks_of_rows.validate_json(b"[%b]" % b",".join(copy.blocks.values()))
    rows = [row for block in blocks for row in block]
    if len(rows) != copy.header["message_count"]:
        raise ValueError("some messages are missing")
    return rows
