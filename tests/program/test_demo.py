"""The demo: its check finds every way in which a history can be broken."""

from __future__ import annotations

import io
import re
import shutil
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta
from itertools import chain, zip_longest
from pathlib import Path
from typing import TypeAlias

import asyncpg
import pytest
from rich.console import Console

from chatledger import ChatLedger, ChatMessage, IntegrityProblem
from chatledger.demo import check, run_demo, screen, writers
from chatledger.demo.batches import Writer, make_writer
from chatledger.demo.progress import Place, Progress
from chatledger.demo.writers import BATCHES, KILLED_AFTER, Target, WriterFailed
from chatledger.postgres.connections import without_password

Connection: TypeAlias = "asyncpg.Connection[asyncpg.Record]"
Pool: TypeAlias = "asyncpg.Pool[asyncpg.Record]"
Connect = Callable[[], Awaitable[Connection]]
START = datetime(2025, 1, 1, tzinfo=UTC)


@pytest.fixture
def two_writers() -> list[Writer]:
    # Their first batches have several messages, so that there is something to tear.
    return [make_writer("task-1", "Python task", 6), make_writer("task-4", "Python task", 6)]


@pytest.fixture
def stored(two_writers: list[Writer]) -> list[ChatMessage]:
    """A faultless history: the batches of the two, in turns."""
    turns = zip_longest(*(writer.batches for writer in two_writers))
    batches = enumerate(batch for batch in chain.from_iterable(turns) if batch is not None)
    rows = [(message, START + timedelta(seconds=number)) for number, batch in batches for message in batch]
    return [
        ChatMessage.model_validate({**message, "sequence": sequence, "created_at": created_at})
        for sequence, (message, created_at) in enumerate(rows)
    ]


@pytest.fixture
def answers(stored: list[ChatMessage]) -> list[list[Place]]:
    return [[Place(m.message_id, sequence, appended=True)] for sequence, m in enumerate(stored)]


def renumbered(messages: list[ChatMessage]) -> list[ChatMessage]:
    return [message.model_copy(update={"sequence": sequence}) for sequence, message in enumerate(messages)]


def claims_broken(
    writers: list[Writer],
    answers: list[list[Place]],
    stored: list[ChatMessage],
    verified: tuple[IntegrityProblem, ...] = (),
) -> set[str]:
    return {finding.claim for finding in check.findings(writers, answers, stored, verified) if finding.problems}


def several(stored: list[ChatMessage], writer: Writer) -> list[int]:
    """Where the first batch of several messages of a writer is stored."""
    batch = next(batch for batch in writer.batches if len(batch) > 1)
    ids = [message["message_id"] for message in batch]
    return [index for index, message in enumerate(stored) if message.message_id in ids]


