"""Conversations in and out, as JSON lines in OpenAI's chat format."""

from __future__ import annotations

import asyncio
import hashlib
import json
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from chatledger.errors import ChatLedgerError, MigrationError, SessionNotFound
from chatledger.postgres import functions
from chatledger.postgres.encoding import encode_messages

if TYPE_CHECKING:
    from chatledger.ledger import ChatLedger
    from chatledger.models.receipts import AppendReceipt
    from chatledger.postgres.functions import Connection

CONCURRENCY = 8
# Keys of a line that have a place of their own in the ledger; all others travel in the session's metadata.
_OWN_KEYS = ("session_id", "user_id", "title", "metadata", "status", "messages")
_OTHER_KEYS = "chatledger.import"  # in the metadata: what a line had besides


@dataclass
class ImportReport:
    """What an import did."""

    conversations: int = 0
    appended: int = 0
    already_there: int = 0
    refused: list[tuple[int, str]] = field(default_factory=list)
    """Number of each line that was not stored, from 1, and why."""


async def import_lines(
    ledger: ChatLedger, lines: Iterable[bytes], on_line: Callable[[bytes], None] = lambda line: None
) -> ImportReport:
    """Store each line's conversation, whole or not at all; one that is stored already changes nothing.

    A message without ``message_id`` gets one from its position, a conversation without ``session_id`` one from its
    contents: so an import can be stopped and run again, also by several at once.

    Args:
        ledger: Where to.
        lines: JSON objects ``{"session_id", "user_id", "messages": […]}``, a line each; empty lines are passed over.
        on_line: Called after each line.

    Raises:
        DatabaseUnavailable: Postgres went away for good; what was imported until then stays.
    """
    report = ImportReport()
    numbered = enumerate(lines, start=1)

    async def work() -> None:
        for number, line in numbered:
            if line.strip():
                try:
                    receipts = await _import_line(ledger, line)
                except _LineError as error:
                    report.refused.append((number, str(error)))
                else:
                    report.conversations += 1
                    appended = sum(receipt.appended for receipt in receipts)
                    report.appended += appended
                    report.already_there += len(receipts) - appended
            on_line(line)

    try:
        async with asyncio.TaskGroup() as group:
            for _ in range(CONCURRENCY):
                group.create_task(work())
    except ExceptionGroup as failed:  # all for one reason: the database went away, or this role may not write
        raise failed.exceptions[0] from failed
    report.refused.sort()
    return report


class _LineError(Exception):
    pass


async def _import_line(ledger: ChatLedger, line: bytes) -> list[AppendReceipt]:
    conversation = _parse(line)
    session_id, user_id = conversation["session_id"], conversation.get("user_id")
    metadata = dict(conversation.get("metadata") or {})
    if others := {key: value for key, value in conversation.items() if key not in _OWN_KEYS}:
        metadata[_OTHER_KEYS] = others

    async def store(connection: Connection) -> list[AppendReceipt]:
        # Both or none: a refused message must not leave an empty session behind.
        async with connection.transaction():
            await create(connection)
            return await append(connection)

    try:
        create = functions.create_session(
            session_id, user_id, conversation.get("title"), metadata, conversation.get("status") or "active"
        )
        messages = encode_messages(
            {"message_id": _derived_id(index)} | message if isinstance(message, dict) else message
            for index, message in enumerate(conversation["messages"])
        )
        append = functions.append_messages(session_id, messages, user_id)
        return await ledger._run(store)
    except ValueError as error:  # what is wrong with the line; an unavailable database is none
        raise _LineError(str(error)) from error
    except ChatLedgerError as error:
        if error.sqlstate is None or isinstance(error, MigrationError):
            raise  # no fault of the line
        raise _LineError(str(error)) from error


def _parse(line: bytes) -> dict[str, Any]:
    try:
        conversation = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise _LineError(f"not JSON: {error}") from error
    if not isinstance(conversation, dict):
        raise _LineError(f'is a JSON {type(conversation).__name__}; expected an object with "messages"')
    if not isinstance(conversation.get("messages"), list):
        raise _LineError('"messages" must be a list')
    conversation.setdefault("session_id", f"import-{hashlib.sha256(line.strip()).hexdigest()[:32]}")
    for key in ("session_id", "user_id", "title", "status"):
        if not isinstance(conversation.get(key), str | None) or (key == "session_id" and conversation[key] is None):
            raise _LineError(f'"{key}" must be a string')
    if not isinstance(conversation.get("metadata"), dict | None):
        raise _LineError('"metadata" must be an object')
    return conversation


def _derived_id(position: int) -> str:
    return f"import-{position}"


async def export_sessions(
    ledger: ChatLedger, session_ids: Sequence[str] = (), *, user_id: str | None = None
) -> AsyncIterator[str]:
    """Yield conversations as lines that :func:`import_lines` reads.

    Args:
        ledger: Where from.
        session_ids: Which ones; none: all.
        user_id: Only this user's.

    Raises:
        SessionNotFound: One of ``session_ids`` is not there.
    """
    for session_id in session_ids:
        conversation = await _read(ledger, session_id, user_id)
        if conversation is None:
            raise SessionNotFound(f'session "{session_id}" not found', detail={"session_id": session_id})
        yield conversation
    if not session_ids:
        async for session_id in _all_session_ids(ledger, user_id):
            if conversation := await _read(ledger, session_id, user_id):  # None: deleted meanwhile
                yield conversation


async def _read(ledger: ChatLedger, session_id: str, user_id: str | None) -> str | None:
    read = await ledger._run(functions.read_bodies(session_id, user_id))
    if read is None:
        return None
    session, bodies = read
    line: dict[str, Any] = {"session_id": session.session_id}
    line |= {"user_id": session.user_id} if session.user_id is not None else {}
    line |= {"title": session.title} if session.title is not None else {}
    line |= {"status": session.status} if session.status != "active" else {}
    metadata = dict(session.metadata)
    others = metadata.get(_OTHER_KEYS)
    if isinstance(others, dict) and others.keys().isdisjoint(_OWN_KEYS):  # else it is not from import_lines
        line |= metadata.pop(_OTHER_KEYS)
    line |= {"metadata": metadata} if metadata else {}
    line["messages"] = [
        body if message_id == _derived_id(position) else {"message_id": message_id} | body
        for position, (message_id, body) in enumerate(bodies)
    ]
    return json.dumps(line, ensure_ascii=False)


async def _all_session_ids(ledger: ChatLedger, user_id: str | None) -> AsyncIterator[str]:
    """Yield every session once. One that changes meanwhile moves to the front, so list them until none is new."""
    seen: set[str] = set()
    while True:
        before = len(seen)
        cursor = None
        while True:
            page = await ledger.list_sessions(user_id, limit=500, cursor=cursor)
            for session in page.sessions:
                if session.session_id not in seen:
                    seen.add(session.session_id)
                    yield session.session_id
            cursor = page.cursor
            if cursor is None:
                break
        if len(seen) == before:
            return
