"""G7 under load: processes fight for one session's stream, sleep past their leases, are killed and pushed aside."""

from __future__ import annotations

import asyncio
import os
import sys
from pathlib import Path

from tests.faults import streams


async def test_g7_at_every_moment_one_fence_is_valid(database_url: str, tmp_path: Path) -> None:
    torture = os.environ.get("CHATLEDGER_TEST_TORTURE") == "1"
    seconds, processes = (60, 8) if torture else (3, 4)
    struggle = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "tests.faults.streams", database_url, tmp_path, str(seconds), str(processes),
        cwd=Path(__file__).parents[2],
    )  # fmt: skip
    assert await struggle.wait() == 0

    verdict = await streams.check(database_url, tmp_path)

    print(dict(verdict.happened))
    assert verdict.problems == []
    assert all(verdict.happened[what] >= least for what, least in streams.ENOUGH.items())
