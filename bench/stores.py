"""What is measured: three ways to append to the same Postgres."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol

from bench import naive
from chatledger import ChatLedger, ChatMessage

if TYPE_CHECKING:
    from chatledger.postgres.connections import Pool


class Store(Protocol):
    """A way to append a batch to a session."""

    name: str

    async def append(self, session_id: str, messages: Sequence[ChatMessage]) -> None:
        """Store a batch."""


class Chatledger:
    """The client as an application calls it: models in, receipts out."""

    def __init__(self, ledger: ChatLedger, name: str = "chatledger") -> None:
        self.ledger = ledger
        self.name = name

    async def append(self, session_id: str, messages: Sequence[ChatMessage]) -> None:
        await self.ledger.append_messages(session_id, messages)


class Floor:
    """What one would write by hand for an append and nothing else, in the same tables.

    One prepared statement with plain typed parameters: no idempotency, no validation, no JSON.
    """

    name = "floor"

    def __init__(self, pool: Pool) -> None:
        self._pool = pool

    async def append(self, session_id: str, messages: Sequence[ChatMessage]) -> None:
        async with self._pool.acquire() as connection:
            if len(messages) == 1:
                [one] = messages
                await connection.execute(
                    """
                    with session as (
                        update chatledger.sessions
                        set next_sequence = next_sequence + 1, version = version + 1, updated_at = clock_timestamp()
                        where id = $1
                        returning next_sequence - 1 as sequence, updated_at
                    )
                    insert into chatledger.messages (
                        session_id, sequence, message_id, role, content, version, created_at)
                    select $1, sequence, $2, $3, $4, 1, updated_at from session
                    """,
                    session_id,
                    one.message_id,
                    one.role,
                    one.content,
                )
            else:
                await connection.execute(
                    """
                    with session as (
                        update chatledger.sessions
                        set next_sequence = next_sequence + $2, version = version + 1, updated_at = clock_timestamp()
                        where id = $1
                        returning next_sequence - $2 as first, updated_at
                    )
                    insert into chatledger.messages (
                        session_id, sequence, message_id, role, content, version, created_at)
                    select $1, first + position::integer - 1, message_id, role, content, 1, updated_at
                    from session, unnest($3::text[], $4::text[], $5::text[]) with ordinality
                        as input (message_id, role, content, position)
                    """,
                    session_id,
                    len(messages),
                    [message.message_id for message in messages],
                    [message.role for message in messages],
                    [message.content for message in messages],
                )


class MaxPlusOne:
    """The way of most backends, with 5 retries: what collides more often is lost."""

    name = "MAX + 1"

    def __init__(self, pool: Pool) -> None:
        self._pool = pool
        self.lost = 0

    async def append(self, session_id: str, messages: Sequence[ChatMessage]) -> None:
        batch = tuple(message.model_dump(include={"message_id", "role", "content"}) for message in messages)
        try:
            await naive.append(self._pool, session_id, batch)
        except naive.BatchLost:
            self.lost += 1
