"""Writes demo.svg, the picture of the demo in the README: ``make demo-picture``."""

from __future__ import annotations

import asyncio
import io
import re
import shutil
import tempfile
from pathlib import Path

from rich.console import Console

from chatledger import ChatLedger, Settings
from chatledger.demo import show_writers
from chatledger.demo.writers import Target
from chatledger.embedded.binaries import postgres_bin_dir


async def show(data_dir: Path, console: Console) -> None:
    """Run the demo on a fresh embedded database."""
    async with ChatLedger(settings=Settings(database_url=None, data_dir=data_dir)) as ledger:
        target = Target(str(ledger.database_url), "demo-4f1c2a", "demo-user")
        await ledger.create_session(target.session_id, user_id=target.user_id)
        await show_writers(ledger, target, postgres_bin_dir(None) / "psql", console)


folder = Path(tempfile.mkdtemp(prefix="chatledger-demo-"))
folder.chmod(0o755)  # for the server's user, when we are root
console = Console(record=True, file=io.StringIO(), width=80)
try:
    asyncio.run(show(folder, console))
finally:
    shutil.rmtree(folder)
picture = console.export_svg(title="make demo", unique_id="demo")
# Whoever looks at it need not ask another server for a font.
picture = re.sub(r"@font-face \{.*?\}\s*", "", picture, flags=re.DOTALL).replace("Fira Code, ", "")
Path(__file__).with_name("demo.svg").write_text(picture)
