"""The client's modules lie in layers: each imports only what is below it, and none imports itself over others."""

from __future__ import annotations

from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

import chatledger
from tests.helpers.imports import imports, modules

# Lowest first. The package itself, which is what users import, and __main__ are above all of them.
LAYERS = [
    ["errors", "config", "version"],
    ["models"],
    ["postgres", "embedded"],
    ["saving"],
    ["streams", "following", "cache"],
    ["resources"],
    ["ledger"],
    ["chat", "sync", "transfer", "integrations"],
    ["demo"],
    ["cli"],
    ["", "__main__"],
]
APART = {"streams", "following", "cache"}
"""Parts of one layer that do not import each other."""
LATE = {"embedded", "demo"}
"""What a function may import: parts that most programs never load."""


def broken_rules(folder: Path) -> list[str]:
    """What is wrong with the imports of the package in this folder, a line each."""
    height = {part: number for number, layer in enumerate(LAYERS) for part in layer}

    def part(module: str) -> str:
        return module.removeprefix(folder.name).lstrip(".").split(".")[0]

    homeless = [module for module in modules(folder) if part(module) not in height]
    if homeless:
        return [f"{module} is in no layer" for module in homeless]
    problems = []
    graph: dict[str, list[str]] = {}
    for module, target, place in imports(folder):
        here, there = part(module), part(target)
        if height[there] > height[here]:
            problems.append(f"{module} imports {target}, which is above it")
        if here != there and {here, there} <= APART:
            problems.append(f"{module} imports {target}, which is beside it")
        if place == "function" and there not in LATE:
            problems.append(f"{module} imports {target} in a function")
        graph.setdefault(module, []).append(target)
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        problems.append(f"a circle: {' -> '.join(reversed(error.args[1]))}")
    return problems


def test_the_clients_imports_keep_the_rules() -> None:
    folder = Path(chatledger.__file__).parent
    assert len(imports(folder)) > 100
    assert broken_rules(folder) == []


TIDY = {
    "__init__": "from made.chat import talk",
    "__main__": "import made.cli",
    "config": "from made.errors import Wrong",
    "errors": "",
    "models/__init__": "",
    "models/message": "from made.errors import Wrong",
    "models/session": "from . import message",
    "postgres/rows": "import json, openai\nfrom made.models.session import Session",
    "streams/stream": "from made.postgres import rows",
    "following/follower": "from made.postgres import rows",
    "ledger": "from made.streams.stream import Stream\ndef open():\n    from made import embedded",
    "embedded/__init__": "def start():\n    from . import folders",
    "embedded/folders": "",
    "chat": "from made.ledger import Ledger",
    "cli": "from made.chat import talk",
}


def made(folder: Path, **changed: str) -> Path:
    """A small package; its files by their names, with a double underscore for a slash."""
    for name, text in (TIDY | {name.replace("__", "/"): text for name, text in changed.items()}).items():
        path = folder / "made" / f"{name}.py"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return folder / "made"


def test_a_tidy_package_breaks_no_rule(tmp_path: Path) -> None:
    assert broken_rules(made(tmp_path)) == []


@pytest.mark.parametrize(
    ("name", "text", "problem"),
    [
        ("models__message", "import made.postgres.rows", "models.message imports postgres.rows, which is above it"),
        ("models__message", "from ..postgres import rows", "models.message imports postgres.rows, which is above it"),
        ("saving", "if TYPE_CHECKING:\n    from made.ledger import A", "saving imports ledger, which is above it"),
        ("ledger", "from made import Ledger", "ledger imports made, which is above it"),
        ("cache__link", "import made.following.follower", "cache.link imports following.follower, which is beside it"),
        ("chat", "def talk():\n    import made.ledger", "chat imports ledger in a function"),
        ("models__message", "from . import session", "a circle: models.message -> models.session -> models.message"),
        ("errors", "if TYPE_CHECKING:\n    from .config import A", "a circle: config -> errors -> config"),
        ("errors", "try:\n    from .config import A\nfinally:\n    import os", "a circle: config -> errors -> config"),
        ("helpers", "", "helpers is in no layer"),
    ],
)  # fmt: skip
def test_a_broken_rule_is_found(tmp_path: Path, name: str, text: str, problem: str) -> None:
    assert problem in [line.replace("made.", "") for line in broken_rules(made(tmp_path, **{name: text}))]
