"""Calls of SQL functions, replaced where they are made."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

import pytest

from chatledger.postgres import functions

Made = Callable[..., Awaitable[Any]]
"""Makes a call, given a connection and the arguments of the function in :mod:`chatledger.postgres.functions`."""


def real_call(name: str) -> Made:
    """What makes the call of this name now."""
    function = getattr(functions, name)

    async def made(connection: Any, *arguments: Any, **named: Any) -> Any:
        return await function(*arguments, **named)(connection)

    return made


def replace_call(monkeypatch: pytest.MonkeyPatch, name: str, made: Made) -> None:
    """Let this make the calls of that name."""
    function = getattr(functions, name)

    def replaced(*arguments: Any, **named: Any) -> _Replaced:
        call = function(*arguments, **named)
        if len(call.arguments) == len(arguments):  # ids made for a call stay the same
            arguments = tuple(b if a is None else a for a, b in zip(arguments, call.arguments, strict=True))
        return _Replaced(call.arguments, lambda connection: made(connection, *arguments, **named))

    monkeypatch.setattr(functions, name, replaced)


@dataclass(frozen=True)
class _Replaced:
    arguments: tuple[Any, ...]
    make: Callable[[Any], Awaitable[Any]]

    async def __call__(self, connection: Any) -> Any:
        return await self.make(connection)
