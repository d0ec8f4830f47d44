"""A writer and a reader in psql: a person at the prompt, or a script."""

from __future__ import annotations

import asyncio
import contextlib
import json
from asyncio.subprocess import PIPE, Process
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

from .history import Call, Json, Recorder, fingerprint, header_of
from .writers import GONE, LONGEST_CALL, Session, messages, tool_call

_OPTIONS = ("-X", "-q", "-A", "-t", "-v", "VERBOSITY=sqlstate")
_LOST = ("08", "57P0")


class PsqlLost(Exception):
    """psql ended: whether its last statement was done, nobody knows."""


class Psql:
    """A psql that is started anew when it lost its connection."""

    def __init__(self, program: Path, url: str) -> None:
        self._command = (str(program), *_OPTIONS, url)
        self._process: Process | None = None

    async def run(self, statement: str) -> tuple[list[str], str]:
        """Return the lines that the statement gives, and its SQLSTATE. Raises PsqlLost."""
        if self._process is None:
            self._process = await asyncio.create_subprocess_exec(
                *self._command, stdin=PIPE, stdout=PIPE, stderr=asyncio.subprocess.DEVNULL, limit=1 << 24
            )
        assert self._process.stdin
        assert self._process.stdout
        lines: list[str] = []
        try:
            self._process.stdin.write(f"{statement};\n\\echo answered :SQLSTATE\n".encode())
            async with asyncio.timeout(LONGEST_CALL):
                while line := (await self._process.stdout.readline()).decode().rstrip("\n"):
                    if line.startswith("answered "):
                        return lines, line.removeprefix("answered ")
                    lines.append(line)
        except TimeoutError:
            raise  # it hangs
        except OSError:
            pass
        await self.close()
        raise PsqlLost

    async def close(self) -> None:
        process, self._process = self._process, None
        if process is not None:
            try:
                async with asyncio.timeout(10):
                    await process.communicate(b"")  # the end of its input ends it
            except TimeoutError:
                with contextlib.suppress(ProcessLookupError):
                    process.kill()
                await process.wait()


