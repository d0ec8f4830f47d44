"""Servers to be killed: a Postgres, a pgbouncer, and a proxy that loses answers. Linux only, all on Unix sockets."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import asyncpg

from chatledger import migrate
from chatledger.embedded import binaries, folders

if TYPE_CHECKING:
    Connection = asyncpg.Connection[asyncpg.Record]

PORT = 5432


def _start(
    *command: str | Path, stderr: Any = subprocess.DEVNULL, environment: dict[str, str] | None = None
) -> subprocess.Popen[bytes]:
    """Start a server as the user that servers run as; it ends with us, also when we are killed."""
    uid = folders.server_uid()
    return subprocess.Popen(
        ["setpriv", "--pdeathsig", "KILL", *map(str, command)],
        stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=stderr,
        user=uid, group=uid, extra_groups=None if uid is None else [],
        env={"PATH": os.environ["PATH"], **(environment or {})}, start_new_session=True,
    )  # fmt: skip


def own_folder() -> Path:
    """A folder that the servers' user can use, with a name that is short enough for sockets."""
    folder = Path(tempfile.mkdtemp(prefix="clf-"))
    if (uid := folders.server_uid()) is not None:
        os.chown(folder, uid, uid)
    folder.chmod(0o755)
    return folder


def url_of(folder: Path, user: str = "backend", **settings: str) -> str:
    """Where a server is, for this user: ``backend`` may call the functions, ``postgres`` do everything."""
    extra = "".join(f"&{name}={quote(value)}" for name, value in settings.items())
    return f"postgresql://{user}@/postgres?host={quote(str(folder))}&port={PORT}{extra}"


