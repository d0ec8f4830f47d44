"""An embedded PostgreSQL, and Valkey where its wheel is installed, shared by all processes that use one data folder.

`start()` joins the running servers of the data folder or starts them. They end when the last process using them has
closed its handle or ended, in whatever way. supervisor.py is the process that sees to it.

In the data folder: `pgdata` (the database), `server.log` and `server.log.1` (this run's and the last one's), `lock`.
"""

import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self
from urllib.parse import quote

from .errors import EmbeddedError

__all__ = ["EmbeddedError", "EmbeddedServers", "start"]

_START_TIMEOUT = 60.0
_STOP_TIMEOUT = 60.0
_VALKEY_SOCKET = "valkey.sock"
_NOT_DURABLE = {"fsync": "off", "synchronous_commit": "off", "full_page_writes": "off"}


class EmbeddedServers:
    """The running servers, kept running by this object: hold it as long as you use them.

    Should somebody kill the supervisor, the servers end; `start()` starts them again.
    """

    database_url: str
    redis_url: str | None
    data_dir: Path
    bin_dir: Path
    """Where psql, pg_dump, pgbench and the others of the running server are."""
    pid: int
    """The supervisor's process id."""

    def __init__(self, connection: socket.socket, data_dir: Path, answer: dict[str, Any]) -> None:
        self._connection: socket.socket | None = connection
        self._owner = os.getpid()
        self.data_dir = data_dir
        self.database_url = answer["database_url"]
        self.redis_url = answer["redis_url"]
        self.bin_dir = Path(answer["bin_dir"])
        self.pid = answer["pid"]

    def close(self) -> None:
        """Stop using the servers. If nobody else does, return when they have stopped (after 60 s in any case).

        Never fails, and may be called again. In a forked child it only lets go of the child's copy.
        """
        connection, self._connection = self._connection, None
        if connection is None:
            return
        with connection:
            if os.getpid() != self._owner:
                return
            try:
                connection.shutdown(socket.SHUT_WR)
                connection.settimeout(_STOP_TIMEOUT)
                connection.recv(1)  # its end: at once when others stay, else when the supervisor has ended
            except OSError:
                pass

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def start(
    data_dir: Path | None = None,
    *,
    bin_dir: Path | None = None,
    settings: Mapping[str, str] = {},
    durable: bool = True,
) -> EmbeddedServers:
    """Join the servers of a data folder, or start them. Blocks until they are ready: milliseconds, or about 0.5 s.

    All but the data folder has an effect only when this call starts the servers.

    Args:
        data_dir: By default CHATLEDGER_DATA_DIR, else the user's data folder (for root, /var/lib/chatledger where that
            one is closed to others).
        bin_dir: Another PostgreSQL than the wheel's.
        settings: PostgreSQL's.
        durable: False is for tests: a crash of the machine may lose everything.

    Returns:
        The servers, which run at least until its ``close()``.

    Raises:
        EmbeddedError: A wheel is missing, a folder cannot be used, the data is another PostgreSQL version's, or the
            servers do not start.
    """
    if sys.platform == "win32":
        raise EmbeddedError(
            "The embedded servers need Linux or macOS",
            hint="Set CHATLEDGER_DATABASE_URL to use a PostgreSQL server of your own",
        )
    from . import folders

    try:
        data_dir = folders.prepare_data_dir(data_dir or folders.default_data_dir())
        return _join_or_launch(data_dir, bin_dir, {**({} if durable else _NOT_DURABLE), **settings}, durable)
    except OSError as error:
        raise EmbeddedError(f"The embedded servers of {data_dir or 'the default data folder'}: {error}") from error


def _join_or_launch(
    data_dir: Path, bin_dir: Path | None, settings: Mapping[str, str], durable: bool
) -> EmbeddedServers:
    import fcntl

    deadline = time.monotonic() + _START_TIMEOUT
    while time.monotonic() < deadline:
        launched = False
        with open(data_dir / "lock", "a+", opener=_private) as lock:
            connection = _connect(lock.name)
            if connection is None:
                try:
                    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except BlockingIOError:  # they are just starting, or just ending; flock itself has no time limit
                    time.sleep(0.005)
                    continue
                connection = _launch(data_dir, lock.fileno(), bin_dir, settings, durable)
                launched = True
            # Closing our copy of the lock's file does not free the lock: the supervisor has it.
        connection.settimeout(max(deadline - time.monotonic(), 0.001))
        try:
            with connection.makefile() as lines:
                line = lines.readline()
        except ConnectionResetError:
            line = ""
        except TimeoutError:
            connection.close()
            break
        if line:
            answer = json.loads(line)
            if "error" not in answer:
                connection.settimeout(None)
                return EmbeddedServers(connection, data_dir, answer)
        connection.close()
        if line or launched:
            reason = answer["error"] if line else "the supervisor ended"
            raise EmbeddedError(f"The embedded servers did not start: {reason}. {_log_tail(data_dir)}")
        # We had connected to servers that were about to end: again.
    raise EmbeddedError(
        f"The embedded servers of {data_dir} gave no answer in {_START_TIMEOUT:.0f} s, though some process holds "
        f"{data_dir / 'lock'}. {_log_tail(data_dir)}"
    )


def _connect(lock_file: str) -> socket.socket | None:
    """A connection to the supervisor that the lock's file tells of; None when none listens."""
    from .folders import require_private

    # The path is written down, since a TMPDIR of our own may not be that of the process that started the servers.
    socket_dir = Path(lock_file).read_text()
    if not socket_dir:
        return None
    connection = socket.socket(socket.AF_UNIX)
    try:
        require_private(Path(socket_dir))
        connection.connect(f"{socket_dir}/supervisor.sock")
    except (FileNotFoundError, ConnectionRefusedError):
        connection.close()
        return None
    except BaseException:
        connection.close()
        raise
    return connection


