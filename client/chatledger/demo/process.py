"""The second Python process: appends each batch that it reads, and reports. Run with ``python -m``.

A batch is a line of JSON on standard input. On standard output: ``ready``; then, for each batch, ``sending`` when the
call begins, and ``stored`` with what the ledger told when it is committed.
"""

from __future__ import annotations

import asyncio
import json
import sys

from chatledger.ledger import ChatLedger


async def main(session_id: str, user_id: str) -> None:
    """Append what comes, until no more does."""
    async with ChatLedger() as ledger:
        print("ready", flush=True)
        while line := await asyncio.to_thread(sys.stdin.readline):
            batch = json.loads(line)
            print("sending", flush=True)
            receipts = await ledger.append_messages(session_id, batch, user_id=user_id)
            places = [(receipt.message_id, receipt.sequence, receipt.appended) for receipt in receipts]
            print("stored", json.dumps(places), flush=True)


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
