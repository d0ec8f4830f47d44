"""Brings a database to this release's schema: migrations once, functions and views every time, in one transaction."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

import asyncpg

from chatledger.errors import from_postgres
from chatledger.version import __version__

if TYPE_CHECKING:
    from chatledger.postgres.functions import Connection

# SQL functions may name functions of files that come later.
_SETUP = "set local check_function_bodies = off"
# Only one migrator at a time in a database, be it this one or db/install.sql. A table and no advisory lock, which any
# login role could take. Who creates the schema at the same time waits for the other's transaction, too.
_LOCK = """do $lock$
begin
    set local lock_timeout = '1min';
    begin
        create schema if not exists chatledger;
        create table if not exists chatledger.migrations (
            number     integer     primary key,
            name       text        not null,
            checksum   text        not null,
            applied_at timestamptz not null default now()
        );
    exception when unique_violation or duplicate_schema or duplicate_table then
        null;  -- Another migrator has just created them.
    end;
    lock table chatledger.migrations in share row exclusive mode;
    set local lock_timeout to default;
exception when lock_not_available then
    raise exception using
        errcode = 'CL012',
        message = 'another transaction has kept the migrations locked for a minute',
        hint = 'Wait until the other migrator is done, or end its transaction, and migrate again.';
end
$lock$"""


@dataclass(frozen=True, slots=True)
class Migration:
    """A numbered file of ``db/migrations``."""

    number: int
    name: str
    sql: str = field(repr=False)

    @property
    def checksum(self) -> str:
        """SHA-256 of the file."""
        return hashlib.sha256(self.sql.encode()).hexdigest()


def sql_folder() -> Path:
    """Return the folder with the SQL: inside the installed package, or beside it in a source tree."""
    package = Path(__file__).parents[1]
    shipped = package / "db"
    return shipped if shipped.is_dir() else package.parents[1] / "db"


@cache
def migrations() -> tuple[Migration, ...]:
    """Return this release's migrations, in order."""
    paths = sorted((sql_folder() / "migrations").glob("*.sql"))
    return tuple(Migration(int(path.name[:4]), path.stem, path.read_text("utf-8")) for path in paths)


@cache
def definitions() -> tuple[Path, ...]:
    """Return the files that are applied every time: who may do what, functions, then views."""
    folders = ("functions/internal", "functions", "views")
    files = (path for folder in folders for path in sorted((sql_folder() / folder).glob("*.sql")))
    return (sql_folder() / "access.sql", *files)


async def pending(connection: Connection) -> list[Migration]:
    """Return the migrations that this database has not had.

    Raises:
        MigrationError: The server is too old; the database is newer than this release; or a migration that was applied
            has changed.
    """
    await _guarded(connection, _guard())
    if await connection.fetchval("select to_regclass('chatledger.migrations')") is None:
        return list(migrations())
    applied = {row["number"] for row in await connection.fetch("select number from chatledger.migrations")}
    return [migration for migration in migrations() if migration.number not in applied]


async def _guarded(connection: Connection, sql: str) -> None:
    try:
        await connection.execute(sql)
    except asyncpg.PostgresError as error:
        raise from_postgres(error) or error from error


async def migrate(connection: Connection) -> list[Migration]:
    """Bring a database to this release; return the migrations that were applied.

    Several at once are fine: one applies, the others find it done. Everything happens in one transaction.

    Raises:
        MigrationError: See :func:`pending`.
    """
    async with connection.transaction(isolation="read_committed"):
        await _guarded(connection, _LOCK)
        await connection.execute(_SETUP)
        todo = await pending(connection)
        for migration in todo:
            await connection.execute(migration.sql)
            await connection.execute(_record(migration))
        for path in definitions():
            await connection.execute(path.read_text("utf-8"))
    return todo


def plain_script(todo: list[Migration]) -> str:
    """Return what :func:`migrate` would run, as one script, for those who want to read it or run it themselves."""
    statements = [f"begin;\n{_LOCK};\n{_SETUP};\n{_guard()}"]
    for migration in todo:
        statements += [migration.sql, _record(migration)]
    statements += [path.read_text("utf-8") for path in definitions()]
    return "\n\n".join([*statements, "commit;\n"])


def psql_script() -> str:
    """Return ``db/install.sql``: the same as :func:`migrate`, for psql."""
    lines = [
        "-- Installs or upgrades chatledger with psql, to the same schema as `chatledger migrate`:",
        "--     psql -v ON_ERROR_STOP=1 -f db/install.sql",
        "-- Written by `make install-sql`; do not edit.",
        r"\set ON_ERROR_STOP on",
        "begin;",
        f"{_LOCK};",
        f"{_SETUP};",
        _guard(),
    ]
    for migration in migrations():
        applied = f"select from chatledger.migrations where number = {migration.number}"
        lines += [
            rf"select not exists ({applied}) as pending \gset",
            r"\if :pending",
            rf"\ir migrations/{migration.name}.sql",
            _record(migration),
            r"\endif",
        ]
    lines += [rf"\ir {path.relative_to(sql_folder())}" for path in definitions()]
    return "\n".join([*lines, "commit;", ""])


def _record(migration: Migration) -> str:
    return (
        "insert into chatledger.migrations (number, name, checksum)\n"
        f"values ({migration.number}, '{migration.name}', '{migration.checksum}');"
    )


def _guard() -> str:
    """Return the statement that refuses a database which this release must not touch."""
    known = ",\n            ".join(f"({m.number}, '{m.checksum}')" for m in migrations())
    return f"""do $guard$
declare
    v_release text := '0';
    v_changed text;
begin
    if current_setting('server_version_num')::integer < 140000 then
        raise exception using errcode = 'CL012',
            message = 'the server is PostgreSQL ' || current_setting('server_version'),
            hint = 'chatledger needs PostgreSQL 14 or newer.';
    end if;
    if to_regclass('chatledger.migrations') is null then
        return;
    end if;
    if to_regprocedure('chatledger.version()') is not null then
        v_release := chatledger.version();
    end if;
    if string_to_array(v_release, '.')::integer[] > string_to_array('{__version__}', '.')::integer[]
        or exists (select from chatledger.migrations where number > {migrations()[-1].number})
    then
        raise exception using errcode = 'CL012',
            message = format('the database has release %s, newer than this chatledger ({__version__})', v_release),
            hint = format('Install chatledger %s or newer.', v_release);
    end if;
    select applied.name into v_changed
    from chatledger.migrations as applied
    join (values
            {known}
    ) as known (number, checksum) using (number)
    where applied.checksum <> known.checksum;
    if found then
        raise exception using errcode = 'CL012',
            message = format('migration %s was applied to this database with other contents', v_changed),
            hint = 'Migrations are never edited once applied. Install an unchanged chatledger.';
    end if;
end
$guard$;"""