def _launch(
    data_dir: Path, lock_fd: int, bin_dir: Path | None, settings: Mapping[str, str], durable: bool
) -> socket.socket:
    """Start a supervisor and return a connection to it. The caller has the lock; the supervisor keeps it."""
    from . import binaries, folders

    bin_dir = binaries.postgres_bin_dir(bin_dir)
    version = binaries.major_version(bin_dir)
    valkey = binaries.valkey_server()
    uid = folders.server_uid()
    pgdata = data_dir / "pgdata"
    _check_pgdata(pgdata, version, bin_dir, os.geteuid() if uid is None else uid)
    socket_dir = folders.prepare_socket_dir(data_dir)
    os.truncate(lock_fd, 0)
    os.write(lock_fd, os.fsencode(socket_dir))

    config = {
        "uid": uid,
        "data_dir": str(data_dir),
        "socket_dir": str(socket_dir),
        "initdb": _initdb_command(bin_dir, version, durable),
        "postgres": _postgres_command(bin_dir, pgdata, socket_dir, settings),
        "valkey": _valkey_command(valkey, socket_dir) if valkey else None,
        "answer": {
            # With the port, since PGPORT would change the default.
            "database_url": f"postgresql://chatledger@/postgres?host={quote(str(socket_dir))}&port=5432",
            "redis_url": f"unix://{quote(str(socket_dir / _VALKEY_SOCKET))}" if valkey else None,
            "bin_dir": str(bin_dir),
        },
    }
    return _start_supervisor(data_dir, lock_fd, config)


def _initdb_command(bin_dir: Path, version: int, durable: bool) -> list[str]:
    if version >= 17:
        locale = ["--locale=C", "--locale-provider=builtin", "--builtin-locale=C.UTF-8"]
    else:
        locale = ["--locale=C.UTF-8"]
    command = [str(bin_dir / "initdb"), "-A", "trust", "-E", "UTF8", "-U", "chatledger", *locale]
    return command if durable else [*command, "--no-sync"]


def _postgres_command(bin_dir: Path, pgdata: Path, socket_dir: Path, settings: Mapping[str, str]) -> list[str]:
    command = [str(bin_dir / "postgres"), "-D", str(pgdata), "-k", str(socket_dir), "-p", "5432"]
    for name, value in {"listen_addresses": "", **settings}.items():
        command += ["-c", f"{name}={value}"]
    return command


def _valkey_command(valkey: Path, socket_dir: Path) -> list[str]:
    command = [str(valkey), "--port", "0", "--unixsocket", str(socket_dir / _VALKEY_SOCKET), "--unixsocketperm", "700"]
    return [*command, "--save", "", "--appendonly", "no", "--dir", str(socket_dir), "--loglevel", "warning"]


def _start_supervisor(data_dir: Path, lock_fd: int, config: Mapping[str, Any]) -> socket.socket:
    ours, theirs = socket.socketpair()
    log = data_dir / "server.log"
    if log.exists():
        log.replace(data_dir / "server.log.1")
    # The server takes defaults from PGCLIENTENCODING and the like, which are meant for the user's other servers.
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PG")}
    with theirs, open(log, "ab", opener=_private) as output:
        launched = subprocess.run(
            [sys.executable, "-IS", Path(__file__).with_name("supervisor.py"), data_dir],
            input=json.dumps({**config, "lock_fd": lock_fd, "client_fd": theirs.fileno()}).encode(),
            stdout=output,
            stderr=output,
            pass_fds=[lock_fd, theirs.fileno()],
            cwd="/",
            env=environment,
            start_new_session=True,  # Ctrl-C is for the program, not for the servers
            check=False,
        )
    if launched.returncode:
        ours.close()
        raise EmbeddedError(f"The supervisor of the embedded servers did not start. {_log_tail(data_dir)}")
    return ours


def _check_pgdata(pgdata: Path, version: int, bin_dir: Path, uid: int) -> None:
    """Raise EmbeddedError unless this PostgreSQL, as this user, can use `pgdata` or make it."""
    import pwd

    if not pgdata.exists():
        try:
            pwd.getpwuid(uid)
        except KeyError:  # as in containers that run as any number
            raise EmbeddedError(
                f"PostgreSQL's initdb refuses to run as uid {uid}, which has no name",
                hint="Add a line to /etc/passwd, or set CHATLEDGER_DATABASE_URL to use a PostgreSQL server of your own",
            ) from None
        return
    if (owner := pgdata.stat().st_uid) != uid:
        raise EmbeddedError(
            f"{pgdata} belongs to uid {owner}, but the servers would run as uid {uid}",
            hint="Run as the user who made it, or choose another data folder (CHATLEDGER_DATA_DIR)",
        )
    made_by = (pgdata / "PG_VERSION").read_text().strip()
    if made_by != str(version):
        raise EmbeddedError(
            f"{pgdata} was made by PostgreSQL {made_by}, but {bin_dir} has PostgreSQL {version}",
            hint=f"Dump it with version {made_by} and restore it into a new data folder, or choose another one "
            "(CHATLEDGER_DATA_DIR)",
        )


def _private(path: str, flags: int) -> int:
    return os.open(path, flags, 0o600)


def _log_tail(data_dir: Path) -> str:
    log = data_dir / "server.log"
    try:
        lines = log.read_text(errors="replace").splitlines()[-10:]
    except FileNotFoundError:
        lines = []
    return "\n".join([f"The end of {log}:", *lines])
