"""Commands on sessions: list, show, follow, verify."""

from __future__ import annotations

import asyncio
import dataclasses
import json
import signal
from contextlib import suppress
from typing import Annotated, Any

import typer
from rich.console import Group
from rich.markup import escape
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from chatledger.cli.common import FOUND_WRONG, Json, app, errors, output, printable, run
from chatledger.errors import SessionNotFound
from chatledger.following.events import SessionEvent
from chatledger.ledger import ChatLedger
from chatledger.models.message import ChatMessage
from chatledger.models.session import ChatSession

_COLOURS = {"user": "cyan", "assistant": "green", "tool": "yellow", "function": "yellow"}


@app.command("list")
def list_command(
    user: Annotated[str | None, typer.Option(help="Only this user's.")] = None,
    title: Annotated[str | None, typer.Option(help="Only titles that contain this.")] = None,
    limit: Annotated[int, typer.Option(min=1, max=1000, help="How many.")] = 20,
    as_json: Json = False,
) -> None:
    """List sessions: pinned first, then the last changed first."""

    async def work(ledger: ChatLedger) -> None:
        page = await ledger.list_sessions(user, title=title, limit=limit)
        if as_json:
            for session in page.sessions:
                typer.echo(session.model_dump_json())
            return
        table = Table("session", "user", "title", "messages", "updated", box=None)
        for session in page.sessions:
            name = ("* " if session.pinned else "") + (session.title or "")
            table.add_row(
                _escaped(session.session_id),
                _escaped(session.user_id or ""),
                _escaped(name),
                f"{session.message_count:,}",
                f"{session.updated_at:%Y-%m-%d %H:%M}",
            )
        output.print(table)
        if page.cursor is not None:
            errors.print(f"the first {limit}; --limit shows more", highlight=False)

    run(work)


@app.command()
def show(
    session_id: str,
    last: Annotated[int | None, typer.Option(min=1, help="Only the last so many messages.")] = None,
    as_json: Json = False,
) -> None:
    """Print a conversation."""

    async def work(ledger: ChatLedger) -> int | None:
        session = await ledger.get_session(session_id, last=last)
        if session is None:
            return _not_found(session_id)
        if as_json:
            typer.echo(session.model_dump_json())
        else:
            _print_session(session)
        return None

    run(work)


def _not_found(session_id: str) -> int:
    errors.print(f'[bold red]error:[/] session "{_escaped(session_id)}" not found', highlight=False)
    return FOUND_WRONG


@app.command()
def follow(
    session_id: str,
    after: Annotated[int, typer.Option(min=-1, help="Only messages after this sequence.")] = -1,
    as_json: Json = False,
) -> None:
    """Print a conversation, and go on as it goes on, until Ctrl-C or until it is deleted."""

    async def work(ledger: ChatLedger) -> int | None:
        async def print_events() -> None:
            async for event in ledger.follow(session_id, after=after):
                if as_json:
                    typer.echo(event.model_dump_json())
                else:
                    output.print(_shown(event))

        printing = asyncio.create_task(print_events())
        for signum in (signal.SIGINT, signal.SIGTERM):
            asyncio.get_running_loop().add_signal_handler(signum, printing.cancel)
        try:
            with suppress(asyncio.CancelledError):
                await printing
        except SessionNotFound:
            return _not_found(session_id)
        return None

    run(work)


def _shown(event: SessionEvent) -> Panel | Text:
    if event.message is not None:
        return _panel(event.message)
    if event.kind == "truncated":
        return Text(f"messages from {event.sequence} on were removed", style="dim")
    if event.kind == "deleted":
        return Text("the session was deleted", style="dim")
    session = event.session
    line = f"{session.title or session.session_id}: {session.status}, {session.total_usage.total_tokens:,} tokens"
    return Text(printable(line), style="dim")


def _escaped(text: str) -> str:
    return escape(printable(text))


def _print_session(session: ChatSession) -> None:
    facts = [f"user {session.user_id}" if session.user_id else "no user", f"{session.message_count} messages"]
    if session.total_usage.total_tokens:
        facts.append(f"{session.total_usage.total_tokens:,} tokens")
    output.print(
        f"[bold]{_escaped(session.title or session.session_id)}[/]  {_escaped(', '.join(facts))}", highlight=False
    )
    for message in session.messages:
        output.print(_panel(message))


def _panel(message: ChatMessage) -> Panel:
    parts: list[Any] = []
    if isinstance(message.content, list):
        parts += [Text(printable(str(part.get("text") or f"[{part.get('type', 'part')}]"))) for part in message.content]
    elif message.content:
        parts.append(Text(printable(message.content)))
    if message.refusal:
        parts.append(Text(printable(message.refusal), style="italic"))
    for call in message.tool_calls or []:
        function = call.get("function") or call.get("custom") or {}
        called = f"→ {function.get('name')}({function.get('arguments', function.get('input', ''))})"
        parts.append(Text(printable(called), style="bold"))
    title = f"{message.sequence}  {message.role}" + (f"  {message.name}" if message.name else "")
    return Panel(
        Group(*parts),
        title=_escaped(title),
        title_align="left",
        subtitle=f"{message.created_at:%Y-%m-%d %H:%M:%S}" + ("  amended" if message.amended_version else ""),
        subtitle_align="right",
        border_style=_COLOURS.get(message.role, "dim"),
    )


@app.command()
def verify(
    session_id: Annotated[str | None, typer.Argument(help="Without one, every session.")] = None, as_json: Json = False
) -> None:
    """Check stored sessions against the guarantees; exit code 1 when something is wrong."""

    async def work(ledger: ChatLedger) -> int | None:
        problems = await ledger.verify_session(session_id)
        for problem in problems:
            if as_json:
                typer.echo(json.dumps(dataclasses.asdict(problem)))
            else:
                place = f"{problem.session_id}" + (f" {problem.sequence}" if problem.sequence is not None else "")
                output.print(
                    f"{problem.guarantee}  {printable(place)}: {problem.problem}", markup=False, highlight=False
                )
        if not problems:
            errors.print("all is well", highlight=False)
        return FOUND_WRONG if problems else None

    run(work)
