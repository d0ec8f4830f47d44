"""The client: :class:`ChatLedger`."""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterable, Mapping
from contextlib import nullcontext
from datetime import timedelta
from typing import TYPE_CHECKING, Any, Self

import asyncpg

from chatledger.cache.read_through import read_through
from chatledger.config import Settings
from chatledger.errors import ChatLedgerError, InvalidArgument
from chatledger.following.events import SessionEvent
from chatledger.following.follower import follow
from chatledger.following.listener import Listener
from chatledger.models.header import SessionHeader, SessionPage, Usage
from chatledger.models.message import ChatMessage
from chatledger.models.receipts import AmendReceipt, AppendReceipt, IntegrityProblem, ToolCallReceipt, TruncateReceipt
from chatledger.models.session import ChatSession
from chatledger.postgres import functions
from chatledger.postgres.encoding import clean_text, encode_messages
from chatledger.postgres.functions import Result
from chatledger.resources import Resources
from chatledger.saving import save_session
from chatledger.streams.lease import LeaseOptions
from chatledger.streams.stream import Stream

if TYPE_CHECKING:
    from chatledger.postgres.connections import Pool
    from chatledger.postgres.functions import Connection


class ChatLedger:
    """A ledger of conversations in Postgres.

    Example:
        >>> async with ChatLedger("postgresql://localhost/app") as ledger:
        ...     session = await ledger.create_session(user_id="u1")
        ...     await ledger.append_messages(session.session_id, [ChatMessage(role="user", content="hi")])

    Args:
        database: A URL; or a pool or connection of the caller's, which stays the caller's to close. On a connection
            every call joins the transaction that is open there, so that messages and business rows commit together.
            Without one, the URL from ``CHATLEDGER_DATABASE_URL``; without that, an embedded Postgres.
        redis_url: For the session cache; without one, that from ``CHATLEDGER_REDIS_URL``; without that, no cache. On a
            connection of the caller's there is none, since others must not see what is not committed.
        settings: Instead of those from the environment.

    Every method that takes ``user_id`` treats another user's session as missing; None skips that check, for trusted
    callers. Besides what it names, every method raises :class:`DatabaseUnavailable` when Postgres cannot be
    reached until the retry deadline, :class:`MigrationError` when the database has no ledger, and asyncpg's own errors
    for the rest (a missing permission, a full disk, a time limit of Postgres's, the loss of a caller's connection). A
    call that was cancelled may have been committed; making it again with the same ids is safe.
    """

    def __init__(
        self,
        database: str | Pool | Connection | None = None,
        redis_url: str | None = None,
        *,
        settings: Settings | None = None,
    ) -> None:
        self._settings = settings or Settings()
        self._given = database or self._settings.database_url
        self._redis_url = redis_url or self._settings.redis_url
        self._resources: Resources | None = None
        self._opening = asyncio.Lock()
        self._closed = False

    async def open(self) -> Self:
        """Get ready for calls; the first call does it too. An embedded database is started, and migrated.

        Calls connect: whether the database can be reached shows there. Only this opens a ledger that was closed.
        """
        self._closed = False
        await self._open()
        return self

    async def _open(self) -> Resources:
        if self._closed:
            raise ChatLedgerError("the ledger was closed", hint="Make calls before you close it, or open it again")
        async with self._opening:
            if self._resources is None:
                self._resources = await Resources.open(self._given, self._redis_url, self._settings)
            return self._resources

    async def close(self) -> None:
        """Close what this ledger opened; later calls are refused. Harmless when closed already.

        Calls under way have ten seconds to end.
        """
        self._closed = True
        async with self._opening:  # what is being opened is closed as well
            resources, self._resources = self._resources, None
            if resources is not None:
                await resources.close()

    async def __aenter__(self) -> Self:
        return await self.open()

    async def __aexit__(self, *exc_info: object) -> None:
        await self.close()

    @property
    def database_url(self) -> str | None:
        """Where the database is; None on a pool or connection of the caller's, and before an embedded one started."""
        if self._resources is not None:
            return self._resources.database_url
        return self._given if isinstance(self._given, str) else None

    @property
    def _on_callers_connection(self) -> bool:
        return not isinstance(self._given, str | asyncpg.Pool | None)

    async def _run(self, call: Callable[[Connection], Awaitable[Result]], *, repeatable: bool = True) -> Result:
        return await (self._resources or await self._open()).run(call, repeatable=repeatable)

    async def _run_heartbeat(self, call: Callable[[Connection], Awaitable[Result]]) -> Result:
        return await (self._resources or await self._open()).heartbeats.run(call)

    # Sessions

    async def create_session(
        self,
        session_id: str | None = None,
        *,
        user_id: str | None = None,
        title: str | None = None,
        metadata: Mapping[str, Any] | None = None,
        status: str = "active",
    ) -> SessionHeader:
        """Create a session; the same id and user again returns the session that is there.

        Args:
            session_id: The caller's id for it, up to 255 characters; generated when None.
            user_id: Whose it is; None: nobody's, so that only trusted callers find it.
            title: What to call it.
            metadata: Anything of the caller's that JSON can express.
            status: A word of the caller's, to filter lists by.

        Raises:
            SessionNotFound: The id belongs to another user, or to a session that was deleted.
            InvalidArgument: An id or the metadata cannot be stored.
        """
        return await self._run(functions.create_session(session_id, user_id, title, metadata, status))

    async def get_session(
        self, session_id: str, *, user_id: str | None = None, last: int | None = None
    ) -> ChatSession | None:
        """Return a session with its messages, all of one moment; None when it is missing or not this user's.

        Args:
            session_id: The session.
            user_id: Only if the session belongs to this user; None skips the check (a trusted caller).
            last: Only the last so many messages; some more where the first would be a tool result without its call.

        Raises:
            InvalidArgument: ``last`` is below 1.
        """
        call = functions.read_session(session_id, user_id, last)
        resources = self._resources or await self._open()
        if resources.cache is None or last is not None:
            return await self._run(call)
        min_messages = self._settings.cache_min_messages
        return await read_through(resources.cache, self._run, clean_text(session_id), user_id, min_messages)

    async def save_session(self, session: ChatSession, *, fence: int | None = None) -> ChatSession:
        """Save what the caller changed in its copy since it loaded or saved it, in one call: whole or not at all.

        Only the changes are sent, so any number of tasks may hold copies of a session, or share one, and save them: new
        messages are appended in the order of the list, amendments and usage are applied. A title, a pin, a status or a
        key of the metadata that somebody else changed since stays as they left it, and the copy takes it over; other
        changes of theirs show when the session is loaded again.

        After a call that was cancelled or raised :class:`DatabaseUnavailable` its changes may be stored or not. Save
        the same object again: first these are sent once more, in a call of their own, then what was changed since.

        Args:
            session: The copy. A new one (:meth:`ChatSession.new`) is created.
            fence: The fence of the stream that writes.

        Returns:
            The same object, with the sequence and the time of every message that was saved.

        Raises:
            SessionNotFound: It was saved once and is gone, or is another user's; nothing is stored.
            AmendConflict: Somebody else changed the same field of a message; nothing is stored. Load the session again
                and decide.
            MessageNotFound: A message that was changed here was removed by somebody else.
            InvalidMessage: A message cannot be stored, or the role of a stored one was changed; ``index`` is the
                message's place in ``session.messages``.
            MessageIdConflict: A new message's id is stored, or in the list twice, with another body;
                ``detail["index"]`` as ``index`` above.
            InvalidArgument: The header or the usage cannot be stored: a number is negative, say.
            UsageConflict, StaleFence: As for the single calls.
        """
        await self._open()
        # On a caller's connection nobody waits: its open transaction may be what the one in front of us waits for.
        async with nullcontext() if self._on_callers_connection else session._saves.turn():
            await save_session(self._run, session, fence)
        return session

    async def list_sessions(
        self,
        user_id: str | None,
        *,
        limit: int = 50,
        cursor: str | None = None,
        title: str | None = None,
        status: str | None = None,
    ) -> SessionPage:
        """Return a page of a user's sessions: pinned first, then the last changed first.

        Args:
            user_id: Whose; None: everybody's.
            limit: How many, up to 1,000.
            cursor: The ``cursor`` of the page before.
            title: Only titles that contain this, in upper or lower case.
            status: Only sessions with this status.

        Raises:
            InvalidArgument: The limit or the cursor is invalid.
        """
        return await self._run(functions.list_sessions(user_id, limit, cursor, title, status))

    async def update_session(
        self,
        session_id: str,
        *,
        user_id: str | None = None,
        title: str | None = None,
        only_if_empty: bool = False,
        metadata: Mapping[str, Any] | None = None,
        pinned: bool | None = None,
        status: str | None = None,
    ) -> SessionHeader:
        """Change what is given, leave what is None; return the session as it is then.

        A call whose outcome is unknown is not tried again, since that could undo somebody's newer change.

        Args:
            session_id: The session.
            user_id: Only if the session belongs to this user; None skips the check (a trusted caller).
            title: The new title; an empty one takes it away.
            only_if_empty: Set the title only while the session has none.
            metadata: Merged key by key; a key whose value is None is removed.
            pinned: Listed first.
            status: A word of the caller's.

        Raises:
            SessionNotFound: No such session.
            InvalidArgument: The title, the metadata or the status cannot be stored.
        """
        call = functions.update_session(session_id, user_id, title, only_if_empty, metadata, pinned, status)
        return await self._run(call, repeatable=False)

    async def delete_session(self, session_id: str, *, user_id: str | None = None) -> bool:
        """Delete a session for good; return whether there was one to delete.

        False also when a first try, whose outcome was unknown, had deleted it.

        Args:
            session_id: The session.
            user_id: Only if the session belongs to this user; None skips the check (a trusted caller).

        Raises:
            InvalidArgument: An id is not a string.
        """
        deleted = await self._run(functions.delete_session(session_id, user_id))
        if deleted and self._resources is not None and self._resources.cache is not None:
            await self._resources.cache.drop(clean_text(session_id))
        return deleted

    async def fork_session(
        self,
        session_id: str,
        new_session_id: str | None = None,
        *,
        at_sequence: int | None = None,
        user_id: str | None = None,
        title: str | None = None,
    ) -> SessionHeader:
        """Branch a session: a new one with the same user and a copy of the messages, numbered anew.

        Args:
            session_id: The session.
            new_session_id: The fork's id; generated when None.
            at_sequence: The last message to copy; None: all.
            user_id: Only if the session belongs to this user; None skips the check (a trusted caller).
            title: The fork's title; None: the session's.

        Raises:
            SessionNotFound: No such session.
            SessionIdConflict: The new id is already used, and not by this very fork.
            InvalidArgument: The new id or the title cannot be stored, or the sequence is negative.
        """
        return await self._run(functions.fork_session(session_id, new_session_id, at_sequence, user_id, title))

    async def record_usage(
        self, session_id: str, usage: Usage, *, usage_id: str | None = None, user_id: str | None = None
    ) -> SessionHeader:
        """Add token usage to a session, exactly once for each ``usage_id``; return the session with its totals.

        Args:
            session_id: The session.
            usage: The tokens to add.
            usage_id: What makes it once, instead of the usage's own id: the completion's id, say.
            user_id: Only if the session belongs to this user; None skips the check (a trusted caller).

        Raises:
            SessionNotFound: No such session.
            UsageConflict: The id was recorded with other numbers.
            InvalidArgument: A number is negative.
        """
        record_id = usage.usage_id if usage_id is None else usage_id
        return await self._run(functions.record_usage(session_id, record_id, usage, user_id))

    # Messages

    async def append_messages(
        self,
        session_id: str,
        messages: Iterable[ChatMessage | Mapping[str, Any]],
        *,
        user_id: str | None = None,
        expected_sequence: int | None = None,
        fence: int | None = None,
    ) -> list[AppendReceipt]:
        """Append a batch: whole or not at all, on consecutive sequences, each message exactly once.

        Args:
            session_id: The session; it must exist.
            messages: Messages, or mappings in OpenAI's chat format. One without a ``message_id`` gets one here, so that
                retries inside this call are safe; a mapping that is passed a second time is a new message.
            user_id: Only if the session belongs to this user; None skips the check (a trusted caller).
            expected_sequence: Append only if the session's next sequence is this.
            fence: The fence of the stream that writes.

        Returns:
            Where each message is, in the order they were given.

        Raises:
            SessionNotFound: No such session.
            InvalidMessage: A message cannot be stored; nothing of the batch was.
            MessageIdConflict: An id is stored with another body.
            SequenceConflict: The session's next sequence is not the expected one.
            StaleFence: The stream's lease ran out.
            InvalidArgument: An id is not a string, or a number is too large for Postgres.

        NUL characters and lone surrogates, which Postgres cannot store, are stored as U+FFFD.

        Calls for a session that come while another one is under way go together, in one call of the database; each is
        stored whole or refused on its own. (Not with ``expected_sequence`` or ``fence``.)
        """
        call = functions.append_messages(session_id, encode_messages(messages), user_id, expected_sequence, fence)
        resources = self._resources or await self._open()
        if resources.combiner is not None and expected_sequence is None and fence is None:
            return await resources.combiner.append(call)
        return await resources.run(call)

    async def get_messages(
        self,
        session_id: str,
        *,
        user_id: str | None = None,
        after: int | None = None,
        before: int | None = None,
        limit: int | None = 100,
    ) -> list[ChatMessage]:
        """Return a page of messages in order; it never starts inside a tool group.

        Args:
            session_id: The session.
            user_id: Only if the session belongs to this user; None skips the check (a trusted caller).
            after: The first messages after this sequence, on to the last result of a tool group at the end.
                None: the last messages, back to the call of a tool group at the start.
            before: Only messages before this sequence.
            limit: How many; tool groups can make it more. None: all.

        Raises:
            SessionNotFound: No such session.
            InvalidArgument: The limit is below 1.
        """
        return await self._run(functions.get_messages(session_id, user_id, after, before, limit))

    async def amend_message(
        self,
        session_id: str,
        message_id: str,
        patch: Mapping[str, Any],
        *,
        expected_version: int | None = None,
        user_id: str | None = None,
        fence: int | None = None,
    ) -> AmendReceipt:
        """Change a stored message.

        Args:
            session_id: The session.
            message_id: The message.
            patch: The fields to set; a field given as None is removed, ``metadata`` is merged key by key. ``role`` and
                ``message_id`` cannot change.
            expected_version: ``version`` of the session at which the caller read the message. None: amend whatever is
                there; a call whose outcome is unknown is then not tried again.
            user_id: Only if the session belongs to this user; None skips the check (a trusted caller).
            fence: The fence of the stream that writes.

        Raises:
            SessionNotFound, MessageNotFound: No such session or message.
            AmendConflict: It was amended since ``expected_version``; ``detail`` has both versions.
            InvalidMessage: The message would be one that cannot be stored.
            InvalidArgument: The patch is not a JSON object.
            StaleFence: The stream's lease ran out.
        """
        call = functions.amend_message(session_id, message_id, patch, expected_version, user_id, fence)
        return await self._run(call, repeatable=expected_version is not None)

    async def add_tool_call(
        self,
        session_id: str,
        tool_call: Mapping[str, Any],
        *,
        user_id: str | None = None,
        message_id: str | None = None,
        fence: int | None = None,
    ) -> ToolCallReceipt:
        """Attach a tool call to the current turn's assistant message, exactly once for each tool call id.

        A user message is the boundary of a turn; a turn without an assistant message gets one, with empty content.

        Args:
            session_id: The session.
            tool_call: In OpenAI's format: ``{"id": …, "type": "function", "function": {"name": …, "arguments": …}}``.
            user_id: Only if the session belongs to this user; None skips the check (a trusted caller).
            message_id: Id for the message, if one has to be made; generated when None.
            fence: The fence of the stream that writes.

        Raises:
            SessionNotFound: No such session.
            InvalidMessage: The tool call has no id or no function name.
            MessageIdConflict: ``message_id`` is needed, and used already by another message.
            InvalidArgument: The tool call is not JSON.
            StaleFence: The stream's lease ran out.
        """
        return await self._run(functions.add_tool_call(session_id, tool_call, user_id, message_id, fence))

    async def truncate_session(
        self,
        session_id: str,
        from_sequence: int,
        *,
        user_id: str | None = None,
        expected_sequence: int | None = None,
        fence: int | None = None,
    ) -> TruncateReceipt:
        """Remove the messages from a sequence on, for "edit and regenerate". Their numbers are not used again.

        Args:
            session_id: The session.
            from_sequence: The first message to remove.
            user_id: Only if the session belongs to this user; None skips the check (a trusted caller).
            expected_sequence: ``next_sequence`` of the session that the caller saw: refuses when somebody appended
                since. Without it, a call whose outcome is unknown is not tried again.
            fence: The fence of the stream that writes.

        Raises:
            SessionNotFound: No such session.
            SequenceConflict: Somebody appended since.
            InvalidArgument: The sequence is negative.
            StaleFence: The stream's lease ran out.
        """
        call = functions.truncate_session(session_id, from_sequence, user_id, expected_sequence, fence)
        return await self._run(call, repeatable=expected_sequence is not None)

    # Streams

    def stream(
        self,
        session_id: str,
        *,
        user_id: str | None = None,
        holder: str | None = None,
        ttl: float | None = None,
        wait: float | None = None,
        force: bool = False,
        max_streams: int | None = None,
        flush_interval: float | None = None,
    ) -> Stream:
        """Hold the session's one stream: at most one at a time, in all processes; save an answer while it grows.

        Example:
            >>> async with ledger.stream(session_id, user_id="u1") as stream:
            ...     await stream.append({"role": "user", "content": "Tell me a story."})
            ...     async for chunk in await client.chat.completions.create(
            ...         model="gpt-5", messages=messages, stream=True, stream_options={"include_usage": True}
            ...     ):
            ...         await stream.feed(chunk)

        Entering takes a lease in Postgres. A heartbeat renews it three times as often as it would run out, on a
        connection of its own (on a pool of the caller's, on one of that). Leaving saves the rest and gives it back; so
        does an exception, or a cancellation, as far as Postgres takes it within seconds. A process that was killed
        keeps the lease until it runs out; its next write is refused, should it wake up after all.

        When the lease is lost, the task that entered is cancelled, and leaving raises :class:`StaleFence` in place of
        that cancellation, as :func:`asyncio.timeout` does it; ``stream.lost`` is then true. In the same way leaving
        raises what else the ledger refuses of the growing message: :class:`AmendConflict`, when somebody else changed
        its text meanwhile, which stays as they left it; :class:`MessageNotFound`, when they truncated it away.

        The growing message is one row, appended with the first text and amended at most every ``flush_interval``. It
        has ``{"interrupted": true}`` in its metadata until the completion is complete, so an answer that was cut off,
        in whatever way, is marked. Usage that the completion tells is added to the session's, once for each message.

        Others append to the session and add tool calls to the growing message meanwhile, without the lease.

        Args:
            session_id: The session; it must exist.
            user_id: Only if the session belongs to this user; None skips the check (a trusted caller).
            holder: Who streams, for people; by default host and process id.
            ttl: Seconds that the lease lasts without a renewal, up to a day; by default ``stream_ttl`` of the settings.
            wait: For how many seconds to wait while another stream holds the lease. None: not at all.
            force: Take the lease over; its holder's next write is refused.
            max_streams: At most so many live streams of the session's user at once; a session of nobody's has no limit.
            flush_interval: Seconds between two saves of the growing message; by default that of the settings.

        Raises:
            ChatLedgerError: The ledger is on a connection of the caller's, whose transaction no heartbeat can join.
            InvalidArgument: A time is not a number, or an id is not a string.

        Entering raises:
            StreamBusy: Another stream holds the lease; ``holder`` and ``expires_at`` say whose and until when.
            TooManyStreams: The user has that many.
            SessionNotFound: No such session.
            InvalidArgument: A time or the holder is invalid.
        """
        if self._on_callers_connection:
            raise ChatLedgerError(
                "a stream needs a pool: its heartbeats cannot be part of the transaction on a caller's connection",
                hint="Use a ChatLedger on a URL or a pool for streams",
            )
        options = LeaseOptions(
            clean_text(session_id),
            None if user_id is None else clean_text(user_id),
            clean_text(holder) if holder is not None else f"{socket.gethostname()}:{os.getpid()}",
            self._settings.stream_ttl if ttl is None else _seconds(ttl, "ttl"),
            0.0 if wait is None else _seconds(wait, "wait"),
            force,
            max_streams,
        )
        interval = (
            self._settings.flush_interval if flush_interval is None else _seconds(flush_interval, "flush_interval")
        )
        return Stream(self._run, self._run_heartbeat, options, interval)

    # Following

    def follow(
        self, session_id: str, *, after: int = -1, user_id: str | None = None
    ) -> AsyncGenerator[SessionEvent, None]:
        """Yield a session's messages after a sequence, each once and in order, then what happens, as it is committed.

        It goes on until the session is deleted: through lost notifications, lost connections and restarts of Postgres,
        however long they take. Only the first look fails like any other call. Leave the loop when you like; to go on
        later, pass the sequence of the last message that you had. A message that was amended before it was yielded
        comes once, as it is now.

        All followers of a ledger share one connection to LISTEN on, besides the pool; on a pool of the caller's it is
        one of the pool's. Where notifications do not arrive, as through pgbouncer's transaction pooling, followers
        poll, and the log (``chatledger.follow``) says so; ``listen_url`` in the settings names another way to Postgres.

        Example:
            >>> async for event in ledger.follow(session.session_id, after=last_seen):
            ...     if event.kind == "appended":
            ...         print(event.sequence, event.message.content)

        Args:
            session_id: The session.
            after: The last sequence that the caller has; -1: none. What happened to earlier messages until now
                (amended, removed) is not told.
            user_id: Only if the session belongs to this user; None skips the check (a trusted caller).

        Raises:
            SessionNotFound: No such session.
            ChatLedgerError: The ledger was closed meanwhile; or it is on a connection of the caller's.
        """
        return follow(
            self._open_listener, clean_text(session_id), after, None if user_id is None else clean_text(user_id)
        )

    async def _open_listener(self) -> Listener:
        return await (self._resources or await self._open()).listener()

    # For operators

    async def verify_session(self, session_id: str | None = None) -> list[IntegrityProblem]:
        """Check a stored session, or all, against the guarantees; return what is wrong: nothing, if all is well.

        Raises:
            SessionNotFound: No such session.
        """
        return await self._run(functions.verify_session(session_id))

    async def status(self) -> dict[str, str | None]:
        """Return health at a glance: releases, sizes, who waits."""
        return await self._run(functions.status())

    async def purge_sessions(self, older_than: timedelta, *, limit: int = 1000) -> int:
        """Remove a batch of sessions that nobody changed for so long; return how many. Call again until it is 0.

        Raises:
            InvalidArgument: The age is negative, or the limit is invalid.
        """
        return await self._run(functions.purge_sessions(older_than, limit))


_FOREVER = 1e9
"""Seconds: more than this, some timers and intervals do not take."""


def _seconds(given: float, argument: str) -> float:
    if not isinstance(given, int | float) or given != given:  # NaN; math.isnan does not take the largest integers
        raise InvalidArgument(f"{argument}: expected a number of seconds", detail={"argument": argument})
    return max(-_FOREVER, min(given, _FOREVER))
