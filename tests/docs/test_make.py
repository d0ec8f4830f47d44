"""What documents, hooks and ``make`` say of each other."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

ROOT = Path(__file__).parents[2]


def make(*arguments: str) -> str:
    return subprocess.run(["make", "-s", *arguments], cwd=ROOT, check=True, capture_output=True, text=True).stdout


def targets() -> set[str]:
    """The targets that ``make`` alone lists."""
    return set(re.findall(r"^make (\S+) +\S", make(), re.MULTILINE))


def linters(text: str) -> set[str]:
    """The linters that are run from .venv, with their subcommands."""
    found: list[str] = re.findall(r"\.venv/bin/(\w+(?: \w+)?)", text)
    return set(found)


def test_make_alone_lists_every_target() -> None:
    phony = re.search(r"^\.PHONY: ((?:.*\\\n)*.*)", (ROOT / "Makefile").read_text("utf-8"), re.MULTILINE)
    assert phony is not None
    assert targets() == set(phony[1].replace("\\", "").split())


def test_documents_name_targets_that_there_are() -> None:
    text = "\n".join(
        path.read_text("utf-8") for glob in ("*.md", "docs/*.md", "tests/*.md") for path in ROOT.glob(glob)
    )
    code = re.findall(r"`make ([^`]+)`|^\$ make ([^#\n]+)", text, re.MULTILINE)
    named = {word for pair in code for word in "".join(pair).split() if "=" not in word}
    assert len(named) > 8
    assert named <= targets()


def test_hooks_run_the_linters_of_make() -> None:
    hooks = linters("\n".join(re.findall("entry: (.*)", (ROOT / ".pre-commit-config.yaml").read_text("utf-8"))))
    assert hooks == linters(make("-n", "VENV=.venv", "lint", "types")) - {"pip install"}
