"""Messages as the client has them; sql.py has them as its functions take them."""

from __future__ import annotations

from typing import Any

from chatledger import ChatMessage


def user(content: Any = "hi", **fields: Any) -> ChatMessage:
    return ChatMessage(role="user", content=content, **fields)


def call(call_id: str, name: str = "search") -> dict[str, Any]:
    """A call of a tool, which is the same JSON everywhere."""
    return {"id": call_id, "type": "function", "function": {"name": name, "arguments": "{}"}}
