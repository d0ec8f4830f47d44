"""update_session: G4, G10 as SQL callers see them."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest

from tests.helpers.sql import everything, header, new_session, one, refused, users

if TYPE_CHECKING:
    from tests.helpers.sql import Connection


async def update(connection: Connection, arguments: str) -> Any:
    return await one(connection, f"select * from chatledger.update_session('s1', {arguments})")


@pytest.mark.parametrize(
    ("arguments", "field", "value"),
    [
        ("p_title => 'New'", "title", "New"),
        ("p_pinned => true", "pinned", True),
        ("p_status => 'archived'", "status", "archived"),
        ("p_metadata => '{\"a\": 1}'", "metadata", '{"a": 1}'),
    ],
)
async def test_changes_what_is_given_and_leaves_the_rest(
    connection: Connection, arguments: str, field: str, value: Any
) -> None:
    await new_session(connection, users(1))
    before = await header(connection)

    row = await update(connection, arguments)

    after = await header(connection)
    assert row[field] == value
    # A pin is no activity: it does not move the session up its list.
    activity = set() if field == "pinned" else {"updated_at"}
    assert {key for key in after if after[key] != before[key]} == {field, "version"} | activity
    assert after["version"] == before["version"] + 1


async def test_answer_is_the_header_that_readers_see(connection: Connection) -> None:
    await new_session(connection, users(1))
    answer = await connection.fetchval("select to_jsonb(chatledger.update_session('s1', p_title => 'New'))")
    assert json.loads(answer) == await header(connection)


async def test_g4_metadata_is_merged_key_by_key(connection: Connection) -> None:
    await new_session(connection)
    await update(connection, """p_metadata => '{"keep": 1, "change": {"deep": 1}, "drop": 1}'""")

    await update(connection, """p_metadata => '{"change": 2, "drop": null, "new": []}'""")

    assert (await header(connection))["metadata"] == {"keep": 1, "change": 2, "new": []}


async def test_g4_two_who_change_different_fields_both_keep_theirs(connection: Connection) -> None:
    await new_session(connection)
    await update(connection, "p_title => 'Mine'")
    await update(connection, "p_pinned => true")
    row = await update(connection, "p_status => 'archived'")
    assert (row["title"], row["pinned"], row["status"]) == ("Mine", True, "archived")


@pytest.mark.parametrize("there", [None, ""])
async def test_title_only_if_empty_fills_an_empty_one(connection: Connection, there: str | None) -> None:
    await connection.execute("select chatledger.create_session('s1', p_title => $1)", there)
    row = await update(connection, "p_title => 'Generated', p_only_if_empty => true")
    assert row["title"] == "Generated"


async def test_g4_title_only_if_empty_does_not_overwrite_one(connection: Connection) -> None:
    await connection.execute("select chatledger.create_session('s1', p_title => 'By hand')")
    before = await everything(connection)

    row = await update(connection, "p_title => 'Generated', p_only_if_empty => true")

    assert row["title"] == "By hand"
    assert await everything(connection) == before


@pytest.mark.parametrize(
    "arguments",
    [
        "p_title => null",
        "p_title => 'Same'",
        "p_pinned => false",
        "p_status => 'active'",
        "p_metadata => '{}'",
        'p_metadata => \'{"a": 1, "absent": null}\'',
    ],
)
async def test_setting_what_is_already_so_changes_nothing(connection: Connection, arguments: str) -> None:
    await connection.execute("select chatledger.create_session('s1', p_title => 'Same', p_metadata => '{\"a\": 1}')")
    before = await everything(connection)

    assert (await update(connection, arguments))["version"] == 1

    assert await everything(connection) == before


@pytest.mark.parametrize("metadata", ["null", "1", '"text"', "[]"])
async def test_g10_metadata_that_is_not_an_object_is_refused(connection: Connection, metadata: str) -> None:
    await new_session(connection)
    before = await everything(connection)

    with refused("CL008", argument="metadata"):
        await update(connection, f"p_metadata => '{metadata}'")

    assert await everything(connection) == before


async def test_g10_unknown_session_is_refused(connection: Connection) -> None:
    with refused("CL001", session_id="s1"):
        await update(connection, "p_title => 'New'")


async def test_an_empty_title_takes_the_title_away(connection: Connection) -> None:
    await new_session(connection)
    await update(connection, "p_title => 'T'")
    assert (await update(connection, "p_title => ''"))["title"] is None
    assert (await update(connection, "p_title => 'New', p_only_if_empty => true"))["title"] == "New"
