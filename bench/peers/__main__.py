"""``python -m bench.peers``: every store does the same work against the same server, in turn; medians."""

from __future__ import annotations

import argparse
import json
import os
import random
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
from bench.medians import Medians
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


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.peers", description=__doc__)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--only", nargs="*", default=[peer.adapter for peer in PEERS], help="these adapters")
    arguments = parser.parse_args()
    console = Console()
    pythons = {peer: environment(peer, console) for peer in PEERS if peer.adapter in arguments.only}
    remarks = [
        f"- {peer.name} is left out: it needs Python {'.'.join(map(str, peer.python))}, or could not be installed."
        for peer, python in pythons.items()
        if python is None
    ]
    rounds: dict[Peer, list[dict[str, float]]] = {peer: [] for peer in pythons}

    folder = Path(tempfile.mkdtemp(prefix="chatledger-bench-"))
    folder.chmod(0o755)  # for the server's user, when we are root
    try:
        with embedded.start(folder) as servers:
            with psycopg.connect(servers.database_url) as server:
                version = str(server.info.parameter_status("server_version"))
            for number in track(range(arguments.rounds), "peers", console=console):
                # A machine is slower at times: who is side by side changes with the round.
                for peer, python in random.Random(number).sample([*pythons.items()], len(pythons)):
                    if python is None:
                        continue
                    try:
                        costs = work(peer, python, servers)
                    except (subprocess.CalledProcessError, subprocess.TimeoutExpired) as error:
                        console.print(f"{peer.name}: {error}\n{error.stderr!s}", markup=False)
                        pythons[peer] = None
                        remarks.append(f"- {peer.name} is left out: it failed.")
                        continue
                    rounds[peer].append(costs)
    finally:
        shutil.rmtree(folder)
    rounds = {peer: costs for peer, costs in rounds.items() if pythons[peer] is not None}
    remarks += filter(None, (remark(peer, all_costs) for peer, all_costs in rounds.items()))
    for what, title in TITLES.items():
        medians = Medians()
        for peer, all_costs in rounds.items():
            for costs in all_costs:
                medians.add(ROWS[what], peer.name, costs[what])
        keep(title, UNITS[what], medians.by_what(), version, console, remarks if what == "concurrent" else ())
    page.write()


if __name__ == "__main__":
    main()
