"""Saving a session that is held in memory: what its caller changed, and nothing else."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pydantic_core import from_json

from chatledger.errors import ChatLedgerError, InvalidArgument, InvalidMessage, MessageIdConflict
from chatledger.models.bodies import copy_json
from chatledger.models.changes import HEADER_FIELDS, changes_of, id_conflict
from chatledger.models.header import Usage
from chatledger.models.message import ChatMessage
from chatledger.models.saves import SaveArguments, SessionSave
from chatledger.models.session import ChatSession
from chatledger.postgres import functions
from chatledger.postgres.encoding import check_depth, clean_text, encode_changes, encode_object, invalid_message

if TYPE_CHECKING:
    from chatledger.postgres.connections import Run


async def save_session(run: Run, session: ChatSession, fence: int | None) -> None:
    """Save a copy, as :meth:`ChatLedger.save_session` says: prepare, send, apply."""

    async def send(save: SessionSave) -> None:
        try:
            outcome = await run(functions.save_session(save.arguments))
        except (InvalidMessage, MessageIdConflict) as error:
            raise _in_callers_list(error, save) from error
        session._baseline = save.apply(session, session._baseline, outcome)

    await session._saves.save(lambda: _prepare(session, fence), send)


def _prepare(session: ChatSession, fence: int | None) -> SessionSave:
    _check_types(session)
    try:
        changed = changes_of(session, session._baseline)
    except RecursionError as error:
        for index, message in enumerate(session.messages):
            check_depth(message, index)
        raise InvalidArgument("the session's metadata contains itself, or is nested too deeply") from error
    sent, messages, amendments = encode_changes(changed.messages)
    usage = [encode_object(used.model_dump(), "usage") for used in changed.usage]
    arguments = SaveArguments(
        clean_text(session.session_id),
        None if session.user_id is None else clean_text(session.user_id),
        session.version,
        encode_object(changed.header, "title, status or metadata"),
        messages,
        amendments,
        usage,
        fence,
    )
    header = {name: getattr(session, name) for name in HEADER_FIELDS}
    recorded = {
        used.usage_id: Usage.model_construct(None, **from_json(text))
        for used, text in zip(changed.usage, usage, strict=True)
    }
    return SessionSave(arguments, header, copy_json(session.metadata), sent, recorded)


def _check_types(session: ChatSession) -> None:
    # pydantic does not look at what is assigned, or appended to a list.
    for name, kind in (("messages", list), ("metadata", dict), ("usage", list)):
        if not isinstance(given := getattr(session, name), kind):
            raise InvalidArgument(f"the session's {name}: expected a {kind.__name__}, not {type(given).__name__}")
    for index, message in enumerate(session.messages):
        if not isinstance(message, ChatMessage):
            raise invalid_message(index, "", f"is a {type(message).__name__}; expected a ChatMessage")
    for index, used in enumerate(session.usage):
        if not isinstance(used, Usage):
            raise InvalidArgument(f"usage {index}: expected a Usage, not a {type(used).__name__}")


def _in_callers_list(error: InvalidMessage | MessageIdConflict, save: SessionSave) -> ChatLedgerError:
    """Return Postgres's error, which has the message's place in what was sent, with that in the caller's list."""
    sent_index = error.detail.get("index")
    if sent_index is not None:
        index = [sent.index for sent in save.messages if sent.is_new][sent_index]
    else:  # an amendment
        index = next(sent.index for sent in save.messages if sent.stored_id == error.detail["message_id"])
    if isinstance(error, MessageIdConflict):
        return id_conflict(index, error.detail["message_id"], "is stored in this session with another body")
    return invalid_message(index, error.detail["field"], error.detail["problem"])
