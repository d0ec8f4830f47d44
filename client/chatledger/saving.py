"""Saving a session that is held in memory: what its caller changed, and nothing else.

Which changes those are says :mod:`chatledger.intent`; here they are sent, also when it is not known what became of what
was sent before.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import asyncpg

from chatledger.errors import ChatLedgerError, InvalidArgument, InvalidMessage, MessageIdConflict
from chatledger.models import changes
from chatledger.models.header import Usage
from chatledger.models.message import ChatMessage, new_id
from chatledger.models.session import ChatSession
from chatledger.postgres import functions
from chatledger.postgres.connections import is_refusal
from chatledger.postgres.encoding import (
    check_depth,
    clean_text,
    encode_amendments,
    encode_changes,
    encode_object,
    invalid_message,
)

if TYPE_CHECKING:
    from chatledger.postgres.connections import Run


async def save(run: Run, session: ChatSession, fence: int | None) -> None:
    """Do what :meth:`ChatLedger.save_session` says."""
    _check_types(session)
    saved = session._saved
    await _repeat_unanswered(run, session, fence)
    intended = _changes(session)
    _check_ids(session, intended)
    changes.remember_usage(saved, intended)
    unknown = dict(saved.messages_sent)
    try:
        messages, amendments, indexes = encode_changes(intended.messages, saved.messages_sent)
        await _send(run, session, intended, messages, amendments, fence)
    except ChatLedgerError as error:
        if error.sqlstate is not None:  # refused: nothing of this call is stored
            saved.messages_sent = unknown
        of_message = isinstance(error, InvalidMessage | MessageIdConflict)
        if of_message and isinstance(error.__cause__, asyncpg.PostgresError):
            raise _in_callers_list(error, intended.messages, indexes) from error
        raise


def _check_types(session: ChatSession) -> None:
    # pydantic does not look at what is assigned, or appended to a list.
    for name, kind in (("messages", list), ("metadata", dict), ("usage", Usage)):
        if not isinstance(given := getattr(session, name), kind):
            raise InvalidArgument(f"the session's {name}: expected a {kind.__name__}, not {type(given).__name__}")
    for index, message in enumerate(session.messages):
        if not isinstance(message, ChatMessage):
            raise invalid_message(index, "", f"is a {type(message).__name__}; expected a ChatMessage")


def _changes(session: ChatSession) -> changes.Intent:
    try:
        return changes.changes(session, session._saved, new_id())
    except RecursionError as error:
        for index, message in enumerate(session.messages):
            check_depth(message, index)
        raise InvalidArgument("the session's metadata contains itself, or is nested too deeply") from error


def _check_ids(session: ChatSession, intended: changes.Intent) -> None:
    """Refuse a list with a stored message twice, in two ways: nobody knows which one is meant."""
    amended = {change.message_id: change for change in intended.messages if change.before is not None}
    for index, message in enumerate(session.messages if amended else ()):
        change = amended.get(message.message_id)
        if change is not None and message is not change.message and changes.body_of(message) != change.body:
            last = max(index, change.index)
            raise _id_conflict(last, message.message_id, "is that of another message in the list, with another body")


async def _repeat_unanswered(run: Run, session: ChatSession, fence: int | None) -> None:
    unanswered = session._saved.unanswered
    if unanswered is None or (repeated := changes.repeatable(unanswered)) is None:
        return
    try:
        await _send(run, session, repeated, [], encode_amendments(repeated.messages), fence)
    except ChatLedgerError as error:
        if error.sqlstate is None:
            raise
        # Refused: it is not stored, or others have changed the same since, which what comes next meets too.


async def _send(
    run: Run,
    session: ChatSession,
    intended: changes.Intent,
    messages: Sequence[str],
    amendments: Sequence[str],
    fence: int | None,
) -> None:
    saved = session._saved
    arguments = (
        clean_text(session.session_id),
        None if session.user_id is None else clean_text(session.user_id),
        session.version,
        encode_object(intended.header, "header"),
        messages,
        amendments,
        [encode_object(usage, "usage") for usage in intended.usage],
        fence,
    )
    before, saved.unanswered = saved.unanswered, intended
    try:
        outcome = await run(lambda c: functions.save_session(c, *arguments))
    except Exception as error:
        if is_refusal(error):  # nothing of this is stored; of what was sent before, nothing is known still
            saved.unanswered = before
        raise
    saved.unanswered = None
    changes.settle(session, saved, intended, outcome)


def _in_callers_list(
    error: ChatLedgerError, changed: Sequence[changes.Changed], indexes: Sequence[int]
) -> ChatLedgerError:
    """Return Postgres's error, which has the message's place in what was sent, with that in the caller's list."""
    if (sent_index := error.detail.get("index")) is not None:
        index = indexes[sent_index]
    else:  # an amendment
        index = next(change.index for change in changed if change.stored_id == error.detail["message_id"])
    if isinstance(error, MessageIdConflict):
        return _id_conflict(index, error.detail["message_id"], "is stored in this session with another body")
    return invalid_message(index, error.detail["field"], error.detail["problem"])


def _id_conflict(index: int, message_id: str, problem: str) -> MessageIdConflict:
    return MessageIdConflict(
        f'message {index}: message_id "{message_id}" {problem}',
        detail={"index": index, "field": "message_id", "message_id": message_id},
        hint="Nothing was stored. Use a new id for a new message; change the one that is in the list to change it.",
    )
