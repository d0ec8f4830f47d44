"""Appends to one session that come while another of this process is under way: they wait for it, then go in one call.

They would have waited for its lock in the database anyway, each with a connection of its own.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from itertools import islice
from typing import TYPE_CHECKING

from chatledger.errors import ChatLedgerError
from chatledger.models.receipts import AppendReceipt
from chatledger.postgres import functions

if TYPE_CHECKING:
    from chatledger.postgres.connections import Run
    from chatledger.postgres.functions import Call

Key = tuple[str, str | None]
"""Session and user: the user decides whether the session is there."""
Receipts = list[AppendReceipt]

MOST_MESSAGES = 1_000
"""So many in one call, unless a single batch has more."""


class Combiner:
    """Appends for one caller, or for several at once; each gets what a call of its own would give."""

    def __init__(self, run: Run) -> None:
        self._run = run
        self._loop = asyncio.get_running_loop()
        # A key is there while an append is under way.
        self._waiting: dict[Key, list[tuple[Call[Receipts], asyncio.Future[Receipts]]]] = {}
        self._running: set[asyncio.Task[None]] = set()  # the event loop itself holds tasks only weakly

    async def append(self, call: Call[Receipts]) -> Receipts:
        """Append a batch, whole; in the order of the calls."""
        session_id, _, user_id, *_ = call.arguments
        key = session_id, user_id
        if asyncio.get_running_loop() is not self._loop:
            return await self._run(call)  # which says what is wrong with that
        if key in self._waiting:
            receipts: asyncio.Future[Receipts] = self._loop.create_future()
            self._waiting[key].append((call, receipts))
            return await receipts
        self._waiting[key] = []
        try:
            return await self._run(call)
        finally:
            self._continue(key)

    def _continue(self, key: Key) -> None:
        self._waiting[key] = [(call, answer) for call, answer in self._waiting[key] if not answer.cancelled()]
        if self._waiting[key]:
            # A task of its own, since no caller's cancellation may end what the others wait for.
            task = self._loop.create_task(self._append_waiting(key))
            self._running.add(task)
            task.add_done_callback(self._running.discard)
        else:
            del self._waiting[key]

    async def _append_waiting(self, key: Key) -> None:
        queue = self._waiting[key]
        count = size = 0
        while count < len(queue) and (count == 0 or size + len(_messages(queue[count][0])) <= MOST_MESSAGES):
            size += len(_messages(queue[count][0]))
            count += 1
        taken, self._waiting[key] = queue[:count], queue[count:]
        session_id, user_id = key
        together = [message for call, _ in taken for message in _messages(call)]
        try:
            receipts = iter(await self._run(functions.append_messages(session_id, together, user_id)))
            for call, answer in taken:
                _settle(answer, list(islice(receipts, len(_messages(call)))))
        except ChatLedgerError as error:
            if error.sqlstate is None or count == 1:
                for _, answer in taken:
                    _settle(answer, error)
            else:
                # Something in it was refused, and nothing stored: now each alone, so that only the one is refused.
                for call, answer in taken:
                    try:
                        _settle(answer, await self._run(call))
                    except Exception as alone:
                        _settle(answer, alone)
        except BaseException as error:
            for _, answer in taken:
                _settle(answer, error)
            if not isinstance(error, Exception):
                raise
        finally:
            self._continue(key)


def _messages(call: Call[Receipts]) -> Sequence[str]:
    messages: Sequence[str] = call.arguments[1]
    return messages


def _settle(answer: asyncio.Future[Receipts], outcome: Receipts | BaseException) -> None:
    if answer.done():  # its caller was cancelled
        return
    if isinstance(outcome, asyncio.CancelledError):
        answer.cancel()
    elif isinstance(outcome, BaseException):
        answer.set_exception(outcome)
    else:
        answer.set_result(outcome)
