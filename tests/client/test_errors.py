"""One error for each SQLSTATE of ours."""

from __future__ import annotations

import re

import asyncpg

from chatledger import ChatLedgerError, InvalidMessage, SessionNotFound
from chatledger.errors import without_detail
from chatledger.postgres.migrations import sql_folder


def raised_in_sql() -> set[str]:
    functions = (sql_folder() / "functions").rglob("*.sql")
    return {code for path in functions for code in re.findall(r"errcode = '(CL\d+)'", path.read_text("utf-8"))}


def test_every_sqlstate_that_the_functions_raise_has_an_error() -> None:
    known = {error.sqlstate for error in ChatLedgerError.__subclasses__()}
    assert raised_in_sql()
    assert raised_in_sql() <= known


def test_the_text_says_what_was_wrong_and_what_to_do() -> None:
    error = SessionNotFound("session not found", detail={"session_id": "s1"}, hint="Create it first")
    assert str(error) == "session not found. Create it first"
    assert error.detail == {"session_id": "s1"}


def test_session_not_found_and_invalid_message_are_value_errors() -> None:
    assert issubclass(SessionNotFound, ValueError)
    assert issubclass(InvalidMessage, ValueError)


def test_what_postgres_quotes_of_a_row_is_left_out() -> None:
    error = asyncpg.PostgresError.new({"C": "23514", "M": "violates a constraint", "D": "Failing row: (words)"})
    assert "words" in str(error)
    assert without_detail(error) == "violates a constraint"
    assert without_detail(OSError(111, "refused")) == "[Errno 111] refused"
