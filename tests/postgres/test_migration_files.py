from __future__ import annotations

import re

import chatledger
from chatledger.postgres.migrations import definitions, migrations, psql_script, sql_folder


def test_install_sql_is_what_make_install_sql_writes() -> None:
    assert (sql_folder() / "install.sql").read_text("utf-8") == psql_script(), "run `make install-sql`"


def test_migrations_are_numbered_from_one_without_a_gap() -> None:
    assert [migration.number for migration in migrations()] == list(range(1, len(migrations()) + 1))


def test_migrations_do_not_call_our_functions() -> None:
    functions = [path.stem for path in definitions() if "functions" in path.parts]
    for migration in migrations():
        sql = re.sub(r"drop function [^;]*;", "", migration.sql)
        for function in functions:
            assert not re.search(rf"chatledger(_internal)?\.{function}\s*\(", sql), (migration.name, function)


def test_operators_are_told_what_each_migration_locks() -> None:
    told = (sql_folder().parent / "docs" / "operations.md").read_text("utf-8")
    for migration in migrations():
        assert f"\n| `{migration.name}` | " in told, "add what it locks to docs/operations.md"


def test_version_sql_has_the_release_of_the_package() -> None:
    text = (sql_folder() / "functions" / "version.sql").read_text("utf-8")
    assert f"'{chatledger.__version__}'" in text
