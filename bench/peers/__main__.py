"""``python -m bench.peers``: every store does the same work against the same server, in turn; medians."""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import psycopg
from rich.console import Console
from rich.progress import track

from bench import page
from bench.medians import Medians, rotated
from bench.peers import PEERS, ROWS, TITLES, UNITS, Peer
from bench.peers.work import BATCHES, SIZE, WRITERS
from bench.results import keep
from chatledger import embedded

ROOT = Path(__file__).parents[2]
ENVIRONMENTS = ROOT / ".venv" / "peers"
WORK = Path(__file__).with_name("work.py")


def interpreter(version: tuple[int, int]) -> str | None:
    """Return a Python of at least this version; None when this machine has none."""
    names = [sys.executable, *(f"python3.{minor}" for minor in range(version[1], 15))]
    check = f"import sys; sys.exit(sys.version_info < {version})"
    for name in names:
        found = shutil.which(name)
        if found and subprocess.run([found, "-c", check], capture_output=True, check=False).returncode == 0:
            return found
    return None


def environment(peer: Peer, console: Console) -> str | None:
    """Return the Python that has the peer installed; None when it cannot be."""
    if not peer.requirements:
        return sys.executable
    python = interpreter(peer.python)
    if python is None:
        return None
    folder = ENVIRONMENTS / re.split(r"[^\w-]", peer.requirements[0])[0]
    ready = folder / "ready"
    if not ready.exists() or ready.read_text() != " ".join(peer.requirements):
        console.print(f"installing {peer.name} …")
        subprocess.run([python, "-m", "venv", str(folder)], check=True)
        pip = [f"{folder}/bin/pip", "install", "--quiet", "--disable-pip-version-check", *peer.requirements]
        if subprocess.run(pip, check=False).returncode != 0:
            return None
        ready.write_text(" ".join(peer.requirements))
    return str(folder / "bin/python")


def work(peer: Peer, python: str, servers: embedded.EmbeddedServers) -> dict[str, float]:
    """Let a store do its work in a database of its own.

    Raises:
        subprocess.CalledProcessError: It could not.
    """
    name = f"peer_{peer.adapter}"
    with psycopg.connect(servers.database_url, autocommit=True) as server:
        server.execute(f"create database {name}".encode())
        try:
            url = servers.database_url.replace("/postgres?", f"/{name}?").removesuffix("&port=5432")
            command = [python, str(WORK), peer.adapter, url, str(servers.redis_url)]
            ours = os.environ | {"PYTHONPATH": str(ROOT)}  # the floor is measured elsewhere too
            done = subprocess.run(command, check=True, capture_output=True, text=True, timeout=600, env=ours)
        finally:
            server.execute(f"drop database {name} with (force)".encode())
    costs: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return costs


def remark(peer: Peer, rounds: list[dict[str, float]]) -> str | None:
    """What became of the concurrent appends, where not all is well."""
    total, batches = WRITERS * BATCHES * SIZE, WRITERS * BATCHES
    refused, missing, split = (max(costs[what] for costs in rounds) for what in ("refused", "missing", "split"))
    facts = [
        f"{refused:.0f} of {batches} batches were refused" if refused else "",
        f"{missing:.0f} of {total:,} messages that it had taken were not there afterwards" if missing else "",
        f"{split:.0f} messages stood apart from their batch" if split else "",
    ]
    return f"- {peer.name}: {', '.join(filter(None, facts))}." if any(facts) else None


def run(
    pythons: dict[Peer, str], rounds: int, servers: embedded.EmbeddedServers, console: Console
) -> dict[Peer, list[dict[str, float]]]:
    """Let the stores work in turn, so many rounds; one that fails is left out."""
    done: dict[Peer, list[dict[str, float]]] = {peer: [] for peer in pythons}
    for number in track(range(rounds), "peers", console=console):
        for peer in rotated([*done], number):
            try:
                done[peer].append(work(peer, pythons[peer], servers))
            except (subprocess.CalledProcessError, subprocess.TimeoutExpired) as error:
                console.print(f"{peer.name}: {error}\n{error.stderr!s}", markup=False)
                del done[peer]
    return done


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.peers", description=__doc__)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--only", nargs="*", default=[peer.adapter for peer in PEERS], help="these adapters")
    arguments = parser.parse_args()
    console = Console()
    asked = [peer for peer in PEERS if peer.adapter in arguments.only]
    pythons = {peer: python for peer in asked if (python := environment(peer, console)) is not None}

    folder = Path(tempfile.mkdtemp(prefix="chatledger-bench-"))
    folder.chmod(0o755)  # for the server's user, when we are root
    try:
        with embedded.start(folder) as servers:
            with psycopg.connect(servers.database_url) as server:
                version = str(server.info.parameter_status("server_version"))
            done = run(pythons, arguments.rounds, servers, console)
    finally:
        shutil.rmtree(folder)

    remarks = [
        f"- {peer.name} is left out: it needs Python {'.'.join(map(str, peer.python))}, or could not be installed."
        for peer in asked
        if peer not in pythons
    ]
    remarks += [f"- {peer.name} is left out: it failed." for peer in pythons if peer not in done]
    remarks += filter(None, (remark(peer, rounds) for peer, rounds in done.items()))
    for what, title in TITLES.items():
        medians = Medians()
        for peer, rounds in done.items():
            for costs in rounds:
                medians.add(ROWS[what], peer.name, costs[what])
        keep(title, UNITS[what], medians.by_what(), version, console, remarks if what == "concurrent" else ())
    page.write()


if __name__ == "__main__":
    main()
