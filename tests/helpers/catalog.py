"""The functions and views of the ledger: their signatures, by their files, and calls of them."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import pglast

from chatledger.postgres.migrations import sql_folder

if TYPE_CHECKING:
    from tests.helpers.sql import Connection

Argument = tuple[str, str]


def signature(path: Path) -> list[Argument]:
    """Name and type of each argument of the function in this file."""
    create: Any = pglast.parse_sql(path.read_text("utf-8"))[0].stmt
    return [
        (parameter.name, parameter.argType.names[-1].sval + "[]" * bool(parameter.argType.arrayBounds))
        for parameter in create.parameters or ()
        if parameter.mode != pglast.enums.FunctionParameterMode.FUNC_PARAM_TABLE
    ]


PUBLIC = {path.stem: signature(path) for path in sorted((sql_folder() / "functions").glob("*.sql"))}
VIEWS = {"active_streams", "session_holders", "session_overview", "transcript"}

# The life of a session, and all ways to read it

LIFE = [
    "select chatledger.create_session('s1', 'u1')",
    'select chatledger.append_messages(\'s1\', array[\'{"message_id": "m0", "role": "assistant"}\']::jsonb[])',
    'select chatledger.append_messages(\'s1\', array[\'{"message_id": "m0", "role": "assistant"}\']::jsonb[])',
    'select chatledger.amend_message(\'s1\', \'m0\', \'{"content": "x", "metadata": {"a": null}}\')',
    'select chatledger.add_tool_call(\'s1\', \'{"id": "c1", "function": {"name": "f"}}\')',
    "select chatledger.update_session('s1', p_title => 'T', p_metadata => '{\"a\": 1}')",
    "select chatledger.record_usage('s1', 'use', 1, 1)",
    'select chatledger.save_session(\'s1\', p_read_version => 1, p_header => \'{"title": {"from": "T"}}\')',
    "select chatledger.begin_stream('s1', 'o', p_stream_id => 'x', p_max_streams => 1)",
    "select chatledger.renew_stream(session_id, fence) from chatledger.active_streams",
    "select chatledger.end_stream(session_id, fence) from chatledger.active_streams",
    "select chatledger.fork_session('s1', 's2')",
    "select chatledger.truncate_session('s1', 0)",
    "select chatledger.delete_session('s1')",
]
READS = [
    "select * from chatledger.read_session('s1')",
    "select * from chatledger.read_session('s1', p_last => 1)",
    "select * from chatledger.read_session('s1', null, 0, 0)",
    "select * from chatledger.read_session('s1', null, 0, 0, p_limit => 1)",
    "select * from chatledger.follow_session('s1', p_echo => true)",
    "select * from chatledger.get_messages('s1')",
    "select * from chatledger.get_messages('s1', p_after => -1, p_limit => 1)",
    "select * from chatledger.list_sessions('u1')",
    "select * from chatledger.list_sessions(null)",
    "select * from chatledger.verify_session('s1')",
    "select * from chatledger.verify_session()",
    "select * from chatledger.status()",
    "select chatledger.version()",
    "select chatledger.message_body(m) from chatledger.messages as m",
    *(f"select * from chatledger.{view}" for view in sorted(VIEWS)),
]


async def names(connection: Connection, query: str, *arguments: Any) -> list[str]:
    return [row[0] for row in await connection.fetch(query, *arguments)]
