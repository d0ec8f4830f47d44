"""Who imports whom, read from the files without running them."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from importlib.util import resolve_name
from pathlib import Path
from typing import Literal, NamedTuple

Place = Literal["file", "function", "types"]


class Import(NamedTuple):
    """A module imports another one: when it is loaded, when a function runs, or for type checkers only."""

    module: str
    target: str
    place: Place


def modules(folder: Path) -> dict[str, Path]:
    """The modules of a folder by their names, which begin with the folder's."""
    found = {}
    for path in sorted(folder.rglob("*.py")):
        parts = path.relative_to(folder.parent).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def imports(folder: Path) -> list[Import]:
    """All imports of each other that the modules of a folder make."""
    paths = modules(folder)
    found = []
    for module, path in paths.items():
        package = module if path.name == "__init__.py" else module.rpartition(".")[0]
        for statement, place in _statements(ast.parse(path.read_text("utf-8")), "file"):
            for name in _names(statement, package):
                target = name  # a module, or something in one
                while target and target not in paths:
                    target = target.rpartition(".")[0]
                if target:
                    found.append(Import(module, target, place))
    return found


def _statements(node: ast.AST, place: Place) -> Iterator[tuple[ast.Import | ast.ImportFrom, Place]]:
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.Import | ast.ImportFrom):
            yield child, place
        elif isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef):
            yield from _statements(child, "function")
        elif isinstance(child, ast.If) and ast.unparse(child.test) == "TYPE_CHECKING":
            yield from _statements(child, "types")
        else:
            yield from _statements(child, place)


def _names(statement: ast.Import | ast.ImportFrom, package: str) -> list[str]:
    if isinstance(statement, ast.Import):
        return [alias.name for alias in statement.names]
    source = resolve_name("." * statement.level + (statement.module or ""), package)
    return [f"{source}.{alias.name}" for alias in statement.names]