class PsqlWriter:
    """Appends, adds tool calls, amends, changes the header and records usage in plain SQL."""

    def __init__(self, name: str, psql: Psql, sessions: list[Session], seed: str, write: Callable[[str], Any]) -> None:
        self.name = name
        self.finish = asyncio.Event()
        self._psql = psql
        self._sessions = sessions
        self._choice = Random(f"{seed} {name}")
        self._recorder = Recorder(name, write)
        self._own: dict[str, list[str]] = {session.id: [] for session in sessions}
        self._number = 0

    async def run(self) -> None:
        try:
            while not self.finish.is_set():
                await self._one_thing(self._choice.choice(self._sessions).id)
                await asyncio.sleep(self._choice.random() * 0.03)
            for session in self._sessions:
                batch = messages(self._new_name(), self._choice)
                async with asyncio.timeout(LONGEST_CALL):
                    while (call := await self._append(session.id, batch)).outcome != "acknowledged":
                        if call.error == GONE:
                            break
                        await asyncio.sleep(0.02)
        finally:
            await self._psql.close()

    def _new_name(self) -> str:
        self._number += 1
        return f"{self.name}-{self._number}"

    async def _one_thing(self, session: str) -> None:
        thing = self._choice.random()
        if thing < 0.6 or not self._own[session]:
            batch = messages(self._new_name(), self._choice)
            for _ in range(3):
                call = await self._append(session, batch)
                if (call.outcome == "acknowledged" and self._choice.random() < 0.9) or call.error == GONE:
                    break
        elif thing < 0.75:
            await self._add_tool_call(session)
        elif thing < 0.9:
            await self._amend(session)
        elif thing < 0.95:
            await self._record_usage(session)
        else:
            await self._update(session)

    async def _append(self, session: str, batch: list[Json]) -> Call:
        call = self._recorder.begin("append", session, messages=batch)
        given = ", ".join(_literal(json.dumps(message)) for message in batch)
        rows = await self._answered(
            call,
            f"select json_build_array(message_id, sequence, appended)"
            f" from chatledger.append_messages({_literal(session)}, array[{given}]::jsonb[])",
        )
        if rows is not None:
            self._own[session] += [message_id for message_id, _, appended in rows if appended]
            self._recorder.end(call, "acknowledged", rows)
        return call

    async def _add_tool_call(self, session: str) -> None:
        name = self._new_name()
        call = self._recorder.begin("add_tool_call", session, tool_call=tool_call(name), message_id=f"{name}-holder")
        rows = await self._answered(
            call,
            "select json_build_object('message_id', message_id, 'sequence', sequence) from chatledger.add_tool_call("
            f"{_literal(session)}, {_literal(json.dumps(tool_call(name)))}, p_message_id => '{name}-holder')",
        )
        if rows:
            self._recorder.end(call, "acknowledged", rows[0])

    async def _amend(self, session: str) -> None:
        message_id, key = self._choice.choice(self._own[session]), self._new_name()
        call = self._recorder.begin("amend", session, message_id=message_id, keys=[key])
        patch = _literal(json.dumps({"metadata": {key: 1}}))
        rows = await self._answered(
            call,
            "select json_build_object('version', version, 'amended', amended)"
            f" from chatledger.amend_message({_literal(session)}, {_literal(message_id)}, {patch})",
        )
        if rows:
            self._recorder.end(call, "acknowledged", rows[0])

    async def _record_usage(self, session: str) -> None:
        name, tokens = self._new_name(), self._choice.randrange(1, 100)
        for _ in range(2):
            call = self._recorder.begin("usage", session, usage=[(name, tokens)])
            rows = await self._answered(
                call,
                f"select to_json(s) from chatledger.record_usage({_literal(session)}, '{name}', 0, 0, {tokens}) as s",
            )
            if rows:
                self._recorder.end(call, "acknowledged", _seen_header(rows[0]))
                return

    async def _update(self, session: str) -> None:
        name = self._new_name()
        call = self._recorder.begin("update", session, header={"title": name, name: "set"})
        rows = await self._answered(
            call,
            f"select to_json(s) from chatledger.update_session({_literal(session)}, p_title => '{name}',"
            f" p_metadata => '{json.dumps({name: 'set'})}') as s",
        )
        if rows:
            self._recorder.end(call, "acknowledged", _seen_header(rows[0]))

    async def _answered(self, call: Call, statement: str) -> list[Any] | None:
        """Return the rows; None when there are none, which is noted."""
        try:
            lines, code = await self._psql.run(statement)
        except (PsqlLost, TimeoutError) as error:
            self._recorder.end(call, "unknown", error=type(error).__name__)
            return None
        if code != "00000":
            self._recorder.end(call, "unknown" if code.startswith(_LOST) else "refused", error=code)
            return None
        return [json.loads(line) for line in lines]


class PsqlReader:
    """Reads as anybody may who has psql."""

    def __init__(self, name: str, psql: Psql, sessions: list[Session], seed: str, write: Callable[[str], Any]) -> None:
        self.finish = asyncio.Event()
        self._psql = psql
        self._sessions = sessions
        self._choice = Random(f"{seed} {name}")
        self._recorder = Recorder(name, write)

    async def run(self) -> None:
        try:
            while not self.finish.is_set():
                await self._read(self._choice.choice(self._sessions).id)
                await asyncio.sleep(self._choice.random() * 0.05)
            for session in self._sessions:
                await self._read(session.id)
        finally:
            await self._psql.close()

    async def _read(self, session: str) -> None:
        call = self._recorder.begin("read", session)
        statement = f"select to_json(r) from chatledger.read_session({_literal(session)}) as r"
        try:
            lines, code = await self._psql.run(statement)
        except (PsqlLost, TimeoutError) as error:
            self._recorder.end(call, "unknown", error=type(error).__name__)
            return
        if code != "00000":
            self._recorder.end(call, "refused", error=code)
        elif not lines:
            self._recorder.end(call, "acknowledged")
        else:
            first, *rows = map(json.loads, lines)
            answer = _seen_header(first["session"]) | {"next_sequence": first["session"]["next_sequence"]}
            shown = [[r["sequence"], r["message_id"], r["amended_version"], fingerprint(r)] for r in rows]
            self._recorder.end(call, "acknowledged", answer | {"messages": shown})


def _seen_header(session: Json) -> Json:
    header = header_of(*(session[name] for name in ("title", "pinned", "total_tokens", "metadata")))
    return {"version": session["version"], "header": header}


def _literal(text: str) -> str:
    return "'" + text.replace("'", "''") + "'"
