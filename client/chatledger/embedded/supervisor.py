"""Runs the servers of one data folder for as long as some process is connected, then stops them and ends.

A script, not a module of the package: standard library only, so that it starts at once. chatledger.embedded starts it
while holding the data folder's lock, and hands over two open files: that lock, and the connection of the first user.

- The lock's file is passed on to the servers too. The kernel frees it when the last process that has it open has ended:
  whoever gets the lock knows that no supervisor, server or backend of this data folder is left.
- A user is a connection. The kernel closes it whatever way the user's process ends.
- The servers are bound to this process by the kernel (Linux): when it is killed, they stop.
"""

import contextlib
import json
import os
import selectors
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

MAX_RESTARTS = 10
STOP_TIMEOUT = 60.0
POLL_INTERVAL = 0.005
PR_SET_PDEATHSIG = 1

if sys.platform == "linux":
    import ctypes

    prctl = ctypes.CDLL(None, use_errno=True).prctl
else:
    prctl = None


class Failed(Exception):
    """A server cannot be started, or does not stay up."""


class Server:
    """One child process."""

    def __init__(self, argv: list[str], stop_signal: signal.Signals, uid: int | None, lock_fd: int) -> None:
        self.name = Path(argv[0]).name
        self.stop_signal = stop_signal
        self._argv = argv
        self._uid = uid
        self._lock_fd = lock_fd
        self.start()

    def start(self) -> None:
        supervisor = os.getpid()

        def bind_to_supervisor() -> None:
            # After the change of user, which would clear it. Safe to run Python here: this process has one thread,
            # and that one is the "parent" whose death counts.
            if prctl is not None:
                prctl(PR_SET_PDEATHSIG, int(self.stop_signal))
                if os.getppid() != supervisor:  # killed before we asked
                    os._exit(1)

        self.process = subprocess.Popen(
            self._argv,
            stdin=subprocess.DEVNULL,
            pass_fds=[self._lock_fd],
            preexec_fn=bind_to_supervisor,
            user=self._uid,
            group=self._uid,
            extra_groups=None if self._uid is None else [],
        )

    def stop(self) -> None:
        try:
            self.process.wait(STOP_TIMEOUT)
        except subprocess.TimeoutExpired:
            self.process.send_signal(signal.SIGQUIT)  # Postgres: without a checkpoint; it recovers at the next start
            self.process.wait()


