"""The client: :class:`ChatLedger`."""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterable, Mapping, Sequence
from contextlib import AsyncExitStack, nullcontext
from datetime import timedelta
from typing import TYPE_CHECKING, Any, Self

import asyncpg

from chatledger.cache.link import SessionCache
from chatledger.cache.read_through import read_through
from chatledger.config import Settings
from chatledger.errors import ChatLedgerError, InvalidArgument
from chatledger.following.follower import Listener, SessionEvent, follow, listening_connection
from chatledger.models.header import SessionHeader, SessionPage, Usage
from chatledger.models.message import ChatMessage
from chatledger.models.receipts import AmendReceipt, AppendReceipt, IntegrityProblem, ToolCallReceipt, TruncateReceipt
from chatledger.models.session import ChatSession
from chatledger.postgres import functions
from chatledger.postgres.combining import Combiner
from chatledger.postgres.connections import Database, Result, close_pool, open_pool
from chatledger.postgres.encoding import clean_or_new_id, clean_text, encode_message, encode_object
from chatledger.postgres.migrations import migrate
from chatledger.saving import save_session
from chatledger.streams.lease import LeaseOptions
from chatledger.streams.stream import Stream

if TYPE_CHECKING:
    from chatledger.embedded import EmbeddedServers
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

    Every method that takes ``user_id`` answers for a session of another user as for one that is not there; None is a
    trusted caller. Besides what it names, every method raises :class:`DatabaseUnavailable` when Postgres cannot be
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
        self._database: Database | None = None
        # Of streams: on a connection of their own, so as not to wait for calls that wait for a lock.
        self._heartbeats: Database | None = None
        self._servers: EmbeddedServers | None = None
        self._redis_url = redis_url or self._settings.redis_url
        self._cache: SessionCache | None = None
        self._listener: Listener | None = None
        self._combiner: Combiner | None = None
        self._opening = asyncio.Lock()
        self._opened = AsyncExitStack()  # what close() closes, the last one first
        self._closed = False

    async def open(self) -> Self:
        """Get ready for calls; the first call does it too. An embedded database is started, and migrated.

        It is calls that connect: whether the database can be reached shows there. A ledger that was closed is opened
        anew only by this.
        """
        self._closed = False
        await self._open_database()
        return self

    async def _open_database(self) -> Database:
        if self._closed:
            raise ChatLedgerError("the ledger was closed", hint="Make calls before you close it, or open it again")
        async with self._opening:
            if self._database is None:
                self._database = await self._connect()
            return self._database

    async def _connect(self) -> Database:
        try:
            return await self._connected()
        except BaseException:
            await self._release()
            raise

    async def _connected(self) -> Database:
        source = self._given
        if source is None:
            from chatledger import embedded

            self._servers = await asyncio.to_thread(embedded.start, self._settings.data_dir)
            self._opened.push_async_callback(asyncio.to_thread, self._servers.close)
            source = await self._open_pool(self._servers.database_url)
            async with source.acquire() as connection:
                await migrate(connection)
            self._redis_url = self._redis_url or self._servers.redis_url
        elif isinstance(source, str):
            source = await self._open_pool(source)
        if self.database_url is not None:
            self._heartbeats = Database(await self._open_pool(self.database_url, size=1), self._settings)
        if not self._on_callers_connection:  # whose transaction each call belongs to, and nobody else sees
            self._combiner = Combiner(self._append)
            if self._redis_url is not None:
                self._cache = SessionCache(self._redis_url, cache_ttl=self._settings.cache_ttl)
                self._opened.push_async_callback(self._cache.close)
        return Database(source, self._settings)

    async def _open_pool(self, url: str, size: int | None = None) -> Pool:
        pool = await open_pool(url, self._settings, size=size)
        self._opened.push_async_callback(close_pool, pool)
        return pool

    async def close(self) -> None:
        """Close what this ledger opened; later calls are refused. Harmless when closed already.

        Calls under way have ten seconds to end.
        """
        self._closed = True
        async with self._opening:  # what is being opened is closed as well
            await self._release()

    async def _release(self) -> None:
        opened, self._opened = self._opened, AsyncExitStack()
        self._database = self._heartbeats = self._combiner = None
        self._servers = self._cache = self._listener = None
        await opened.aclose()  # all of it, also when this call is cancelled

    async def __aenter__(self) -> Self:
        return await self.open()

    async def __aexit__(self, *exc_info: object) -> None:
        await self.close()

    @property
    def database_url(self) -> str | None:
        """Where the database is; None on a pool or connection of the caller's, and before an embedded one started."""
        if self._servers is not None:
            return self._servers.database_url
        return self._given if isinstance(self._given, str) else None

    @property
    def _on_callers_connection(self) -> bool:
        return not isinstance(self._given, str | asyncpg.Pool | None)

    async def _run(self, call: Callable[[Connection], Awaitable[Result]], *, repeatable: bool = True) -> Result:
        database = self._database or await self._open_database()
        return await database.run(call, repeatable=repeatable)

    async def _run_apart(self, call: Callable[[Connection], Awaitable[Result]]) -> Result:
        await self._open_database()
        return await self._heartbeats.run(call) if self._heartbeats is not None else await self._run(call)

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
        """Create a session; the same id and owner again returns the session that is there.

        Args:
            session_id: The caller's id for it, up to 255 characters; generated when None.
            user_id: Who owns it; None: nobody, so that only trusted callers find it.
            title: What to call it.
            metadata: Anything of the caller's that JSON can express.
            status: A word of the caller's, to filter lists by.

        Raises:
            SessionNotFound: The id belongs to another user, or to a session that was deleted.
            InvalidArgument: An id or the metadata cannot be stored.
        """
        arguments = (
            clean_or_new_id(session_id),
            _clean(user_id),
            _clean(title),
            _encoded(metadata, "metadata"),
            clean_text(status),
        )
        return await self._run(lambda c: functions.create_session(c, *arguments))

    async def get_session(
        self, session_id: str, *, user_id: str | None = None, last: int | None = None, fresh: bool = False
    ) -> ChatSession | None:
        """Return a session with its messages, all of one moment; None when it is missing or not this user's.

        Args:
            session_id: Which one.
            user_id: Who asks.
            last: Only the last so many messages; some more where the first would be a tool result without its call.
            fresh: With all that is committed, also where ``cache_max_staleness`` allows less.

        Raises:
            InvalidArgument: ``last`` is below 1.
        """
        wanted, asking = clean_text(session_id), _clean(user_id)
        await self._open_database()
        if self._cache is not None and last is None:
            settings = self._settings.model_copy(update={"cache_max_staleness": 0.0}) if fresh else self._settings
            return await read_through(self._cache, self._run, wanted, asking, settings)
        return await self._run(lambda c: functions.read_session(c, wanted, asking, last))

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
        await self._open_database()
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
            InvalidArgument: The limit or the cursor is none.
        """
        arguments = (_clean(user_id), limit, _clean(cursor), _clean(title), _clean(status))
        return await self._run(lambda c: functions.list_sessions(c, *arguments))

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

        A call whose answer got lost is not tried again, since that could undo somebody's newer change.

        Args:
            session_id: Which one.
            user_id: Who asks.
            title: The new title; an empty one takes it away.
            only_if_empty: Set the title only while the session has none.
            metadata: Merged key by key; a key whose value is None is removed.
            pinned: Listed first.
            status: A word of the caller's.

        Raises:
            SessionNotFound: No such session.
            InvalidArgument: The title, the metadata or the status cannot be stored.
        """
        arguments = (
            clean_text(session_id),
            _clean(user_id),
            _clean(title),
            only_if_empty,
            _encoded(metadata, "metadata"),
            pinned,
            _clean(status),
        )
        return await self._run(lambda c: functions.update_session(c, *arguments), repeatable=False)

    async def delete_session(self, session_id: str, *, user_id: str | None = None) -> bool:
        """Delete a session for good; return whether there was one to delete.

        False also when a first try, whose answer got lost, had deleted it.

        Args:
            session_id: Which one.
            user_id: Who asks.

        Raises:
            InvalidArgument: An id is no string.
        """
        arguments = (clean_text(session_id), _clean(user_id))
        deleted = await self._run(lambda c: functions.delete_session(c, *arguments))
        if deleted and self._cache is not None:
            await self._cache.drop(arguments[0])
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
        """Branch a session: a new one with the same owner and a copy of the messages, numbered anew.

        Args:
            session_id: Which one.
            new_session_id: The fork's id; generated when None.
            at_sequence: The last message to copy; None: all.
            user_id: Who asks.
            title: The fork's title; None: the session's.

        Raises:
            SessionNotFound: No such session.
            SessionIdConflict: The new id is already used, and not by this very fork.
            InvalidArgument: The new id or the title cannot be stored, or the sequence is negative.
        """
        fork_id = clean_or_new_id(new_session_id)
        arguments = (clean_text(session_id), fork_id, at_sequence, _clean(user_id), _clean(title))
        return await self._run(lambda c: functions.fork_session(c, *arguments))

    async def record_usage(
        self, session_id: str, usage: Usage, *, usage_id: str | None = None, user_id: str | None = None
    ) -> SessionHeader:
        """Add token usage to a session, exactly once for each ``usage_id``; return the session with its totals.

        Args:
            session_id: Which one.
            usage: The tokens to add.
            usage_id: What makes it once, instead of the usage's own id: the completion's id, say.
            user_id: Who asks.

        Raises:
            SessionNotFound: No such session.
            UsageConflict: The id was recorded with other numbers.
            InvalidArgument: A number is negative.
        """
        record_id = clean_text(usage.usage_id if usage_id is None else usage_id)
        arguments = (clean_text(session_id), record_id, usage, _clean(user_id))
        return await self._run(lambda c: functions.record_usage(c, *arguments))

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
            user_id: Who asks.
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
            InvalidArgument: An id is no string, or a number none that Postgres takes.

        NUL characters and lone surrogates, which Postgres cannot store, are stored as U+FFFD.

        Calls for a session that come while another one is under way go together, in one call of the database; each is
        stored whole or refused on its own. (Not with ``expected_sequence`` or ``fence``.)
        """
        encoded = [encode_message(message, index) for index, message in enumerate(messages)]
        wanted, asking = clean_text(session_id), _clean(user_id)
        if self._database is None:
            await self._open_database()
        if self._combiner is not None and expected_sequence is None and fence is None:
            return await self._combiner.append(wanted, asking, encoded)
        return await self._run(
            lambda c: functions.append_messages(c, wanted, encoded, asking, expected_sequence, fence)
        )

    async def _append(self, session_id: str, user_id: str | None, messages: Sequence[str]) -> list[AppendReceipt]:
        return await self._run(lambda c: functions.append_messages(c, session_id, messages, user_id, None, None))

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
            user_id: Who asks.
            after: The first messages after this sequence, on to the last result of a tool group at the end.
                None: the last messages, back to the call of a tool group at the start.
            before: Only messages before this sequence.
            limit: How many; tool groups can make it more. None: all.

        Raises:
            SessionNotFound: No such session.
            InvalidArgument: The limit is below 1.
        """
        arguments = (clean_text(session_id), _clean(user_id), after, before, limit)
        return await self._run(lambda c: functions.get_messages(c, *arguments))

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
                there; a call whose answer got lost is then not tried again.
            user_id: Who asks.
            fence: The fence of the stream that writes.

        Raises:
            SessionNotFound, MessageNotFound: No such session or message.
            AmendConflict: It was amended since ``expected_version``; ``detail`` has both versions.
            InvalidMessage: The message would be one that cannot be stored.
            InvalidArgument: The patch is none.
            StaleFence: The stream's lease ran out.
        """
        arguments = (
            clean_text(session_id),
            clean_text(message_id),
            encode_object(patch, "patch"),
            expected_version,
            _clean(user_id),
            fence,
        )
        return await self._run(
            lambda c: functions.amend_message(c, *arguments), repeatable=expected_version is not None
        )

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
            user_id: Who asks.
            message_id: Id for the message, if one has to be made; generated when None.
            fence: The fence of the stream that writes.

        Raises:
            SessionNotFound: No such session.
            InvalidMessage: The tool call has no id or no function name.
            MessageIdConflict: ``message_id`` is needed, and used already by another message.
            InvalidArgument: The tool call is not JSON.
            StaleFence: The stream's lease ran out.
        """
        arguments = (
            clean_text(session_id),
            encode_object(tool_call, "tool_call"),
            _clean(user_id),
            clean_or_new_id(message_id),
            fence,
        )
        return await self._run(lambda c: functions.add_tool_call(c, *arguments))

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
            user_id: Who asks.
            expected_sequence: ``next_sequence`` of the session that the caller saw: refuses when somebody appended
                since. Without it, a call whose answer got lost is not tried again.
            fence: The fence of the stream that writes.

        Raises:
            SessionNotFound: No such session.
            SequenceConflict: Somebody appended since.
            InvalidArgument: The sequence is negative.
            StaleFence: The stream's lease ran out.
        """
        arguments = (clean_text(session_id), from_sequence, _clean(user_id), expected_sequence, fence)
        return await self._run(
            lambda c: functions.truncate_session(c, *arguments), repeatable=expected_sequence is not None
        )

    # Streams

    def stream(
        self,
        session_id: str,
        *,
        user_id: str | None = None,
        owner: str | None = None,
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
            user_id: Who asks.
            owner: Who streams, for people; by default host and process id.
            ttl: Seconds that the lease lasts without a renewal, up to a day; by default ``stream_ttl`` of the settings.
            wait: For how many seconds to wait while another stream holds the lease. None: not at all.
            force: Take the lease over; its holder's next write is refused.
            max_streams: At most so many live streams of the session's user at once; a session of nobody's has no limit.
            flush_interval: Seconds between two saves of the growing message; by default that of the settings.

        Raises:
            ChatLedgerError: The ledger is on a connection of the caller's, whose transaction no heartbeat can join.
            InvalidArgument: A time is no number, or an id no string.

        Entering raises:
            StreamBusy: Another stream holds the lease; ``owner`` and ``expires_at`` say whose and until when.
            TooManyStreams: The user has that many.
            SessionNotFound: No such session.
            InvalidArgument: A time or the owner is none.
        """
        if self._on_callers_connection:
            raise ChatLedgerError(
                "a stream needs a pool: its heartbeats cannot be part of the transaction on a caller's connection",
                hint="Use a ChatLedger on a URL or a pool for streams",
            )
        options = LeaseOptions(
            clean_text(session_id),
            _clean(user_id),
            clean_text(owner) if owner is not None else f"{socket.gethostname()}:{os.getpid()}",
            self._settings.stream_ttl if ttl is None else _seconds(ttl, "ttl"),
            0.0 if wait is None else _seconds(wait, "wait"),
            force,
            max_streams,
        )
        interval = (
            self._settings.flush_interval if flush_interval is None else _seconds(flush_interval, "flush_interval")
        )
        return Stream(self._run, self._run_apart, options, interval)

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
            session_id: Which one.
            after: The last sequence that the caller has; -1: none. What happened to earlier messages until now
                (amended, removed) is not told.
            user_id: Who asks.

        Raises:
            SessionNotFound: No such session.
            ChatLedgerError: The ledger was closed meanwhile; or it is on a connection of the caller's.
        """
        return follow(self._open_listener, clean_text(session_id), after, _clean(user_id))

    async def _open_listener(self) -> Listener:
        database = await self._open_database()
        if self._listener is None:
            if self._on_callers_connection:
                raise ChatLedgerError("following needs a ledger on a URL or a pool, not on a connection")
            source = self._settings.listen_url or self.database_url or self._given
            assert isinstance(source, str | asyncpg.Pool)
            self._listener = Listener(lambda: listening_connection(source), database, self._settings.follow_ttl)
            self._opened.push_async_callback(self._listener.close)
        return self._listener

    # For operators

    async def verify_session(self, session_id: str | None = None) -> list[IntegrityProblem]:
        """Check a stored session, or all, against the guarantees; return what is wrong: nothing, if all is well.

        Raises:
            SessionNotFound: No such session.
        """
        return await self._run(lambda c: functions.verify_session(c, _clean(session_id)))

    async def status(self) -> dict[str, str | None]:
        """Return health at a glance: releases, sizes, who waits."""
        return await self._run(functions.status)

    async def purge_sessions(self, older_than: timedelta, *, limit: int = 1000) -> int:
        """Remove a batch of sessions that nobody changed for so long; return how many. Call again until it is 0.

        Raises:
            InvalidArgument: The age is negative or the limit is none.
        """
        return await self._run(lambda c: functions.purge_sessions(c, older_than, limit))


def _clean(text: str | None) -> str | None:
    return None if text is None else clean_text(text)


_FOREVER = 1e9
"""Seconds: more than this, some timers and intervals do not take."""


def _seconds(given: float, argument: str) -> float:
    if not isinstance(given, int | float) or given != given:  # NaN; math.isnan does not take the largest integers
        raise InvalidArgument(f"{argument}: expected a number of seconds", detail={"argument": argument})
    return max(-_FOREVER, min(given, _FOREVER))


def _encoded(value: Mapping[str, Any] | None, argument: str) -> str | None:
    return None if value is None else encode_object(value, argument)