class TestCheck:
    def test_finds_nothing_in_a_faultless_history(
        self, two_writers: list[Writer], answers: list[list[Place]], stored: list[ChatMessage]
    ) -> None:
        assert claims_broken(two_writers, answers, stored) == set()

    def test_finds_nothing_wrong_with_a_retry(
        self, two_writers: list[Writer], answers: list[list[Place]], stored: list[ChatMessage]
    ) -> None:
        again = [[place._replace(appended=False) for place in answer] for answer in answers]
        assert claims_broken(two_writers, answers + again, stored) == set()

    def test_finds_a_lost_batch(
        self, two_writers: list[Writer], answers: list[list[Place]], stored: list[ChatMessage]
    ) -> None:
        gone = {message["message_id"] for message in two_writers[0].batches[-1]}
        left = renumbered([message for message in stored if message.message_id not in gone])
        assert check.nothing_lost(two_writers, left) == [f"{message_id} is missing" for message_id in sorted(gone)]
        assert claims_broken(two_writers, answers, left) == {"nothing lost", "batches whole"}

    def test_finds_another_body(self, two_writers: list[Writer], stored: list[ChatMessage]) -> None:
        stored[3] = stored[3].model_copy(update={"content": "something else"})
        assert check.nothing_lost(two_writers, stored) == [f"{stored[3].message_id} is not as it was sent"]

    def test_finds_a_place_other_than_told(self, answers: list[list[Place]], stored: list[ChatMessage]) -> None:
        answers.append([answers[2][0]._replace(sequence=9)])
        assert check.told_right(answers, stored) == [f"{stored[2].message_id} is at 2, not at 9 as its writer was told"]

    def test_finds_a_message_stored_twice(
        self, two_writers: list[Writer], answers: list[list[Place]], stored: list[ChatMessage]
    ) -> None:
        twice = renumbered([*stored, stored[0]])
        assert check.nothing_twice(two_writers, [], twice) == [f"{stored[0].message_id} is stored 2 times"]
        assert "nothing twice" in claims_broken(two_writers, answers, twice)

    def test_finds_a_message_that_was_appended_twice(
        self, two_writers: list[Writer], answers: list[list[Place]], stored: list[ChatMessage]
    ) -> None:
        problems = check.nothing_twice(two_writers, [*answers, answers[4]], stored)
        assert problems == [f"{stored[4].message_id} was appended 2 times"]

    def test_finds_a_message_that_nobody_sent(
        self, two_writers: list[Writer], answers: list[list[Place]], stored: list[ChatMessage]
    ) -> None:
        stranger = ChatMessage(message_id="x", role="user", sequence=len(stored), created_at=START)
        assert claims_broken(two_writers, answers, [*stored, stranger]) == {"nothing twice"}

    def test_finds_a_gap(self, stored: list[ChatMessage]) -> None:
        assert check.no_gap([*stored[:2], *stored[3:5]]) == ["3 stands where 2 should be", "4 stands where 3 should be"]

    def test_finds_a_number_given_out_twice(self, stored: list[ChatMessage]) -> None:
        stored[1] = stored[1].model_copy(update={"sequence": 0})
        assert check.no_gap(stored[:3]) == ["0 stands where 1 should be"]

    def test_finds_a_batch_with_another_message_in_it(
        self, two_writers: list[Writer], stored: list[ChatMessage]
    ) -> None:
        first, *_ = several(stored, two_writers[0])
        stored.insert(first + 1, stored.pop())
        assert any("of task-1 is torn" in problem for problem in check.batches_whole(two_writers, stored))

    def test_finds_a_batch_under_two_timestamps(self, two_writers: list[Writer], stored: list[ChatMessage]) -> None:
        index = several(stored, two_writers[0])[-1]
        late = stored[index].created_at
        assert late is not None
        stored[index] = stored[index].model_copy(update={"created_at": late + timedelta(microseconds=1)})
        assert len(check.batches_whole(two_writers, stored)) == 1

    def test_finds_half_a_batch(self, two_writers: list[Writer], stored: list[ChatMessage]) -> None:
        del stored[several(stored, two_writers[0])[-1]]
        assert len(check.batches_whole(two_writers, stored)) == 1

    def test_finds_a_batch_in_another_order(self, two_writers: list[Writer], stored: list[ChatMessage]) -> None:
        first, second, *_ = several(stored, two_writers[0])
        stored[first], stored[second] = stored[second], stored[first]
        assert len(check.batches_whole(two_writers, stored)) == 1

    def test_lets_two_batches_have_the_same_timestamp(
        self, two_writers: list[Writer], stored: list[ChatMessage]
    ) -> None:
        frozen = [message.model_copy(update={"created_at": START}) for message in stored]
        assert check.batches_whole(two_writers, frozen) == []

    def test_finds_batches_of_a_writer_in_another_order(
        self, two_writers: list[Writer], answers: list[list[Place]], stored: list[ChatMessage]
    ) -> None:
        late = {message["message_id"] for message in two_writers[1].batches[0]}
        moved = [message for message in stored if message.message_id not in late]
        moved += [message for message in stored if message.message_id in late]
        assert check.batches_in_order(two_writers, moved) == ["batch 5 of task-4 comes before its batch 0"]

    def test_passes_on_what_the_database_found(
        self, two_writers: list[Writer], answers: list[list[Place]], stored: list[ChatMessage]
    ) -> None:
        problem = IntegrityProblem("s1", "G2", 3, "was stored before the message in front of it")
        assert claims_broken(two_writers, answers, stored, (problem,)) == {"verified"}


