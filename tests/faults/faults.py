"""What goes wrong: each fault strikes once and is over when it returns. Alone, mixed and at any moment of a round."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import signal
import time
from random import Random
from typing import TYPE_CHECKING

import asyncpg

from .servers import Trickster

DISTURBED = (
    OSError,
    asyncpg.InterfaceError,
    asyncpg.InternalClientError,
    asyncpg.PostgresConnectionError,
    asyncpg.OperatorInterventionError,  # shutdowns
    asyncpg.InsufficientResourcesError,  # no connection, no room
    asyncpg.DeadlockDetectedError,
)
"""What a fault may come to when another one strikes at the same time."""

if TYPE_CHECKING:
    from .rounds import Fault, Rig, Running

# Postgres


async def postgres_killed(running: Running) -> None:
    """Kill the postmaster; the next start recovers."""
    await _ended_by(signal.SIGKILL, running)


async def postgres_restarted_at_once(running: Running) -> None:
    """An immediate shutdown: no goodbye, no checkpoint."""
    await _ended_by(signal.SIGQUIT, running)


async def postgres_restarted(running: Running) -> None:
    """A fast shutdown: what runs is rolled back."""
    await _ended_by(signal.SIGINT, running)


async def _ended_by(number: signal.Signals, running: Running) -> None:
    await running.rig.postgres.end(number)
    await running.rig.postgres.ready()


async def backend_killed(running: Running) -> None:
    """Kill one backend: Postgres throws out everybody and recovers."""
    async with running.admin() as admin:
        pid = await admin.fetchval(
            "select pid from pg_stat_activity where usename = 'backend' order by random() limit 1"
        )
    if pid is not None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
        await running.rig.postgres.ready()


async def backends_terminated(running: Running) -> None:
    """End the connections of some writers, in whatever they are doing."""
    async with running.admin() as admin:
        await admin.execute(
            "select pg_terminate_backend(pid)"
            " from (select pid from pg_stat_activity where usename = 'backend' order by random() limit 6) as backend"
        )


async def answers_lost(running: Running) -> None:
    """Commit the next calls through the proxy, and lose their answers."""
    running.rig.proxy.to_lose += running.choice.randrange(1, 4)


async def connections_used_up(running: Running) -> None:
    """Take every connection that Postgres has, then those of some writers too, and keep them for a while."""
    async with contextlib.AsyncExitStack() as stack:

        async def take() -> bool:
            try:
                taken = await asyncpg.connect(running.rig.postgres.url())
            except DISTURBED:
                return False
            stack.callback(taken.terminate)
            return True

        while all(await asyncio.gather(*(take() for _ in range(6)))):
            pass
        await backends_terminated(running)
        ends = time.monotonic() + 0.15
        while time.monotonic() < ends:
            await asyncio.gather(*(take() for _ in range(6)))


async def sessions_locked(running: Running) -> None:
    """Hold a session's lock for longer than some writers care to wait."""
    async with running.admin() as admin, admin.transaction():
        await admin.execute("select from chatledger.sessions where id = $1 for update", running.sessions[0].id)
        await asyncio.sleep(0.05)


async def locked_in_another_order(running: Running) -> None:
    """Lock the sessions one after the other, some time apart, in an order of our own: into deadlocks."""
    async with running.admin() as admin:
        for _ in range(2):
            with contextlib.suppress(asyncpg.DeadlockDetectedError):
                async with admin.transaction():
                    for session in running.choice.sample(running.sessions, len(running.sessions)):
                        await admin.execute("select from chatledger.sessions where id = $1 for update", session.id)
                        await asyncio.sleep(0.01)


async def clock_stepped_back(running: Running) -> None:
    """The clock goes back, and is right again after a while.

    By no more than this, since Postgres' own timers, that of deadlocks among them, then go off so much later.
    """
    clock = running.rig.postgres.clock
    assert clock is not None
    clock.set(-2)
    await asyncio.sleep(0.2)
    clock.set(0)


async def disk_full(running: Running) -> None:
    """Leave no room for a while, neither for tables nor for WAL."""
    ballast = running.rig.ballast
    assert ballast is not None
    try:
        with ballast.open("wb") as file:
            os.posix_fallocate(file.fileno(), 0, shutil.disk_usage(ballast.parent).free)
        await asyncio.sleep(0.15)
    finally:
        ballast.unlink(missing_ok=True)
    await running.rig.postgres.ready()


