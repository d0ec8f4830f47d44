"""What goes to Postgres is storable, and nothing is lost on the way."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from chatledger import ChatMessage, InvalidArgument, InvalidMessage
from chatledger.postgres.encoding import clean_text, encode_json, encode_message, encode_object
from tests.helpers.properties import examples

any_text = st.text(st.characters())  # lone surrogates and NUL included
any_json = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**70), 2**70)
    | st.floats(allow_nan=False, allow_infinity=False)
    | any_text,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(any_text, inner, max_size=3),
    max_leaves=10,
)


def storable(text: str) -> bool:
    return "\0" not in text and not any("\ud800" <= c <= "\udfff" for c in text)


@examples
@given(any_text)
def test_clean_text_changes_only_what_postgres_cannot_store(text: str) -> None:
    cleaned = clean_text(text)
    assert storable(cleaned)
    assert len(cleaned) == len(text)
    assert all(after == before for before, after in zip(text, cleaned, strict=True) if storable(before))


@examples
@given(any_json)
def test_encoded_json_is_storable_and_keeps_every_item(value: Any) -> None:
    text = encode_json(value)
    assert storable(text)
    assert "\\u0000" not in text.replace("\\\\", "")
    assert count_items(json.loads(text)) == count_items(value)


def count_items(value: Any) -> int:
    if isinstance(value, dict):
        return 1 + sum(count_items(item) for item in value.values())
    if isinstance(value, list):
        return 1 + sum(count_items(item) for item in value)
    return 1


def test_keys_that_differ_only_in_a_replaced_character_both_stay() -> None:
    decoded = json.loads(encode_json({"a\0": 1, "a\ufffd": 2}))
    assert sorted(decoded.values()) == [1, 2]


def test_an_escaped_backslash_before_u0000_is_left_alone() -> None:
    assert json.loads(encode_json("\\u0000")) == "\\u0000"


def test_large_floats_stay_equal_when_written_out_in_full() -> None:
    assert json.loads(encode_json({"x": 1e23, "y": [1.5e300]})) == {"x": 1e23, "y": [1.5e300]}


def test_a_message_keeps_its_id_over_encodings() -> None:
    message = ChatMessage(role="user", content="hi")
    assert encode_message(message, 0) == encode_message(message, 0)


def test_absent_fields_places_and_nones_are_not_sent() -> None:
    message = ChatMessage(message_id="m1", role="user", content="hi", sequence=4, created_at=datetime.now(UTC))
    assert json.loads(encode_message(message, 0)) == {"message_id": "m1", "role": "user", "content": "hi"}


def test_unknown_keys_are_sent_also_when_they_are_none() -> None:
    message = ChatMessage.model_validate({"message_id": "m1", "role": "assistant", "audio": None, "x": {"y": None}})
    assert json.loads(encode_message(message, 0)) == {
        "message_id": "m1",
        "role": "assistant",
        "audio": None,
        "x": {"y": None},
    }


def test_a_mapping_without_an_id_gets_one_and_stays_as_it_is() -> None:
    given = {"role": "user", "content": "hi"}
    assert json.loads(encode_message(given, 0))["message_id"]
    assert given == {"role": "user", "content": "hi"}


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), datetime(2026, 1, 1, tzinfo=UTC), {1, 2}, b"x"])
def test_what_json_cannot_say_is_refused_with_index_and_field(bad: Any) -> None:
    with pytest.raises(InvalidMessage, match="message 3: metadata is not JSON") as refused:
        encode_message({"role": "user", "metadata": {"deep": [bad]}}, 3)
    assert (refused.value.index, refused.value.field) == (3, "metadata")


def test_a_message_that_contains_itself_is_refused() -> None:
    loop: dict[str, Any] = {"role": "user"}
    loop["metadata"] = {"loop": loop}
    with pytest.raises(InvalidMessage, match="metadata"):
        encode_message(loop, 0)


@pytest.mark.parametrize("bad", ["hi", 7, None, ["role"]])
def test_what_is_no_message_is_refused(bad: Any) -> None:
    with pytest.raises(InvalidMessage, match="message 0: is a") as refused:
        encode_message(bad, 0)
    assert (refused.value.index, refused.value.field) == (0, "")


def test_an_object_argument_is_refused_by_name() -> None:
    with pytest.raises(InvalidArgument, match="metadata is not JSON"):
        encode_object({"x": object()}, "metadata")
