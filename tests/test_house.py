"""Tests share what they need through tests/helpers, and nothing else of each other."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

from tests.helpers.imports import imports, modules


def broken_rules(folder: Path) -> list[str]:
    """What is wrong with the tests of this folder, a line each."""

    def is_helper(module: str) -> bool:
        return f"{module}.".startswith(f"{folder.name}.helpers.")

    problems = []
    for module, target, _ in imports(folder):
        here, there = module.rpartition(".")[0], target.rpartition(".")[0]
        if target.rpartition(".")[2].startswith("test_"):
            problems.append(f"{module} imports the tests of {target}")
        elif there != here and not is_helper(target):
            problems.append(f"{module} imports {target} of another folder")
    for module, path in modules(folder).items():
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if (
                isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
                and node.name == "user"
                and module != f"{folder.name}.helpers.messages"
            ):
                problems.append(f"{module} has a user() of its own")
    return problems


def test_tests_keep_the_rules() -> None:
    folder = Path(__file__).parent
    assert len(imports(folder)) > 50
    assert broken_rules(folder) == []


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("from tests.helpers.messages import user\nfrom . import conftest, servers", None),
        ("from .test_b import thing", "tests.a.test_a imports the tests of tests.a.test_b"),
        ("def test():\n    from tests.b import test_c", "tests.a.test_a imports the tests of tests.b.test_c"),
        ("import tests.b.conftest", "tests.a.test_a imports tests.b.conftest of another folder"),
        ("from tests.conftest import url_of", "tests.a.test_a imports tests.conftest of another folder"),
        ("def user(): ...", "tests.a.test_a has a user() of its own"),
        ("class A:\n    async def user(self): ...", "tests.a.test_a has a user() of its own"),
    ],
)  # fmt: skip
def test_a_broken_rule_is_found(tmp_path: Path, text: str, problem: str | None) -> None:
    files = {"a/test_b": "", "a/conftest": "", "a/servers": "", "b/test_c": "", "b/conftest": "", "conftest": ""}
    files |= {"helpers/messages": "from tests.helpers import sql\ndef user(): ...", "helpers/sql": ""}
    for name, content in (files | {"a/test_a": text}).items():
        path = tmp_path / "tests" / f"{name}.py"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)
    assert broken_rules(tmp_path / "tests") == ([] if problem is None else [problem])
