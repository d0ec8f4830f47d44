"""langgraph-checkpoint-postgres: the messages of a graph's state."""

from __future__ import annotations

from typing import Any

from langchain_core.messages import AIMessage, HumanMessage
from langgraph.checkpoint.postgres.aio import AsyncPostgresSaver
from langgraph.graph import END, START, MessagesState, StateGraph
from psycopg.rows import dict_row
from psycopg_pool import AsyncConnectionPool


class Store:
    async def open(self, database_url: str, redis_url: str) -> None:
        options = {"autocommit": True, "prepare_threshold": 0, "row_factory": dict_row}
        self.pool = AsyncConnectionPool(database_url, min_size=16, max_size=16, open=False, kwargs=options)
        await self.pool.open()
        saver = AsyncPostgresSaver(self.pool)
        await saver.setup()
        graph = StateGraph(MessagesState)
        graph.add_node("node", lambda state: {"messages": []})
        graph.add_edge(START, "node")
        graph.add_edge("node", END)
        self.graph = graph.compile(checkpointer=saver)

    async def handle(self, session_id: str, *, first: bool) -> dict[str, Any]:
        return {"configurable": {"thread_id": session_id}}

    async def append(self, handle: dict[str, Any], batch: list[tuple[str, str]]) -> None:
        messages = [(HumanMessage if role == "user" else AIMessage)(text) for role, text in batch]
        await self.graph.aupdate_state(handle, {"messages": messages}, as_node="node")

    async def load(self, session_id: str) -> list[str]:
        state = await self.graph.aget_state({"configurable": {"thread_id": session_id}})
        return [message.content for message in state.values.get("messages", [])]

    async def close(self) -> None:
        await self.pool.close()
