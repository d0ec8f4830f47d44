"""Chat stores for Postgres side by side, each called as its makers mean it to be; in adapters, a file each."""

from __future__ import annotations

from dataclasses import dataclass

TITLES = {
    "append": "Stores: appends of 10",
    "load": "Stores: loads of 2,000",
    "concurrent": "Stores: concurrent appends",
}
ROWS = {
    "append": "10 messages, one writer",
    "load": "2,000 messages",
    "concurrent": "one session, 16 writers, 20 batches of 5 each",
}
UNITS = {"append": "ms", "load": "ms", "concurrent": "µs a message that is there afterwards"}


@dataclass(frozen=True)
class Peer:
    """A store; its requirements go into an environment of its own, none: it runs in ours."""

    name: str
    adapter: str
    requirements: tuple[str, ...] = ()
    python: tuple[int, int] = (3, 11)
    by_hand: bool = False
    """It is no store, but what one would write without one."""


_OPENAI_AGENTS = ("openai-agents[sqlalchemy,redis]==0.24.0", "asyncpg", "greenlet")

PEERS = (
    Peer("chatledger", "chatledger_client"),
    Peer("floor", "floor", by_hand=True),
    Peer("MAX + 1, 5 retries", "max_plus_one", by_hand=True),
    Peer("MAX + 1 under a Redis lock", "max_plus_one_locked", by_hand=True),
    Peer("openai-agents SQLAlchemySession", "openai_agents", _OPENAI_AGENTS),
    Peer("openai-agents RedisSession", "openai_agents_redis", _OPENAI_AGENTS),
    Peer("langchain-postgres", "langchain_history", ("langchain-postgres==0.0.19", "psycopg[binary]")),
    Peer(
        "langgraph-checkpoint-postgres",
        "langgraph_checkpoint",
        ("langgraph", "langgraph-checkpoint-postgres==3.2.0", "psycopg[binary,pool]"),
    ),
    Peer(
        "llama-index chat store",
        "llama_index_store",
        ("llama-index-storage-chat-store-postgres==0.5.0", "psycopg[binary]", "greenlet"),
    ),
    Peer("google-adk", "google_adk", ("google-adk==2.13.0", "sqlalchemy", "greenlet", "asyncpg")),
    Peer(
        "community-agent-framework-postgres",
        "agent_framework_history",
        ("community-agent-framework-postgres==0.1.2",),
        python=(3, 12),
    ),
    Peer("pya-memory", "pya_memory_store", ("pya-memory[postgres]==0.0.1",)),
    Peer("agno", "agno_runs", ("agno==3.1.10", "sqlalchemy", "greenlet", "asyncpg")),
)