class Supervisor:
    """The servers and their users."""

    def __init__(self, config: dict[str, Any]) -> None:
        self.uid: int | None = config["uid"]
        self.lock_fd: int = config["lock_fd"]
        self.data_dir = Path(config["data_dir"])
        self.pgdata = self.data_dir / "pgdata"
        self.socket_dir = Path(config["socket_dir"])
        self.config = config
        self.servers: list[Server] = []
        self.restarts = 0
        first = socket.socket(fileno=config["client_fd"])
        self.users = {first}
        self.waiting = {first}  # users without an answer yet
        self.answer = {"pid": os.getpid(), **config["answer"]}
        self.selector = selectors.DefaultSelector()
        self.selector.register(first, selectors.EVENT_READ)

        # Signals arrive as bytes on a socket, so that they interrupt nothing half done.
        self.signals, wake = socket.socketpair()
        self.signals.setblocking(False)
        wake.setblocking(False)
        self._wake = wake
        signal.set_wakeup_fd(wake.fileno(), warn_on_full_buffer=False)
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGCHLD):
            signal.signal(number, lambda *_: None)
        signal.pthread_sigmask(signal.SIG_SETMASK, [])  # inherited from whatever thread started us
        self.selector.register(self.signals, selectors.EVENT_READ)

        self.listener = socket.socket(socket.AF_UNIX)
        self.listener.bind(str(self.socket_dir / "supervisor.sock"))
        self.listener.listen(128)
        self.listener.setblocking(False)
        self.selector.register(self.listener, selectors.EVENT_READ)

    def run(self) -> None:
        """Serve until the last user has gone or a signal says stop. Raises Failed."""
        self.init_pgdata()
        (self.pgdata / "postmaster.pid").unlink(missing_ok=True)  # stale: we have the lock; its pid may live again
        self.servers.append(Server(self.config["postgres"], signal.SIGINT, self.uid, self.lock_fd))
        checks: list[Callable[[], bool]] = [self.postgres_ready]
        if self.config["valkey"] is not None:
            self.servers.append(Server(self.config["valkey"], signal.SIGTERM, self.uid, self.lock_fd))
            checks.append(self.valkey_ready)

        ready = ever_ready = False
        while True:
            for server in self.servers:
                if (status := server.process.poll()) is not None:
                    print(f"{server.name} ended with status {status}", file=sys.stderr, flush=True)
                    if not ever_ready or self.restarts == MAX_RESTARTS:
                        raise Failed(f"{server.name} ended with status {status}")
                    self.restarts += 1
                    time.sleep(0.1 * self.restarts)  # the dead postmaster's backends have to go first
                    server.start()
                    ready = False
            if not ready and all(check() for check in checks):
                ready = ever_ready = True
            if ready:
                self.tell_waiting(self.answer)
            if not self.handle_events(None if ready else POLL_INTERVAL):
                return

    def init_pgdata(self) -> None:
        if self.pgdata.exists():
            return
        import shutil  # slow to import, and rarely needed

        partial = self.data_dir / "pgdata.new"  # a killed initdb leaves half of one
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(mode=0o700)
        if self.uid is not None:
            os.chown(partial, self.uid, self.uid)
        initdb = Server([*self.config["initdb"], "-D", str(partial)], signal.SIGTERM, self.uid, self.lock_fd)
        if status := initdb.process.wait():
            raise Failed(f"initdb ended with status {status}")
        partial.rename(self.pgdata)
        folder = os.open(self.data_dir, os.O_RDONLY)
        os.fsync(folder)  # else a power cut could bring the old name back, which the next start would delete
        os.close(folder)

    def postgres_ready(self) -> bool:
        try:
            lines = (self.pgdata / "postmaster.pid").read_text().splitlines()
        except FileNotFoundError:
            return False
        return len(lines) >= 8 and lines[0] == str(self.servers[0].process.pid) and lines[7].strip() == "ready"

    def valkey_ready(self) -> bool:
        with socket.socket(socket.AF_UNIX) as probe:
            return probe.connect_ex(str(self.socket_dir / "valkey.sock")) == 0

    def handle_events(self, timeout: float | None) -> bool:
        """Wait for something to happen. False: it is time to stop."""
        gone: list[socket.socket] = []
        for key, _ in self.selector.select(timeout):
            if key.fileobj is self.listener:
                try:
                    user, _ = self.listener.accept()
                except OSError:  # gone already
                    continue
                self.users.add(user)
                self.waiting.add(user)
                self.selector.register(user, selectors.EVENT_READ)
            elif key.fileobj is not self.signals and isinstance(key.fileobj, socket.socket):
                gone.append(key.fileobj)  # users say nothing: this is the end of the connection
        with contextlib.suppress(BlockingIOError):
            # Also when select saw none: no user must be answered after a signal that came before them.
            if not {signal.SIGTERM, signal.SIGINT}.isdisjoint(self.signals.recv(1024)):
                return False
        if self.users.issubset(gone):
            return False  # the last ones' connections stay open until we have ended: that is what close() waits for
        for user in gone:
            self.selector.unregister(user)
            self.users.discard(user)
            self.waiting.discard(user)
            user.close()
        return True

    def tell_waiting(self, answer: dict[str, Any]) -> None:
        for user in self.waiting:
            with contextlib.suppress(OSError):  # gone: the selector will say so
                user.sendall(json.dumps(answer).encode() + b"\n")
        self.waiting.clear()

    def stop(self) -> None:
        """Stop the servers. Whoever connects from here on gets no answer, and tries for the lock."""
        self.listener.close()
        for server in self.servers:
            server.process.send_signal(server.stop_signal)  # does nothing to one that has ended
        for server in self.servers:
            server.stop()
        for left_over in self.socket_dir.iterdir():
            left_over.unlink()
        self.socket_dir.rmdir()


def main() -> None:
    """Run as `supervisor.py DATA_DIR` (to be told apart in `ps`), with all the rest as JSON on standard input."""
    config = json.load(sys.stdin)
    if os.fork():
        os._exit(0)  # nobody has to reap the supervisor
    supervisor = Supervisor(config)
    try:
        supervisor.run()
    except (Failed, OSError) as error:
        supervisor.tell_waiting({"error": str(error)})
        raise
    finally:
        supervisor.stop()


if __name__ == "__main__":
    main()