class Clock:
    """A server's clock, that can be set."""

    compiler = shutil.which("cc")
    """Needed to make one."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._offset = folder / "offset"
        self._library = folder / "clock.so"
        self.environment = {"LD_PRELOAD": str(self._library), "CHATLEDGER_TEST_CLOCK": str(self._offset)}

    @classmethod
    def made(cls) -> Clock:
        """A new one, for a server that is not started yet."""
        assert cls.compiler
        clock = cls(own_folder())
        source = Path(__file__).with_name("clock.c")
        subprocess.run([cls.compiler, "-shared", "-fPIC", "-O2", "-Wall", "-o", clock._library, source], check=True)
        clock._offset.write_bytes(bytes(8))
        return clock

    def set(self, seconds: float) -> None:
        """Let the server's time be the machine's and so many seconds."""
        with self._offset.open("r+b") as file:  # in place: the server has it in its memory
            file.write(int(seconds * 1e9).to_bytes(8, sys.byteorder, signed=True))

    def close(self) -> None:
        shutil.rmtree(self.folder)


class Postgres:
    """A Postgres with a ledger in a folder of its own.

    Args:
        folder: Where to put it; by default a folder that goes with it.
        settings: Its settings, besides ours.
        initdb: More options of initdb.
        with_clock: Its clock can be set, if there is a C compiler.
    """

    def __init__(
        self,
        folder: Path | None = None,
        *,
        settings: dict[str, str] | None = None,
        initdb: str = "",
        with_clock: bool = False,
    ) -> None:
        self.clock = Clock.made() if with_clock and Clock.compiler else None
        self._own = folder is None
        self.folder = folder or own_folder()
        self.data = self.folder / "data"
        other = os.environ.get("CHATLEDGER_TEST_POSTGRES")
        self.bin_dir = binaries.postgres_bin_dir(Path(other) if other else None)
        self._settings = {
            "listen_addresses": "", "unix_socket_directories": str(self.folder), "port": str(PORT),
            "max_connections": "48", "shared_buffers": "32MB", "deadlock_timeout": "20ms", "log_min_messages": "fatal",
            "fsync": "off",  # what a killed server wrote is with the kernel, which lives on
            **(settings or {}),
        }  # fmt: skip
        command = (self.bin_dir / "initdb", "-A", "trust", "-U", "postgres", "-E", "UTF8", "--locale=C", "--no-sync")
        made = _start(*command, "-D", self.data, *initdb.split(), stderr=subprocess.PIPE)
        _, errors = made.communicate()
        if made.returncode:
            raise RuntimeError(errors.decode())
        self._server: subprocess.Popen[bytes] | None = None
        self.start()

    def start(self) -> None:
        """Start it, without waiting until it is ready."""
        options = [f"--{name}={value}" for name, value in self._settings.items()]
        environment = self.clock.environment if self.clock else None
        with (self.folder / "log").open("ab") as log:
            self._server = _start(
                self.bin_dir / "postgres", "-D", self.data, *options, stderr=log, environment=environment
            )

    async def ready(self, timeout: float = 60) -> None:
        """Return when it takes connections. Starts it again when it ended: a killed one's backends may be there yet."""
        deadline = time.monotonic() + timeout
        while True:
            if self._server is None or self._server.poll() is not None:
                self.start()
            try:
                async with self.admin():
                    return
            except (OSError, asyncpg.PostgresError):
                if time.monotonic() > deadline:
                    raise
                await asyncio.sleep(0.02)

    async def prepare(self) -> None:
        """Wait for it, install the ledger, and make the role that the writers are."""
        await self.ready()
        async with self.admin() as admin:
            await migrate(admin)
            await admin.execute("create role backend login in role chatledger_writer")

    def url(self, user: str = "backend", **settings: str) -> str:
        return url_of(self.folder, user, **settings)

    @contextlib.asynccontextmanager
    async def admin(self) -> AsyncIterator[Connection]:
        """A connection that may do everything."""
        connection = await asyncpg.connect(self.url("postgres"))
        try:
            yield connection
        finally:
            connection.terminate()

    async def end(self, number: signal.Signals) -> None:
        """End it, by SIGINT, a fast shutdown; SIGQUIT, an immediate one; or SIGKILL. Another fault may do so, too."""
        server = self._server
        assert server is not None
        server.send_signal(number)
        while server.poll() is None:
            await asyncio.sleep(0.005)

    @contextlib.contextmanager
    def stopped(self) -> Iterator[None]:
        """The postmaster takes connections, since the kernel does, and says nothing."""
        assert self._server is not None
        self._server.send_signal(signal.SIGSTOP)
        try:
            yield
        finally:
            self._server.send_signal(signal.SIGCONT)

    def close(self) -> None:
        """Stop it and remove its folder."""
        if self._server is not None:
            with contextlib.suppress(ProcessLookupError):
                self._server.send_signal(signal.SIGQUIT)
            self._server.wait()
        if self.clock is not None:
            self.clock.close()
        if self._own:
            shutil.rmtree(self.folder, ignore_errors=True)


class PgBouncer:
    """A pgbouncer in front of a Postgres, with transaction pooling."""

    program = shutil.which("pgbouncer", path=f"{os.environ.get('PATH', '')}:/usr/sbin")

    def __init__(self, postgres: Postgres) -> None:
        assert self.program
        self.folder = own_folder()
        config = self.folder / "pgbouncer.ini"
        config.write_text(
            "[databases]\n"
            f"postgres = host={postgres.folder} port={PORT} user=backend\n"
            "[pgbouncer]\n"
            f"unix_socket_dir = {self.folder}\nlisten_addr =\nlisten_port = {PORT}\n"
            "auth_type = any\npool_mode = transaction\ndefault_pool_size = 4\n"
            "server_login_retry = 0.05\nquery_wait_timeout = 5\n"
            "ignore_startup_parameters = extra_float_digits\n"
        )
        config.chmod(0o644)
        self._command = (self.program, "-q", config)
        self._server = _start(*self._command)

    @property
    def url(self) -> str:
        return url_of(self.folder)

    def ready(self) -> None:
        """Start it again when it crashed, as whatever runs it in production does."""
        if self._server.poll() is not None:
            self.restart()

    def restart(self) -> None:
        """Kill it and start another one."""
        self._server.kill()
        self._server.wait()
        for left in self.folder.glob(".s.*"):
            left.unlink()
        self._server = _start(*self._command)

    def close(self) -> None:
        self._server.kill()
        self._server.wait()
        shutil.rmtree(self.folder, ignore_errors=True)