async def pgbouncer_killed(running: Running) -> None:
    """Kill pgbouncer, and start another one."""
    assert running.rig.pgbouncer is not None
    running.rig.pgbouncer.restart()


# Clients


async def client_killed(running: Running) -> None:
    """Kill a process that writes, and start another one of its kind."""
    child = running.choice.choice(running.children)
    child.kill()
    running.start_like(child)


# Redis


async def redis_killed(running: Running) -> None:
    async with running.rig.redis_turn:
        valkey = running.rig.valkey
        valkey.kill()
        await asyncio.sleep(running.choice.random() * 0.1)
        valkey.start()


async def redis_stopped(running: Running) -> None:
    """Redis takes what it is sent and says nothing."""
    async with running.rig.redis_turn:
        running.rig.valkey.pause()
        await asyncio.sleep(0.1)
        running.rig.valkey.resume()


async def redis_flushed(running: Running) -> None:
    async with running.rig.redis_turn:
        running.rig.valkey.redis.flushall()


async def redis_out_of_memory(running: Running) -> None:
    async with running.rig.redis_turn:
        running.rig.valkey.redis.config_set("maxmemory", "1")
        await asyncio.sleep(0.1)
        running.rig.valkey.redis.config_set("maxmemory", "0")


async def redis_holds_garbage(running: Running) -> None:
    """Somebody wrote over the copies: whole ones, and single fields."""
    async with running.rig.redis_turn:
        redis = running.rig.valkey.redis
        for session in running.sessions:
            key = f"chat:session:{session.id}"
            match running.choice.randrange(4):
                case 0:
                    redis.set(key, b"\x00\xff")
                case 1 if redis.exists(key):
                    redis.hset(key, "0", '{"role": "user", "content": "never said"')
                case 2 if redis.exists(key):
                    redis.hset(key, "version", "99999")
                case _:
                    redis.hdel(key, "header", "1")


async def redis_holds_an_old_copy(running: Running) -> None:
    """A copy from some time ago is back, as after a failover to a replica that was behind."""
    async with running.rig.redis_turn:
        redis = running.rig.valkey.redis
        old = {f"chat:session:{s.id}": redis.dump(f"chat:session:{s.id}") for s in running.sessions}
        await asyncio.sleep(0.1)
        for key, copy in old.items():
            if copy is not None:
                redis.restore(key, 0, copy, replace=True)


async def redis_answers_garbage(running: Running) -> None:
    """What listens at Redis's address is no Redis."""
    async with running.rig.redis_turn, Trickster() as trickster:
        valkey = running.rig.valkey
        valkey.hand_over_to(trickster)  # type: ignore[arg-type]
        valkey.redis.client_kill_filter(_type="normal", skipme=True)
        await asyncio.sleep(0.1)
        valkey.hand_over_to(valkey)


FAULTS: tuple[Fault, ...] = (
    postgres_killed,
    postgres_restarted_at_once,
    postgres_restarted,
    backend_killed,
    backends_terminated,
    answers_lost,
    connections_used_up,
    sessions_locked,
    locked_in_another_order,
    clock_stepped_back,
    disk_full,
    pgbouncer_killed,
    client_killed,
    redis_killed,
    redis_stopped,
    redis_flushed,
    redis_out_of_memory,
    redis_holds_garbage,
    redis_holds_an_old_copy,
    redis_answers_garbage,
)


def possible(rig: Rig) -> list[Fault]:
    """The faults that this machine has all it needs for."""
    missing: set[Fault] = set()
    if rig.ballast is None:
        missing.add(disk_full)
    if rig.pgbouncer is None:
        missing.add(pgbouncer_killed)
    if rig.postgres.clock is None:
        missing.add(clock_stepped_back)
    return [fault for fault in FAULTS if fault not in missing]


def mixed(rig: Rig, seed: str) -> list[Fault]:
    """Some faults for a round: the same for the same seed."""
    choice = Random(f"faults {seed}")
    return choice.sample(possible(rig), choice.choice((1, 1, 2, 3, 4)))
