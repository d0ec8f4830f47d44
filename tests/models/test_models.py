from __future__ import annotations

from datetime import UTC, datetime
from uuid import RFC_4122, UUID

import pytest
from pydantic import ValidationError

from chatledger import ChatMessage, ChatSession, HistoryRepair


def test_each_message_has_an_id_of_its_own() -> None:
    assert ChatMessage(role="user").message_id != ChatMessage(role="user").message_id


def test_ids_sort_by_the_millisecond_they_were_made_in(monkeypatch: pytest.MonkeyPatch) -> None:
    def made_at(nanoseconds: int) -> str:
        monkeypatch.setattr("time.time_ns", lambda: nanoseconds)
        return ChatMessage(role="user").message_id

    ids = [made_at(1_000_000 * millisecond) for millisecond in (1, 2, 255, 256, 2**40, 2**47)]
    assert ids == sorted(ids)
    assert {(UUID(one).version, UUID(one).variant) for one in ids} == {(7, RFC_4122)}


def test_unknown_keys_stay() -> None:
    message = ChatMessage.model_validate({"role": "assistant", "reasoning_content": "hm", "audio": None})
    dumped = message.model_dump()
    assert (dumped["reasoning_content"], dumped["audio"]) == ("hm", None)


def test_an_unknown_role_is_refused() -> None:
    with pytest.raises(ValidationError, match="role"):
        ChatMessage.model_validate({"role": "narrator"})


def test_a_session_goes_through_json_and_back_unchanged() -> None:
    now = datetime.now(UTC)
    session = ChatSession(
        session_id="s1",
        started_at=now,
        updated_at=now,
        metadata={"a": [1, None]},
        messages=[ChatMessage(role="user", content=[{"type": "text", "text": "hi"}], sequence=0, created_at=now)],
    )
    assert ChatSession.model_validate_json(session.model_dump_json()) == session


def test_a_session_as_openai_takes_it() -> None:
    session = ChatSession.new()
    call = {"id": "c1", "type": "function", "function": {"name": "f", "arguments": "{}"}}
    session.messages = [
        ChatMessage(role="user", content="hi"),
        ChatMessage(role="assistant", content="Let me look."),
        ChatMessage(role="assistant", tool_calls=[call]),
    ]
    repairs: list[HistoryRepair] = []
    sent = session.to_openai_messages(on_repair=repairs.append)
    assert [message["role"] for message in sent] == ["user", "assistant", "tool"]
    assert [repair.kind for repair in repairs] == ["missing_result"]
    assert len(session.to_openai_messages(repair=False)) == 2
    assert len(ChatSession._merge_consecutive_assistant_messages(session.messages)) == 2
    assert len(session.messages) == 3
