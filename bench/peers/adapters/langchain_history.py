"""langchain-postgres: PostgresChatMessageHistory. It takes a connection, so each writer has one."""

from __future__ import annotations

import psycopg
from langchain_core.messages import AIMessage, HumanMessage
from langchain_postgres import PostgresChatMessageHistory

TABLE = "chat_history"


class Store:
    async def open(self, database_url: str, redis_url: str) -> None:
        self.url = database_url
        self.connections = [await psycopg.AsyncConnection.connect(database_url)]
        await PostgresChatMessageHistory.acreate_tables(self.connections[0], TABLE)

    async def handle(self, session_id: str, *, first: bool) -> PostgresChatMessageHistory:
        self.connections.append(await psycopg.AsyncConnection.connect(self.url))
        return PostgresChatMessageHistory(TABLE, session_id, async_connection=self.connections[-1])

    async def append(self, handle: PostgresChatMessageHistory, batch: list[tuple[str, str]]) -> None:
        await handle.aadd_messages([(HumanMessage if role == "user" else AIMessage)(text) for role, text in batch])

    async def load(self, session_id: str) -> list[str]:
        history = PostgresChatMessageHistory(TABLE, session_id, async_connection=self.connections[0])
        messages = await history.aget_messages()
        await self.connections[0].commit()
        return [message.content for message in messages]

    async def close(self) -> None:
        for connection in self.connections:
            await connection.close()
