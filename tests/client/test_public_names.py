"""The public face: what ``from chatledger import …`` gives."""

from __future__ import annotations

import pickle

import pytest
from pydantic import BaseModel

import chatledger
from chatledger import ChatMessage, ChatSession, Usage

CLASSES = [name for name in chatledger.__all__ if isinstance(getattr(chatledger, name), type)]


def test_names_are_sorted_and_there() -> None:
    assert [*chatledger.__all__] == sorted(chatledger.__all__)
    assert all(hasattr(chatledger, name) for name in chatledger.__all__)


@pytest.mark.parametrize("name", CLASSES)
def test_a_class_is_of_the_package(name: str) -> None:
    public = getattr(chatledger, name)
    assert (public.__module__, public.__qualname__) == ("chatledger", name)
    assert pickle.loads(pickle.dumps(public)) is public
    if issubclass(public, BaseModel):
        assert public.model_json_schema()["type"] == "object"


def test_classes_can_be_derived_from() -> None:
    class Mine(ChatSession):
        mood: str = "calm"

    mine = Mine.new(title="T")
    assert Mine.model_validate_json(mine.model_dump_json()) == mine


def test_objects_are_pickled_by_their_public_name() -> None:
    session = ChatSession.new(title="T")
    session.messages.append(ChatMessage(role="user", content="hi"))
    session.usage.append(Usage(total_tokens=1))
    pickled = pickle.dumps(session)
    assert b"chatledger.models.session" not in pickled
    assert pickle.loads(pickled) == session
