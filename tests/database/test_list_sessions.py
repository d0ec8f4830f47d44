"""list_sessions: pinned first, newest first, in pages."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest

from tests.helpers.sql import append, header, new_session, refused, user_json

if TYPE_CHECKING:
    from tests.helpers.sql import Connection


async def listed(connection: Connection, arguments: str = "'u1'") -> list[str]:
    return [
        row["session_id"]
        for row in await connection.fetch(f"select session_id from chatledger.list_sessions({arguments})")
    ]


async def pages(connection: Connection, user_id: str | None, limit: int) -> list[list[str]]:
    """All pages, by the cursor of the last row of the one before."""
    found: list[list[str]] = []
    cursor = None
    while rows := await connection.fetch("select * from chatledger.list_sessions($1, $2, $3)", user_id, limit, cursor):
        found.append([row["session_id"] for row in rows])
        cursor = rows[-1]["cursor"]
    return found


async def changed_at(connection: Connection, session_id: str, time: str) -> None:
    await connection.execute(
        f"update chatledger.sessions set updated_at = timestamptz '{time}' where id = $1", session_id
    )


async def titled(connection: Connection, *titles: str | None) -> None:
    """Sessions with these titles, called like them, the last one newest."""
    for title in titles:
        await connection.execute("select chatledger.create_session($1, 'u1', $2)", title or "untitled", title)


async def test_last_changed_first(connection: Connection) -> None:
    for session_id in ("s1", "s2", "s3"):
        await new_session(connection, session_id=session_id)
    await append(connection, [user_json("m")], session_id="s2")
    assert await listed(connection) == ["s2", "s3", "s1"]


async def test_pinned_ones_before_all_others(connection: Connection) -> None:
    for session_id in ("s1", "s2", "s3", "s4"):
        await new_session(connection, session_id=session_id)
    for session_id in ("s1", "s2"):
        await connection.execute("select chatledger.update_session($1, p_pinned => true)", session_id)
    await append(connection, [user_json("m")], session_id="s3")
    assert await listed(connection) == ["s2", "s1", "s3", "s4"]


async def test_order_holds_across_hours_and_years(connection: Connection) -> None:
    times = [
        "1999-12-31 23:59",
        "2001-01-01",
        "2026-05-05 10:00:00.000001",
        "2026-05-05 10:00:00.000002",
        "2026-05-05 11:00",
    ]
    for number, time in enumerate(times):
        await new_session(connection, session_id=f"s{number}")
        await changed_at(connection, f"s{number}", time)
    assert await listed(connection) == ["s4", "s3", "s2", "s1", "s0"]
    assert await pages(connection, "u1", 2) == [["s4", "s3"], ["s2", "s1"], ["s0"]]


async def test_row_is_the_header_and_a_cursor(connection: Connection) -> None:
    await new_session(connection, [user_json("m")])
    row = await connection.fetchval("select to_jsonb(listed) from chatledger.list_sessions('u1') as listed")
    found: dict[str, Any] = json.loads(row)
    assert found.pop("cursor")
    assert found == await header(connection)


async def test_only_the_users_own(connection: Connection) -> None:
    await new_session(connection, session_id="s1", user_id="u1")
    await new_session(connection, session_id="s2", user_id="u2")
    await new_session(connection, session_id="s3", user_id=None)

    assert await listed(connection, "'u1'") == ["s1"]
    assert await listed(connection, "'U1'") == []
    assert await listed(connection, "''") == []


async def test_everybodys_for_a_trusted_caller(connection: Connection) -> None:
    await new_session(connection, session_id="s1", user_id="u1")
    await new_session(connection, session_id="s2", user_id=None)
    assert await listed(connection, "null") == ["s2", "s1"]


async def test_deleted_ones_are_absent(connection: Connection) -> None:
    await new_session(connection, session_id="s1")
    await new_session(connection, session_id="s2")
    await connection.execute("select chatledger.delete_session('s2')")
    assert await listed(connection) == ["s1"]
    assert await listed(connection, "null") == ["s1"]


@pytest.mark.parametrize("user_id", ["u1", None], ids=["a user", "everybody"])
@pytest.mark.parametrize("together", [False, True], ids=["times apart", "all at one time"])
async def test_pages_give_each_session_once(connection: Connection, user_id: str | None, together: bool) -> None:
    for number in range(25):
        await new_session(connection, session_id=f"s{number:02}/'é\n", user_id="u1")
    await connection.execute("update chatledger.sessions set pinned = true where id like 's%4%'")
    if together:
        await connection.execute("update chatledger.sessions set updated_at = '2026-05-05 10:00:00.123456'")

    found = await pages(connection, user_id, 7)

    names = [[int(session_id[1:3]) for session_id in page] for page in found]
    assert names == [
        [24, 14, 4, 23, 22, 21, 20],
        [19, 18, 17, 16, 15, 13, 12],
        [11, 10, 9, 8, 7, 6, 5],
        [3, 2, 1, 0],
    ]


async def test_session_that_changes_while_somebody_pages_moves_nothing_else(connection: Connection) -> None:
    for number in range(6):
        await new_session(connection, session_id=f"s{number}")
    first = await connection.fetch("select * from chatledger.list_sessions('u1', 2)")
    await append(connection, [user_json("m")], session_id="s1")

    rest = await connection.fetch("select * from chatledger.list_sessions('u1', 10, $1)", first[-1]["cursor"])

    assert [row["session_id"] for row in first] == ["s5", "s4"]
    assert [row["session_id"] for row in rest] == ["s3", "s2", "s0"]


@pytest.mark.parametrize(
    ("looked_for", "found"),
    [
        ("oslo", ["Trip to Oslo", "OSLO"]),
        ("OSLO", ["Trip to Oslo", "OSLO"]),
        ("ÉCOLE", ["école"]),
        ("%", ["100% sure"]),
        ("_", ["snake_case"]),
        ("100% s", ["100% sure"]),
        ("\\", ["back\\slash"]),
        ("o.lo", []),
        ("nothing", []),
    ],
)
async def test_title_filter_is_literal_in_upper_or_lower_case(
    connection: Connection, looked_for: str, found: list[str]
) -> None:
    await titled(connection, "back\\slash", "snake_case", "100% sure", "école", "OSLO", "Trip to Oslo", "", None)
    rows = await connection.fetch("select title from chatledger.list_sessions('u1', p_title => $1)", looked_for)
    assert [row["title"] for row in rows] == found


async def test_status_filter(connection: Connection) -> None:
    await titled(connection, "a", "b", "c")
    await connection.execute("select chatledger.update_session('b', p_status => 'archived')")
    assert await listed(connection, "'u1', p_status => 'archived'") == ["b"]
    assert await listed(connection, "'u1', p_status => 'active'") == ["c", "a"]


async def test_filters_and_cursor_go_together(connection: Connection) -> None:
    await titled(connection, *(f"{kind} {number}" for number in range(5) for kind in ("cat", "dog")))
    first = await connection.fetch("select * from chatledger.list_sessions('u1', 3, p_title => 'cat')")
    rest = await connection.fetch(
        "select * from chatledger.list_sessions('u1', 3, $1, p_title => 'cat')", first[-1]["cursor"]
    )
    assert [row["title"] for row in [*first, *rest]] == ["cat 4", "cat 3", "cat 2", "cat 1", "cat 0"]


@pytest.mark.parametrize(
    "cursor",
    ["", "x", "t", "t/", "t/1", "t/1/", "/1/s1", "x/1/s1", "true/1/s1", "t//s1", "t/a/s1", "t/-1/s1", "t/1.5/s1"],
)
async def test_g10_bad_cursor_is_refused(connection: Connection, cursor: str) -> None:
    with refused("CL008", argument="cursor"):
        await connection.execute("select chatledger.list_sessions('u1', p_cursor => $1)", cursor)


async def test_g10_cursor_of_a_far_future_is_refused_before_it_overflows(connection: Connection) -> None:
    await new_session(connection)
    with refused("CL008", argument="cursor"):
        await listed(connection, f"'u1', p_cursor => 't/{'9' * 18}/s1'")
    assert await listed(connection, f"'u1', p_cursor => 't/{'9' * 17}/s1'") == ["s1"]


@pytest.mark.parametrize("limit", ["0", "-1", "1001", "null"])
async def test_g10_bad_limit_is_refused(connection: Connection, limit: str) -> None:
    with refused("CL008", argument="limit"):
        await listed(connection, f"'u1', {limit}")
