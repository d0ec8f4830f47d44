"""The one stream of a session: a lease, and a message that is saved as it grows."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Self

from chatledger.errors import ChatLedgerError, InvalidArgument, SessionNotFound, StaleFence
from chatledger.models.changes import amendment_of
from chatledger.models.message import ChatMessage
from chatledger.models.receipts import AppendReceipt, ToolCallReceipt
from chatledger.models.saves import SaveArguments, SaveQueue
from chatledger.postgres import functions
from chatledger.postgres.encoding import encode_message, encode_messages, encode_object
from chatledger.streams.accumulator import GrowingMessage, is_empty
from chatledger.streams.holder import HolderTask
from chatledger.streams.lease import CLOSING_TIME, TRANSIENT, HeldLease, LeaseOptions, finish_despite_cancellation

if TYPE_CHECKING:
    from types import TracebackType

    from openai.types.chat import ChatCompletionChunk

    from chatledger.postgres.connections import Run
    from chatledger.postgres.functions import Call, Result

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class _Save:
    """What was fed, encoded, and what it was made of: the messages may grow while it is under way."""

    arguments: SaveArguments
    bodies: dict[GrowingMessage, dict[str, Any]]
    counted: list[GrowingMessage]


class Stream:
    """The holder of a session's stream: :meth:`ChatLedger.stream` says how to get one.

    May be shared by the tasks of an event loop. Every write carries the lease's fence.

    Attributes:
        session_id: Whose stream it is.
        fence: The lease's number, for other calls of the ledger that take one.
        lost: The lease ran out, was taken over, or the session was deleted. Nothing can be written any more.
    """

    def __init__(self, run: Run, run_heartbeat: Run, options: LeaseOptions, flush_interval: float) -> None:
        self.session_id = options.session_id
        self.fence = 0
        self.lost = False
        self._run = run
        self._user_id = options.user_id
        self._flush_interval = flush_interval
        self._lease = HeldLease(run, run_heartbeat, options)
        self._version = self._next_sequence = self._removed_count = 0
        self._helpers: list[asyncio.Task[None]] = []

        self._dirty = asyncio.Event()
        self._messages: list[GrowingMessage] = []
        """Those that are not saved to their end; the last one may still grow."""
        self._saved: dict[GrowingMessage, dict[str, Any]] = {}
        """Their bodies as the ledger has them."""
        self._saves: SaveQueue[_Save] = SaveQueue()

        self._failure: Exception | None = None
        self._holder: HolderTask | None = None
        self._open = False

    @property
    def saved_message_count(self) -> int:
        """How many messages the stored session has, as far as this stream knows."""
        return self._next_sequence - self._removed_count

    async def feed(self, chunk: ChatCompletionChunk) -> None:
        """Take in a chunk of a completion; what it adds to the message is saved soon. Never waits for Postgres.

        A chunk of another completion ends the message before and begins a new one.

        Raises:
            StaleFence, SessionNotFound: The lease is lost.
            InvalidArgument: It is no chunk, or one that openai's own code cannot add to those before.
            ChatLedgerError: The ledger refused what was fed before; or the stream was left already, or not entered yet.
        """
        self._check_open()
        try:
            self._take_in(chunk)
        except Exception as error:  # of any kind: openai's client takes anything that a server sends for a chunk
            raise InvalidArgument(
                f"the chunk cannot be added to those before: {type(error).__name__}", detail={"argument": "chunk"}
            ) from error
        self._dirty.set()

    def _take_in(self, chunk: ChatCompletionChunk) -> None:
        if is_empty(chunk):
            return
        if self._messages and self._messages[-1].takes(chunk):
            self._messages[-1].add(chunk)
        else:
            message = GrowingMessage()
            message.add(chunk)
            self._close_message()
            self._messages.append(message)

    async def append(
        self, messages: ChatMessage | Mapping[str, Any] | Iterable[ChatMessage | Mapping[str, Any]]
    ) -> list[AppendReceipt]:
        """Append a message or a batch, behind what was fed before.

        Args:
            messages: One or several, as :meth:`ChatLedger.append_messages` takes them.

        Returns:
            Where each message is, in the order they were given.

        Raises:
            StaleFence, SessionNotFound: The lease is lost.
            InvalidMessage, MessageIdConflict: As :meth:`ChatLedger.append_messages`. The stream goes on.
            ChatLedgerError: As :meth:`feed`.
        """
        self._check_open()
        given = [messages] if isinstance(messages, ChatMessage | Mapping) else messages
        append = functions.append_messages(self.session_id, encode_messages(given), self._user_id, fence=self.fence)
        async with self._saves.turn():
            await self._flush()
            receipts = await self._write(append)
            self._next_sequence = max([self._next_sequence, *(receipt.sequence + 1 for receipt in receipts)])
        return receipts

    async def add_tool_call(self, tool_call: Mapping[str, Any], *, message_id: str | None = None) -> ToolCallReceipt:
        """Attach a tool call to what was fed before.

        Args:
            tool_call: In OpenAI's format.
            message_id: Id for the message, if one has to be made; generated when None.

        Returns:
            Where the call is.

        Raises:
            StaleFence, SessionNotFound: The lease is lost.
            InvalidMessage, MessageIdConflict, InvalidArgument: As :meth:`ChatLedger.add_tool_call`. The stream goes on.
            ChatLedgerError: As :meth:`feed`.
        """
        self._check_open()
        add = functions.add_tool_call(self.session_id, tool_call, self._user_id, message_id, self.fence)
        async with self._saves.turn():
            await self._flush()
            receipt = await self._write(add)
            self._next_sequence = max(self._next_sequence, receipt.sequence + 1)
        return receipt

    async def flush(self) -> None:
        """Save now what was fed.

        Raises:
            StaleFence, SessionNotFound: The lease is lost.
            AmendConflict, MessageNotFound: Somebody else changed the growing message's text, or truncated it away.
            DatabaseUnavailable: It is not saved yet; the stream tries again.
            ChatLedgerError: As :meth:`feed`.
        """
        self._check_open()
        async with self._saves.turn():
            await self._flush()

    # Entering and leaving

    async def __aenter__(self) -> Self:
        """Take the lease.

        Raises: see :meth:`ChatLedger.stream`.
        """
        lease = await self._lease.begin()
        self.fence, self._version, self._next_sequence = lease.fence, lease.version, lease.next_sequence
        self._removed_count = lease.next_sequence - lease.message_count
        self._holder = HolderTask()
        self._open = True
        self._helpers = [asyncio.create_task(self._keep_lease()), asyncio.create_task(self._save_as_it_grows())]
        return self

    async def _keep_lease(self) -> None:
        try:
            await self._lease.keep()
        except Exception as error:
            self._end(error)

    def _check(self) -> None:
        if self._failure is not None:
            raise self._failure

    def _check_open(self) -> None:
        self._check()
        if not self._open:
            raise ChatLedgerError(
                "the stream is not open: it was left, or not entered yet",
                hint="Write to it inside `async with`, and wait there for the tasks that do",
            )

    def _end(self, error: Exception) -> None:
        """Remember why the stream cannot go on, and cancel its holder."""
        if self._failure is not None:
            return
        self._failure = error
        self.lost = isinstance(error, StaleFence | SessionNotFound)
        if self._open and self._holder is not None:
            self._holder.cancel()

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Save the rest, and release the lease."""
        self._open = False
        heartbeat, saving = self._helpers
        saving.cancel()
        try:
            if not self.lost:
                await finish_despite_cancellation(self._close(None if kind is None else CLOSING_TIME))
        except Exception as unsaved:
            if kind is None and self._failure is None:
                raise
            logger.warning("session %s: the end of the stream was not saved: %r", self.session_id, unsaved)
        finally:
            heartbeat.cancel()
            await asyncio.wait(self._helpers, timeout=CLOSING_TIME)

        # Somebody else who cancelled, too, goes first.
        only_we_cancelled = self._holder is None or self._holder.take_back()
        if self._failure is not None and (kind is None or (kind is asyncio.CancelledError and only_we_cancelled)):
            raise self._failure from error

    async def _close(self, seconds: float | None) -> None:
        try:
            if self._failure is None:
                self._close_message()
                async with asyncio.timeout(seconds), self._saves.turn():
                    await self._flush()
        finally:
            await self._lease.release()

    # The growing messages

    async def _save_as_it_grows(self) -> None:
        try:
            while True:
                await self._dirty.wait()
                try:
                    await self.flush()
                except TRANSIENT as error:
                    logger.warning("session %s: the growing message is not saved yet: %r", self.session_id, error)
                    self._dirty.set()
                    await asyncio.sleep(0.1)
                await asyncio.sleep(self._flush_interval)
        except Exception as error:
            self._end(error)

    def _close_message(self) -> None:
        if self._messages:
            self._messages[-1].closed = True

    async def _flush(self) -> None:
        self._check()
        await self._saves.save(self._next_save, self._send)

    async def _send(self, save: _Save) -> None:
        outcome = await self._write(functions.save_session(save.arguments))
        self._saved |= save.bodies
        for message in save.counted:
            message.usage = None
        for message in [m for m in self._messages if m.closed and m.usage is None and m.body() == self._saved.get(m)]:
            self._messages.remove(message)
            self._saved.pop(message, None)
        self._version, self._next_sequence = outcome.session.version, outcome.session.next_sequence
        self._removed_count = outcome.session.next_sequence - outcome.session.message_count

    def _next_save(self) -> _Save | None:
        self._dirty.clear()
        messages: list[str] = []
        amendments: list[str] = []
        bodies: dict[GrowingMessage, dict[str, Any]] = {}
        for message in self._messages:
            body, before = message.body(), self._saved.get(message)
            if body is None or body == before:
                continue
            bodies[message] = body
            if before is None:
                new = {"message_id": message.message_id, "role": "assistant"} | body
                messages.append(encode_message({k: v for k, v in new.items() if v != {}}, len(messages)))
            else:
                amendment = amendment_of(message.message_id, before, body)
                amendments.append(encode_object(amendment, "amendment"))
        counted = [message for message in self._messages if message.closed and message.usage is not None]
        usage = [
            # Not the completion's id: some servers give several completions the same.
            encode_object(m.usage.model_dump() | {"usage_id": m.message_id}, "usage")
            for m in counted
            if m.usage is not None
        ]
        if not bodies and not counted:
            return None
        arguments = SaveArguments(
            self.session_id,
            self._user_id,
            self._version,
            "{}",
            messages,
            amendments,
            usage,
            self.fence,
        )
        return _Save(arguments, bodies, counted)

    async def _write(self, call: Call[Result]) -> Result:
        self._check()
        try:
            return await self._run(call)
        except (StaleFence, SessionNotFound) as error:
            self._end(error)
            raise
