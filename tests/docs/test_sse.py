"""The example of docs/sse.md, on a real server, with a real HTTP client."""

from __future__ import annotations

import asyncio
import importlib.util
import json
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import asyncpg
import httpx
import pytest
import uvicorn

from chatledger import ChatLedger, ChatMessage

EXAMPLE = Path(__file__).parents[2] / "docs" / "examples" / "sse.py"
URL = "/sessions/s1/events"


@pytest.fixture
async def browser(database_url: str, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[httpx.AsyncClient]:
    """Ada's, on the example's server."""
    monkeypatch.setenv("CHATLEDGER_DATABASE_URL", database_url)
    spec = importlib.util.spec_from_file_location("sse", EXAMPLE)
    assert spec is not None
    assert spec.loader is not None
    example = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(example)

    config = uvicorn.Config(example.app, log_level="warning", ws="none", timeout_graceful_shutdown=1)
    server = uvicorn.Server(config)
    with socket.create_server(("127.0.0.1", 0)) as listening:
        serving = asyncio.create_task(server.serve(sockets=[listening]))
        base_url = f"http://127.0.0.1:{listening.getsockname()[1]}"
        async with httpx.AsyncClient(base_url=base_url, cookies={"user": "ada"}, timeout=30) as client:
            yield client
        server.should_exit = True
        await serving


class EventSource:
    """What a browser does: it keeps the last id, and sends it when it connects again."""

    def __init__(self, client: httpx.AsyncClient) -> None:
        self._client = client
        self.last_event_id: str | None = None

    @asynccontextmanager
    async def connected(self, url: str = URL) -> AsyncIterator[AsyncIterator[tuple[str, Any]]]:
        headers = {"Last-Event-ID": self.last_event_id} if self.last_event_id else {}
        async with self._client.stream("GET", url, headers=headers) as response:
            assert response.status_code == 200
            assert response.headers["content-type"].startswith("text/event-stream")
            yield self._events(response)

    async def _events(self, response: httpx.Response) -> AsyncIterator[tuple[str, Any]]:
        fields: dict[str, str] = {}
        async for line in response.aiter_lines():
            name, _, value = line.partition(": ")
            if name:
                fields[name] = value
            elif "event" in fields:
                self.last_event_id = fields.get("id", self.last_event_id)
                yield fields["event"], json.loads(fields["data"])
                fields = {}


def message(number: int) -> ChatMessage:
    return ChatMessage(role="user", content=f"{number}: two\nlines", message_id=str(number))


async def sequences(events: AsyncIterator[tuple[str, Any]], count: int) -> list[int]:
    taken = [await anext(events) for _ in range(count)]
    assert {kind for kind, _ in taken} == {"appended"}
    return [event["sequence"] for _, event in taken]


async def test_g5_browser_that_reconnects_gets_every_message_once_and_in_order(
    ledger: ChatLedger, browser: httpx.AsyncClient
) -> None:
    await ledger.create_session("s1", user_id="ada")
    await ledger.append_messages("s1", [message(number) for number in range(5)])
    source = EventSource(browser)
    got: list[int] = []
    async with source.connected() as events:
        got += await sequences(events, 3)
    for number in range(5, 9):
        await ledger.append_messages("s1", [message(number)])
    async with source.connected() as events:
        got += await sequences(events, 6)
        await ledger.append_messages("s1", [message(9)])
        got += await sequences(events, 1)
    async with source.connected() as events:
        await ledger.append_messages("s1", [message(10)])
        got += await sequences(events, 1)
    assert got == [*range(11)]


async def test_other_events_leave_the_place_alone(ledger: ChatLedger, browser: httpx.AsyncClient) -> None:
    await ledger.create_session("s1", user_id="ada")
    await ledger.append_messages("s1", [message(number) for number in range(3)])
    source = EventSource(browser)
    async with source.connected(f"{URL}?after=1") as events:
        assert await sequences(events, 1) == [2]
        await ledger.amend_message("s1", "0", {"content": "changed"})
        kind, event = await anext(events)
        assert (kind, event["message"]["content"], source.last_event_id) == ("amended", "changed", "2")
        await ledger.delete_session("s1")
        assert (await anext(events))[0] == "deleted"
        with pytest.raises(StopAsyncIteration):
            await anext(events)


async def test_nobody_follows_once_the_browser_is_gone(
    ledger: ChatLedger, browser: httpx.AsyncClient, connection: asyncpg.Connection[asyncpg.Record]
) -> None:
    await ledger.create_session("s1", user_id="ada")
    listening = "select count(*) from pg_stat_activity where datname = current_database() and query ~* '^(un)?listen'"
    async with asyncio.timeout(30):
        async with EventSource(browser).connected():
            while not await connection.fetchval(listening):
                await asyncio.sleep(0.005)
        while await connection.fetchval(listening):
            await asyncio.sleep(0.005)


async def test_g8_another_users_session_is_not_there(ledger: ChatLedger, browser: httpx.AsyncClient) -> None:
    await ledger.create_session("s1", user_id="bob")
    assert (await browser.get(URL)).status_code == 404
    assert (await browser.get("/sessions/unknown/events")).status_code == 404
    assert (await browser.get(URL, headers={"Last-Event-ID": "x"})).status_code == 400
    browser.cookies.clear()
    assert (await browser.get(URL)).status_code == 401