class TestBatches:
    def test_are_the_same_every_time(self) -> None:
        assert make_writer("task-1", "Python task", 20) == make_writer("task-1", "Python task", 20)

    def test_have_one_to_five_messages(self) -> None:
        sizes = {len(batch) for batch in make_writer("task-1", "Python task", 100).batches}
        assert sizes == {1, 2, 3, 4, 5}

    def test_answer_every_tool_call_in_the_same_batch(self) -> None:
        for batch in make_writer("task-1", "Python task", 100).batches:
            calls = [call["id"] for message in batch for call in message.get("tool_calls", ())]
            assert calls == [message["tool_call_id"] for message in batch if message["role"] == "tool"]


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody watches."""
    monkeypatch.setattr(writers, "PACE", 0.01)


class TestRun:
    @pytest.mark.usefixtures("quick")
    @pytest.mark.parametrize("width", [80, 120])
    async def test_everything_holds_and_the_killed_writer_is_retried(
        self, ledger: ChatLedger, database_url: str, bin_dir: Path, connection: Connection, width: int
    ) -> None:
        console = Console(file=io.StringIO(), record=True, width=width)
        assert await run_demo(ledger, database_url, bin_dir / "psql", console, embedded=True)

        shown = console.export_text()
        assert shown.count("✓") == 6
        assert "✗" not in shown
        assert shown.count(f"{BATCHES}/{BATCHES}") == 7
        assert f"(process: killed in batch {KILLED_AFTER + 1}, " in shown
        # It was told of the batches before the kill; the one in which it was killed may be stored too.
        batches = make_writer("process", "Python process", BATCHES).batches
        known = sum(len(batch) for batch in batches[:KILLED_AFTER])
        assert (row := re.search(r" E +process .* (\d+) +done", shown))
        assert int(row[1]) in {known, known + len(batches[KILLED_AFTER])}
        assert "chatledger up" in shown
        # A log gets each table once, and nothing in it is cut.
        assert shown.count("writer ") == 1
        assert "…" not in shown
        if width == 120:
            assert " A  " in shown

        session_id = re.findall(r"chatledger show (\S+)", shown)[0]
        assert await ledger.verify_session(session_id) == []
        sessions = await ledger.list_sessions(None)
        assert [session.session_id for session in sessions.sessions] == [session_id]

    @pytest.mark.usefixtures("quick")
    async def test_does_without_psql(self, ledger: ChatLedger, database_url: str) -> None:
        console = Console(file=io.StringIO(), record=True, width=80)
        assert await run_demo(ledger, database_url, None, console)
        shown = console.export_text()
        assert "There is no psql here" in shown
        assert "psql-1" not in shown
        assert "chatledger up" not in shown

    @pytest.mark.usefixtures("quick")
    async def test_a_writer_that_fails_is_told_and_found(self, ledger: ChatLedger, database_url: str) -> None:
        console = Console(file=io.StringIO(), record=True, width=80)
        false = shutil.which("false")
        assert false is not None
        assert not await run_demo(ledger, database_url, Path(false), console)
        shown = console.export_text()
        assert "failed" in shown
        assert "psql-1: it ended without a word" in shown
        assert "✗ nothing lost" in shown

    @pytest.mark.usefixtures("quick")
    async def test_psql_says_why_it_failed(self, ledger: ChatLedger, database_url: str, bin_dir: Path) -> None:
        progress = Progress(make_writer("psql-1", "psql", 3))
        with pytest.raises(WriterFailed, match=r'ERROR: .*session "not there"'):
            await writers.write_with_psql(progress, bin_dir / "psql", Target(database_url, "not there", "u1"))

    @pytest.mark.usefixtures("quick")
    async def test_the_second_process_says_why_it_failed(self, ledger: ChatLedger, database_url: str) -> None:
        async with writers.SecondProcess.started(Target(database_url, "not there", "u1")) as process:
            with pytest.raises(WriterFailed, match="not there"):
                await process.append(make_writer("process", "Python process", 1).batches[0])


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("postgresql://u:secret@h:5432/d?sslmode=require", "postgresql://u@h:5432/d?sslmode=require"),
        ("postgresql://u@/d?host=%2Ftmp&password=secret&port=1", "postgresql://u@/d?host=%2Ftmp&port=1"),
        ("postgresql:///d", "postgresql:///d"),
    ],
)
def test_shows_no_password(url: str, shown: str) -> None:
    assert without_password(url) == shown


def test_a_batch_that_is_stored_untold_is_a_hole_in_the_strip() -> None:
    progress = Progress(Writer("w", "psql", (({"message_id": "a"},), ({"message_id": "b"}, {"message_id": "c"}))))
    progress.answered([Place("b", 1, appended=True), Place("c", 2, appended=True)])
    console = Console(file=io.StringIO(), record=True, width=80)
    console.print(screen.writing("s1", [progress], 80))
    assert console.export_text().splitlines()[-1] == "·A─"
