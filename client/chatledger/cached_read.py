"""Reading a session through the cache: the copy says what it is at, Postgres says what changed since.

So a read is never older than what was committed when it began, and the cache only saves Postgres and the network the
messages that the copy already has. Writes do not touch the cache: the next read brings the copy up to date.
"""

from __future__ import annotations

import time
from datetime import datetime
from typing import TYPE_CHECKING

from pydantic import TypeAdapter
from pydantic_core import to_json

from chatledger import functions
from chatledger.functions import MessageRow

if TYPE_CHECKING:
    from chatledger.cache import CachedSession, SessionCache
    from chatledger.config import Settings
    from chatledger.connections import Run
    from chatledger.functions import Changes
    from chatledger.models import ChatSession

_rows = TypeAdapter(list[MessageRow])
_CHECKED_AT = "checked_at"


async def read_through(
    cache: SessionCache, run: Run, session_id: str, user_id: str | None, settings: Settings
) -> ChatSession | None:
    """Return a session with its messages; None when it is missing or not this user's.

    Args:
        cache: Where copies are.
        run: Asks Postgres.
        session_id: Which one.
        user_id: Who asks.
        settings: How stale a copy may be, and how large a session must be to have one.
    """
    copy = await cache.get(session_id)
    try:
        if copy is not None and 0 <= time.time() - copy.header[_CHECKED_AT] < settings.cache_max_staleness:
            if user_id not in (None, copy.header["user_id"]):
                return None
            return functions.session_of(copy.header, _parsed(copy.messages))
        return await _checked(cache, run, session_id, user_id, copy, settings)
    except (ValueError, KeyError, TypeError):
        # Garbage of the right shape: Postgres has it right.
        await cache.drop(session_id)
        return await _checked(cache, run, session_id, user_id, None, settings)


async def _checked(
    cache: SessionCache,
    run: Run,
    session_id: str,
    user_id: str | None,
    copy: CachedSession | None,
    settings: Settings,
) -> ChatSession | None:
    checked_at = time.time()
    since = None if copy is None else (copy.header["version"], copy.header["next_sequence"])
    changes = await run(lambda c: functions.read_changes(c, session_id, user_id, since))
    if copy is not None and changes is not None and not _same_session(copy, changes):
        # The id was purged and created anew, or the database restored: it counts from somewhere else.
        await cache.drop(session_id)
        copy = None
        changes = await run(lambda c: functions.read_changes(c, session_id, user_id, None))
    if changes is None:
        if copy is not None and user_id in (None, copy.header["user_id"]):
            await cache.drop(session_id)  # it is gone, not just another user's
        return None

    header = changes.header | {_CHECKED_AT: checked_at}
    if copy is None:
        if len(changes.messages) >= settings.cache_min_messages:
            await cache.put(session_id, header, _texts(changes))
        return functions.session_of(header, [*changes.messages.values()])
    rows = _parsed(copy.messages)
    if changes.messages or changes.removed:
        merged = {row[1]: row for row in rows if row[1] not in changes.removed} | changes.messages
        rows = [merged[sequence] for sequence in sorted(merged)]
    session = functions.session_of(header, rows)
    if settings.cache_max_staleness > 0 or changes.header["version"] != copy.header["version"]:
        removed = copy.messages.keys() & changes.removed
        await cache.update(session_id, copy.header["version"], header, _texts(changes), removed)
    return session


def _same_session(copy: CachedSession, changes: Changes) -> bool:
    created = (datetime.fromisoformat(header["created_at"]) for header in (copy.header, changes.header))
    return len(set(created)) == 1 and changes.header["version"] >= copy.header["version"]


def _texts(changes: Changes) -> dict[int, str]:
    return {sequence: to_json(row).decode() for sequence, row in changes.messages.items()}


def _parsed(texts: dict[int, str]) -> list[MessageRow]:
    return _rows.validate_json(f"[{','.join(texts.values())}]")
