"""What becomes of the database's rows in Python."""

from __future__ import annotations

from copy import deepcopy
from datetime import UTC, datetime

from chatledger import ChatMessage
from chatledger.postgres import rows

NOW = datetime(2026, 1, 2, tzinfo=UTC)


def test_a_stored_message_is_what_a_checked_one_is() -> None:
    fields = {"message_id": "m1", "sequence": 0, "created_at": NOW, "role": "user", "content": "hi"}
    values = (fields | {"metadata": '{"a": 1}'}).get
    [stored] = rows.messages_of([tuple(map(values, rows.COLUMNS))])  # type: ignore[list-item]
    checked = ChatMessage.model_validate(dict.fromkeys(ChatMessage.model_fields) | fields | {"metadata": {"a": 1}})
    assert stored == checked
    assert stored.model_dump() == checked.model_dump()
    assert stored.model_fields_set == checked.model_fields_set
    stored.role = "assistant"
    stored.note = "kept"  # type: ignore[attr-defined]
    assert deepcopy(stored).model_dump() == checked.model_dump() | {"role": "assistant", "note": "kept"}
    [again] = rows.messages_of([tuple(map(values, rows.COLUMNS))])  # type: ignore[list-item]
    assert again == checked
