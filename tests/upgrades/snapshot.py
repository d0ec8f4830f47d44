"""Keeps what a release installs, for the tests of upgrades from it: run ``make upgrade-snapshot`` at a release.

Writes, named by the number of the last migration, ``NNNN.sql``: the whole install as one script; and
``NNNN.calls.sql``: the SQL that the client sends, a statement a line.
"""

from __future__ import annotations

import ast
import inspect
import re
from pathlib import Path

from chatledger.postgres import functions
from chatledger.postgres.migrations import migrations, plain_script

FOLDER = Path(__file__).parent


def calls() -> list[str]:
    """Return the statements of :mod:`chatledger.postgres.functions`."""
    texts = [
        # They are made of constants of the module.
        eval(compile(ast.Expression(node), functions.__file__, "eval"), vars(functions))
        for node in ast.walk(ast.parse(inspect.getsource(functions)))
        if isinstance(node, ast.JoinedStr) or (isinstance(node, ast.Constant) and isinstance(node.value, str))
    ]
    return sorted({text for text in texts if re.match(r"select .*chatledger\.\w+\(", text)})


def write(folder: Path, name: str) -> None:
    """Write the files of this source tree."""
    (folder / f"{name}.sql").write_text(plain_script(list(migrations())), "utf-8")
    (folder / f"{name}.calls.sql").write_text("".join(f"{call};\n" for call in calls()), "utf-8")


if __name__ == "__main__":
    write(FOLDER, f"{migrations()[-1].number:04}")
