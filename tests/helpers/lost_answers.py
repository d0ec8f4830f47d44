"""Connections that break before an answer arrives."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import asyncpg
import pytest

from tests.helpers.calls import real_call, replace_call


@asynccontextmanager
async def answers_lost(
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    times: int = 1,
    error: type[asyncpg.PostgresError] = asyncpg.ConnectionDoesNotExistError,
    before: bool = False,
) -> AsyncIterator[list[str]]:
    """The first calls of an SQL function are committed, and their connection breaks before the answer arrives.

    Or they are not, and it breaks before the call arrives, which looks the same from here.
    """
    real = real_call(name)
    lost: list[str] = []

    async def call(connection: Any, *arguments: Any, **named: Any) -> Any:
        answer = None if before and len(lost) < times else await real(connection, *arguments, **named)
        if len(lost) < times:
            lost.append(name)
            connection.terminate()
            raise error("connection was closed in the middle of operation")
        return answer

    with monkeypatch.context() as patch:
        replace_call(patch, name, call)
        yield lost