class Proxy:
    """Passes everything on, until it is told to lose an answer: then the next call that was committed has none."""

    def __init__(self, postgres: Postgres) -> None:
        self.folder = own_folder()
        self.to_lose = 0
        self._target = f"{postgres.folder}/.s.PGSQL.{PORT}"
        self._passing: set[asyncio.Task[None]] = set()

    async def start(self) -> None:
        self._server = await asyncio.start_unix_server(self._accept, f"{self.folder}/.s.PGSQL.{PORT}")

    @property
    def url(self) -> str:
        return url_of(self.folder)

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.create_task(self._pass(reader, writer))
        self._passing.add(task)
        task.add_done_callback(self._passing.discard)

    async def _pass(self, client: asyncio.StreamReader, to_client: asyncio.StreamWriter) -> None:
        server_writer = None
        try:
            server, server_writer = await asyncio.open_unix_connection(self._target)
            ways = [
                asyncio.create_task(_copy(client, server_writer)),
                asyncio.create_task(self._answers(server, to_client)),
            ]
            _, running = await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
            for way in running:
                way.cancel()
            await asyncio.gather(*ways, return_exceptions=True)
        except OSError:
            pass
        finally:
            for writer in (to_client, server_writer):
                if writer is not None:
                    writer.close()

    async def _answers(self, server: asyncio.StreamReader, to_client: asyncio.StreamWriter) -> None:
        """Pass on what the server says, message by message, as long as no answer is to be lost."""
        held = bytearray()  # from "done" on, until it is known whether that was a commit
        with contextlib.suppress(asyncio.IncompleteReadError, OSError):
            while True:
                head = await server.readexactly(5)
                kind, body = head[:1], await server.readexactly(int.from_bytes(head[1:], "big") - 4)
                if held and kind == b"Z" and body == b"I" and self.to_lose:  # ready, and outside a transaction
                    self.to_lose -= 1
                    return
                held += head + body
                if kind == b"Z" or not self.to_lose or held[:1] != b"C":
                    to_client.write(bytes(held))
                    held.clear()
                    await to_client.drain()

    async def close(self) -> None:
        self._server.close()
        for task in self._passing:
            task.cancel()
        await asyncio.gather(*self._passing, return_exceptions=True)
        shutil.rmtree(self.folder, ignore_errors=True)


async def _copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with contextlib.suppress(OSError):
        while data := await reader.read(65536):
            writer.write(data)
            await writer.drain()


class Trickster:
    """Answers whatever it is asked with something else."""

    async def __aenter__(self) -> Trickster:
        self._folder = own_folder()
        self.socket = f"{self._folder}/s"
        self._server = await asyncio.start_unix_server(self._answer, self.socket)
        return self

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            while await reader.read(65536):
                writer.write(b"*2\r\n$3\r\nfoo\r\n:7\r\n$-1\r\nHTTP/1.1 400 Bad Request\r\n\r\n")
                await writer.drain()
        writer.close()

    async def __aexit__(self, *exc_info: object) -> None:
        self._server.close()
        shutil.rmtree(self._folder)


@contextlib.contextmanager
def small_disk(megabytes: int) -> Iterator[Path]:
    """A folder on a disk of its own that can be filled. Raises OSError where we may not mount one."""
    folder = own_folder()
    options = f"size={megabytes}m,mode=0755,uid={folder.stat().st_uid}"
    # The shell takes the disk away when our end of its input closes: also when we are killed.
    script = 'mount -t tmpfs -o "$1" tmpfs "$2" && echo mounted && read _; umount -l "$2"; rmdir "$2"'
    keeper = subprocess.Popen(
        ["sh", "-c", script, "sh", options, folder],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, start_new_session=True,
    )  # fmt: skip
    assert keeper.stdout
    try:
        if not keeper.stdout.readline():
            raise OSError("no disk may be mounted here: needs root, and a container that allows it")
        yield folder
    finally:
        keeper.communicate()
