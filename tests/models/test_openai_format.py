"""Whatever order the pieces of a history were stored in, OpenAI's API takes what comes out (G9)."""

from __future__ import annotations

import itertools
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, cast

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from chatledger import ChatMessage
from chatledger.models import openai_format
from chatledger.models.openai_format import (
    NO_NAME,
    NO_RESULT,
    HistoryRepair,
    merge_consecutive_assistant_messages,
    to_openai_messages,
)
from tests.helpers.messages import call, user
from tests.helpers.properties import TORTURE, examples

Dicts = list[dict[str, Any]]


def says(text: str | None, *calls: dict[str, Any], **fields: Any) -> ChatMessage:
    body = {"role": "assistant", "content": text, "tool_calls": list(calls) or None}
    return ChatMessage.model_validate(body | fields)


def result(call_id: str, text: str) -> ChatMessage:
    return ChatMessage(role="tool", tool_call_id=call_id, content=text)


def sent(
    messages: Sequence[ChatMessage], *, repair: bool = True, on_repair: Callable[[HistoryRepair], None] | None = None
) -> Dicts:
    return cast(Dicts, to_openai_messages(messages, repair=repair, on_repair=on_repair))


def brief(messages: Dicts) -> list[str]:
    """Each message in a word: its text, its calls, the call it answers."""
    words = []
    for message in messages:
        called = [f"{call['id']}()" for call in message.get("tool_calls", ())]
        answers = [f"{message['tool_call_id']}:"] if message["role"] == "tool" else []
        words.append(" ".join([*answers, *filter(None, [message["content"]]), *called]))
    return words


def kinds(*messages: ChatMessage) -> list[str]:
    repairs: list[HistoryRepair] = []
    to_openai_messages(messages, on_repair=repairs.append)
    return [repair.kind for repair in repairs]


# Merging


def test_consecutive_assistant_messages_become_one() -> None:
    [asked, merged, answered] = merge_consecutive_assistant_messages(
        [user("Rome?"), says("Let me see."), says("", call("c1")), says(None, call("c2")), says("Soon."), user("ok")]
    )
    assert (asked.content, answered.content) == ("Rome?", "ok")
    assert merged.content == "Let me see.\nSoon."
    assert merged.tool_calls == [call("c1"), call("c2")]


def test_merging_repairs_nothing() -> None:
    broken = [result("c1", "late"), says(""), user("hi"), says(None, call("c1")), user("still there?")]
    merged = merge_consecutive_assistant_messages(broken)
    assert all(after is before for after, before in zip(merged, broken, strict=True))


def test_content_parts_are_merged_with_texts() -> None:
    parts = [{"type": "text", "text": "two"}, {"type": "refusal", "refusal": "no"}]
    [merged] = merge_consecutive_assistant_messages(
        [says("one"), says(None, content=parts), says(None, content=[]), says("three")]
    )
    assert merged.content == [{"type": "text", "text": "one"}, *parts, {"type": "text", "text": "three"}]


def test_of_what_a_message_has_once_the_first_value_stays() -> None:
    first = says(None, call("c1"), message_id="m1", sequence=0, refusal="No.", function_call={})
    second = says("Sorry.", message_id="m2", sequence=1, name="bot", refusal="Never.", metadata={"a": 1})
    third = says(None, name="other", reasoning_content="hm", function_call={"name": "f"})
    [merged] = merge_consecutive_assistant_messages([first, second, third])
    assert (merged.message_id, merged.sequence, merged.name, merged.function_call) == ("m1", 0, "bot", {"name": "f"})
    assert (merged.content, merged.refusal) == ("Sorry.", "No.\nNever.")
    assert (merged.metadata, merged.model_extra) == ({"a": 1}, {"reasoning_content": "hm"})


@pytest.mark.parametrize("once", [{"audio": {"id": "a1"}}, {"function_call": {"name": "f", "arguments": "{}"}}])
def test_what_a_message_has_room_for_once_keeps_messages_apart(once: dict[str, Any]) -> None:
    messages = [says("one"), says(None, **once), says("two"), says(None, **once), says("three")]
    merged = merge_consecutive_assistant_messages(messages)
    assert [message.content for message in merged] == ["one\ntwo", "three"]


def test_dicts_in_openai_format_are_merged_too() -> None:
    messages: Dicts = [
        {"role": "user", "content": "hi"},
        {"role": "assistant", "content": "one"},
        {"role": "assistant", "content": "", "tool_calls": [call("c1")]},
    ]
    merged = cast(Dicts, merge_consecutive_assistant_messages(cast(Any, messages)))
    assert merged == [messages[0], {"role": "assistant", "content": "one", "tool_calls": [call("c1")]}]
    assert messages[1] == {"role": "assistant", "content": "one"}


# Converting


def test_only_what_the_api_knows_is_given() -> None:
    stored = {"metadata": {"a": 1}, "duration_ms": 5, "sequence": 7, "annotations": [], "reasoning_content": "hm"}
    messages = [
        ChatMessage.model_validate(
            {"role": "system", "content": "Be kind.", "name": "ops", "tool_call_id": "x"} | stored
        ),
        user("hi"),
        says(None, call("c1"), name="bot", refusal=None, audio=None, **stored),
        ChatMessage.model_validate({"role": "tool", "tool_call_id": "c1", "name": "f", "content": "42"} | stored),
        says("Bye.", refusal="No more.", audio={"id": "a1", "data": "UklG", "transcript": "Bye."}, tool_calls=[]),
    ]
    assert sent(messages) == [
        {"role": "system", "content": "Be kind.", "name": "ops"},
        {"role": "user", "content": "hi"},
        {"role": "assistant", "content": None, "name": "bot", "tool_calls": [call("c1")]},
        {"role": "tool", "content": "42", "name": "f", "tool_call_id": "c1"},
        {"role": "assistant", "content": "Bye.", "refusal": "No more.", "audio": {"id": "a1"}},
    ]


@pytest.mark.parametrize("role", ["system", "developer", "user"])
@pytest.mark.parametrize("nothing", [None, [], ""])
def test_missing_content_is_an_empty_text(role: str, nothing: Any) -> None:
    assert sent([ChatMessage.model_validate({"role": role, "content": nothing})]) == [{"role": role, "content": ""}]


def test_missing_content_of_an_assistant_message_is_none_only_beside_calls() -> None:
    legacy = {"name": "f", "arguments": "{}"}
    messages = [
        says(None, call("c1")),
        ChatMessage(role="tool", tool_call_id="c1"),
        says(None, function_call=legacy),
        ChatMessage(role="function", name="f"),
        says(None, refusal="No."),
    ]
    assert [message["content"] for message in sent(messages)] == [None, "", None, None, ""]


def test_calls_get_the_type_and_the_arguments_that_the_api_asks_for() -> None:
    custom = {"id": "c2", "custom": {"name": "sql", "input": "select 1"}}
    [message, *_] = sent([says(None, {"id": "c1", "function": {"name": "f"}}, custom, function_call={"name": "g"})])
    assert message["tool_calls"] == [call("c1", "f"), custom | {"type": "custom"}]
    assert message["function_call"] == {"name": "g", "arguments": "{}"}


@pytest.mark.parametrize(
    ("stored", "given"),
    [
        ({"function": {"name": "f", "arguments": None}}, {"name": "f", "arguments": "{}"}),
        ({"function": {"name": "f", "arguments": {"a": ["é"]}}}, {"name": "f", "arguments": '{"a": ["é"]}'}),
        ({"function": {"name": "f", "arguments": 0}}, {"name": "f", "arguments": "0"}),
        ({"type": None, "function": {"name": "f"}, "custom": None}, {"name": "f", "arguments": "{}"}),
        ({"type": "custom", "function": {"name": "f"}, "custom": {}}, {"name": "f", "arguments": "{}"}),
        ({"type": "custom", "custom": {"name": "x", "input": "y"}, "function": None}, {"name": "x", "input": "y"}),
        ({"type": "function", "custom": {"name": "x", "input": None}}, {"name": "x", "input": ""}),
        ({"type": 1, "custom": {"name": "x", "input": [1]}, "function": "f"}, {"name": "x", "input": "[1]"}),
        ({"type": "custom", "custom": {"name": "x"}, "function": {"name": "f"}}, {"name": "x", "input": ""}),
        ({"custom": {"name": "x"}, "function": {"name": "f"}}, {"name": "f", "arguments": "{}"}),
        ({"type": "custom", "custom": None}, {"name": NO_NAME, "input": ""}),
        ({"function": {"name": {"a": 1}}, "custom": 5}, {"name": NO_NAME, "arguments": "{}"}),
    ],
)
@pytest.mark.parametrize("tidy", [True, False])
def test_of_an_odd_call_comes_what_the_api_takes(stored: dict[str, Any], given: dict[str, Any], tidy: bool) -> None:
    kind = "function" if "arguments" in given else "custom"
    results = [result("c", "1")] if tidy else []
    [asked, *_] = sent([says(None, {"id": "c", "more": None} | stored), *results])
    assert asked["tool_calls"] == [{"id": "c", "type": kind, kind: given, "more": None}]


@pytest.mark.parametrize(
    ("part", "given"),
    [
        ({"type": "text", "text": None, "more": 1}, {"type": "text", "text": "", "more": 1}),
        ({"text": "hi"}, {"type": "text", "text": "hi"}),
        ({"type": None, "text": {"a": 1}}, {"type": "text", "text": '{"a": 1}'}),
        ({}, {"type": "text", "text": ""}),
        ({"type": "refusal"}, {"type": "refusal", "refusal": ""}),
        ({"type": "image_url", "image_url": {"url": 1}}, {"type": "image_url", "image_url": {"url": 1}}),
    ],
)
def test_odd_content_parts(part: dict[str, Any], given: dict[str, Any]) -> None:
    assert sent([ChatMessage(role="user", content=[part])]) == [{"role": "user", "content": [given]}]
    assert kinds(says(None, content=[part])) == ([] if given[given["type"]] else ["empty_message"])


def test_a_result_of_a_function_has_no_parts() -> None:
    parts = [{"type": "text", "text": "one"}, {"text": "two"}]
    answer = ChatMessage(role="function", name="f", content=parts)
    assert sent([says(None, function_call={"name": "f", "arguments": []}), answer]) == [
        {"role": "assistant", "content": None, "function_call": {"name": "f", "arguments": "[]"}},
        {"role": "function", "name": "f", "content": "one\ntwo"},
    ]


def test_names_of_messages_have_no_characters_that_the_api_refuses() -> None:
    [asked] = sent([ChatMessage(role="user", name="Ann <ö> O'Neil/2", content="hi")])
    assert asked["name"] == "Ann__ö__O'Neil_2"


def test_an_audio_without_an_id_is_none() -> None:
    odd = {"audio": {"id": None, "data": "UklG"}}
    assert sent([says("one", **odd), says("two", audio="x")]) == [{"role": "assistant", "content": "one\ntwo"}]
    assert kinds(says(None, **odd)) == ["empty_message"]


def test_the_result_shares_nothing_with_the_history() -> None:
    messages = [ChatMessage(role="user", content=[{"type": "text", "text": "hi"}]), says(None, call("c1"))]
    [asked, called, _] = sent(messages)
    asked["content"][0]["cache_control"] = called["tool_calls"][0]["function"]["name"] = "changed"
    assert messages[0].content == [{"type": "text", "text": "hi"}]
    assert messages[1].tool_calls == [call("c1")]


def test_openai_is_not_imported() -> None:
    """It takes half a second."""
    code = "import sys, chatledger.models.openai_format; sys.exit('openai' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


# Repairing


def test_a_late_result_moves_up_to_its_call() -> None:
    history = [user("Rome?"), says("Looking.", call("c1")), user("And?"), says("A moment."), result("c1", "sunny")]
    assert brief(sent(history)) == ["Rome?", "Looking. c1()", "c1: sunny", "And?", "A moment."]
    assert kinds(*history) == ["moved_result"]


def test_results_follow_in_the_order_of_the_calls() -> None:
    history = [says(None, call("c1"), call("c2"), call("c3")), *(result(f"c{n}", str(n)) for n in (2, 3, 1))]
    assert brief(sent(history)) == ["c1() c2() c3()", "c1: 1", "c2: 2", "c3: 3"]
    assert kinds(*history) == ["moved_result"]


def test_a_result_that_was_stored_before_its_call() -> None:
    history = [user("Rome?"), result("c1", "sunny"), result("c1", "rain"), says(None, call("c1")), user("And?")]
    assert brief(sent(history)) == ["Rome?", "c1()", "c1: sunny", "And?"]
    assert kinds(*history) == ["duplicate_result", "moved_result"]

    id_again = [*history, says(None, call("c1"))]
    assert brief(sent(id_again)) == ["Rome?", "c1()", "c1: sunny", "And?", "c1()", f"c1: {NO_RESULT}"]


def test_a_call_without_a_result_gets_a_stand_in() -> None:
    history = [says(None, call("c1"), call("c2")), result("c2", "2"), user("Never mind."), says(None, call("c3"))]
    assert brief(sent(history)) == [
        "c1() c2()", f"c1: {NO_RESULT}", "c2: 2", "Never mind.", "c3()", f"c3: {NO_RESULT}",
    ]  # fmt: skip
    assert kinds(*history) == ["missing_result", "missing_result"]


def test_of_two_results_the_first_stays() -> None:
    history = [says(None, call("c1")), result("c1", "running"), user("And?"), result("c1", "done")]
    assert brief(sent(history)) == ["c1()", "c1: running", "And?"]
    assert kinds(*history) == ["duplicate_result"]


def test_a_result_after_its_call_comes_before_one_in_front_of_it() -> None:
    """In front of it stands what is left of a call with the same id that was cut off."""
    history = [result("c1", "old"), user("Rome?"), says(None, call("c1")), user("And?"), result("c1", "sunny")]
    assert brief(sent(history)) == ["Rome?", "c1()", "c1: sunny", "And?"]
    assert kinds(*history) == ["duplicate_result", "moved_result"]


def test_a_result_without_a_call_is_dropped() -> None:
    assert brief(sent([user("hi"), result("c9", "lost"), says("hello")])) == ["hi", "hello"]
    assert kinds(user("hi"), result("c9", "lost")) == ["orphan_result"]


@pytest.mark.parametrize("content", [None, "", [], [{"type": "text", "text": ""}]])
def test_an_empty_assistant_message_is_dropped(content: Any) -> None:
    assert brief(sent([user("hi"), says(None, content=content), user("hello?")])) == ["hi", "hello?"]
    assert kinds(user("hi"), says(None, content=content), user("hello?")) == ["empty_message"]


@pytest.mark.parametrize("other", [{"refusal": "No."}, {"audio": {"id": "a1"}}])
def test_an_assistant_message_with_something_else_than_text_stays(other: dict[str, Any]) -> None:
    assert sent([says(None, **other)]) == [{"role": "assistant", "content": ""} | other]


def test_assistant_messages_that_become_neighbours_are_merged() -> None:
    history = [says(None, call("c1")), user("And?"), says("A moment."), result("c1", "sunny"), says("Sunny.")]
    assert brief(sent(history)) == ["c1()", "c1: sunny", "And?", "A moment.\nSunny."]
    assert brief(sent([says("one"), result("c9", "lost"), says("two")])) == ["one\ntwo"]


def test_ids_that_come_again_in_a_later_message() -> None:
    in_order = [says("1", call("c")), result("c", "a"), user("u"), says("2", call("c")), result("c", "b")]
    assert brief(sent(in_order)) == ["1 c()", "c: a", "u", "2 c()", "c: b"]
    assert kinds(*in_order) == []

    first_was_interrupted = [in_order[0], *in_order[2:]]
    assert brief(sent(first_was_interrupted)) == ["1 c()", f"c: {NO_RESULT}", "u", "2 c()", "c: b"]

    doubled_then_interrupted = [*in_order[:2], result("c", "a again"), *in_order[2:4]]
    assert brief(sent(doubled_then_interrupted)) == ["1 c()", "c: a", "u", "2 c()", f"c: {NO_RESULT}"]


def test_an_id_that_comes_again_in_its_message_is_replaced() -> None:
    history = [says(None, call("c", "f"), call("c_2")), says(None, call("c", "g"))]
    history += [result("c", "of f"), result("c_2", "other"), result("c", "of g")]
    assert brief(sent(history)) == ["c() c_2() c_3()", "c: of f", "c_2: other", "c_3: of g"]
    assert kinds(*history) == ["malformed_call"]


def test_calls_without_id_or_name_get_them() -> None:
    nameless = {"id": "c1", "type": "function", "function": {"arguments": "{}"}}
    idless = call("", "g")
    history = [says(None, nameless, idless, {}), result("c1", "1"), ChatMessage(role="tool", content="2")]
    [message, *_] = sent(history)
    assert message["tool_calls"] == [call("c1", NO_NAME), call("call", "g"), call("call_2", NO_NAME)]
    assert brief(sent(history))[1:] == ["c1: 1", "call: 2", f"call_2: {NO_RESULT}"]
    assert kinds(*history) == ["malformed_call", "malformed_call", "malformed_call", "missing_result"]


def test_legacy_functions_are_repaired_too() -> None:
    f, g = ({"name": name, "arguments": "{}"} for name in "fg")
    lost, late = (ChatMessage(role="function", name=name, content=name) for name in "hf")
    history = [says("one", function_call=f), says(None, function_call=g), lost, user("u"), late]
    assert sent(history) == [
        {"role": "assistant", "content": "one", "function_call": f},
        {"role": "function", "content": "f", "name": "f"},
        {"role": "assistant", "content": None, "function_call": g},
        {"role": "function", "content": NO_RESULT, "name": "g"},
        {"role": "user", "content": "u"},
    ]
    [nameless, stand_in] = sent([says(None, function_call={"arguments": "{}"})])
    assert (nameless["function_call"]["name"], stand_in["name"]) == (NO_NAME, NO_NAME)


def test_a_repair_says_what_was_where() -> None:
    repairs: list[HistoryRepair] = []
    late = ChatMessage(role="tool", tool_call_id="c1", content="42", message_id="m2", sequence=2)
    to_openai_messages([says(None, call("c1")), user("And?"), late, says("")], on_repair=repairs.append)
    [moved, empty] = repairs
    assert (moved.kind, moved.message_id, moved.sequence, moved.tool_call_id) == ("moved_result", "m2", 2, "c1")
    assert (empty.kind, empty.sequence, empty.tool_call_id) == ("empty_message", None, None)
    assert "moved" in moved.explanation


def test_repairs_can_be_switched_off() -> None:
    repairs: list[HistoryRepair] = []
    history = [result("c9", "lost"), says(None, call("c1")), says("one"), user("And?"), says("")]
    assert brief(sent(history, repair=False, on_repair=repairs.append)) == ["c9: lost", "one c1()", "And?", ""]
    assert repairs == []


# What the API asks for, written down without a look at the code.

KNOWN_KEYS = {
    "system": {"name"},
    "developer": {"name"},
    "user": {"name"},
    "assistant": {"name", "refusal", "audio", "tool_calls", "function_call"},
    "tool": {"tool_call_id", "name"},
    "function": {"name"},
}


def objections(messages: Dicts) -> Iterator[str]:
    """Yield what the API would refuse, and what we promise besides.

    That is: results in the order of the calls, and no two assistant messages in a row (unless both have audio, of which
    a message has room for one).
    """
    answers: set[int] = set()
    for at, message in enumerate(messages):
        role, content = message["role"], message["content"]
        if unknown := message.keys() - {"role", "content"} - KNOWN_KEYS[role]:
            yield f"{at}: unknown keys {unknown}"
        if content is None:
            if role != "function" and not message.get("tool_calls") and not message.get("function_call"):
                yield f"{at}: no content"
        elif content == [] or not isinstance(content, str if role == "function" else str | list):
            yield f"{at}: content is {content!r}"
        for part in content if isinstance(content, list) else ():
            if not isinstance(part.get("type"), str):
                yield f"{at}: a content part without a type"
            elif part["type"] in ("text", "refusal") and not isinstance(part.get(part["type"]), str):
                yield f"{at}: a content part without its text"
        if "name" in message and re.search(r"[\s<|\\/>]", message["name"]):
            yield f"{at}: the name is {message['name']!r}"
        if role in ("tool", "function"):
            if at not in answers:
                yield f"{at}: answers no call"
            continue
        if role != "assistant":
            continue

        before = messages[at - 1] if at else {"role": None}
        if before["role"] == "assistant" and not ("audio" in message and "audio" in before):
            yield f"{at}: two assistant messages in a row"
        texts = content if isinstance(content, str) else "".join(str(part.get(part["type"])) for part in content or ())
        if not texts and not message.keys() & {"refusal", "audio", "tool_calls", "function_call"}:
            yield f"{at}: an empty assistant message"
        expected = []
        for made in message.get("tool_calls", ()):
            expected.append(("tool", "tool_call_id", made["id"]))
            kind = made.get("type")
            if kind not in ("function", "custom") or not isinstance(made.get(kind), dict):
                yield f"{at}: a call without a type"
                continue
            if made.keys() & {"function", "custom"} != {kind}:
                yield f"{at}: a call of two types"
            if not isinstance(made[kind].get("name"), str) or not made[kind]["name"]:
                yield f"{at}: a call without a name"
            if not isinstance(made[kind].get("arguments" if kind == "function" else "input"), str):
                yield f"{at}: a call without arguments"
        if message.get("tool_calls") == []:
            yield f"{at}: an empty list of calls"
        if "function_call" in message:
            expected.append(("function", "name", message["function_call"].get("name")))
            if not isinstance(message["function_call"].get("arguments"), str):
                yield f"{at}: a call without arguments"
        if "audio" in message and not (message["audio"].keys() == {"id"} and isinstance(message["audio"]["id"], str)):
            yield f"{at}: audio is not just its id"
        if not all(isinstance(name, str) and name for _, _, name in expected) or len(set(expected)) < len(expected):
            yield f"{at}: a call without an id, or two with the same"
        following = messages[at + 1 : at + 1 + len(expected)]
        answered = [(m["role"], key, m.get(key)) for m, (_, key, _) in zip(following, expected, strict=False)]
        if answered != expected:
            yield f"{at}: not each call is answered right after"
        answers.update(range(at + 1, at + 1 + len(expected)))


@pytest.mark.parametrize(
    ("broken", "objection"),
    [
        ([result("c1", "lost")], "answers no call"),
        ([says(None, call("c1"))], "not each call is answered"),
        ([says(None, call("c1")), user("u"), result("c1", "late")], "not each call is answered"),
        ([says(None, call("c1")), result("c1", "a"), result("c1", "b")], "answers no call"),
        ([says(None, call("c1"), call("c2")), result("c2", "2"), result("c1", "1")], "not each call is answered"),
        ([says(None, call("c"), call("c")), result("c", "2"), result("c", "1")], "two with the same"),
        ([says(None, call("c", "")), result("c", "1")], "without a name"),
        ([says("")], "an empty assistant message"),
        ([says(None, function_call={"name": "f", "arguments": ""})], "not each call is answered"),
    ],
)
def test_the_checker_objects(broken: list[ChatMessage], objection: str) -> None:
    assert objection in "; ".join(objections(sent(broken, repair=False)))
    assert not list(objections(sent(broken)))


def test_the_checker_objects_to_neighbours() -> None:
    assert list(objections([{"role": "assistant", "content": text} for text in "ab"]))


# Any history


@st.composite
def histories(draw: st.DrawFn) -> list[ChatMessage]:
    """Messages in any order; each text and each call's arguments are there once: ``text 1;``, ``text 2;``, …"""
    numbers = itertools.count()
    text = st.builds(lambda: f"text {next(numbers)};")
    odd: st.SearchStrategy[Any] = st.sampled_from([None, 0, [], {"a": [1]}, ""])
    part = st.builds(lambda text: {"type": "text", "text": text}, text)
    odd_part = st.fixed_dictionaries(
        {}, optional={"type": st.sampled_from(["text", None, 5]), "text": text | odd}
    ) | st.fixed_dictionaries({"type": st.just("refusal")}, optional={"refusal": odd})
    parts = st.lists(part | part | st.just({"type": "text", "text": ""}) | odd_part, max_size=2)
    content = st.none() | st.just("") | text | parts
    name = st.sampled_from("fg")
    some_id = st.sampled_from(["a", "b", "a_2", "call", ""])
    text_or_odd = text | st.builds(lambda text: {"a": text}, text) | odd
    function = st.fixed_dictionaries({}, optional={"name": name, "arguments": text_or_odd})
    custom = st.fixed_dictionaries({"name": st.just("c")}, optional={"input": text_or_odd})
    some_type = st.sampled_from(["function", "custom", None, 5])
    nameless = odd | st.just({"name": 5, "arguments": None, "input": 1})
    some_call = st.fixed_dictionaries(
        {}, optional={"id": some_id | odd, "type": some_type, "function": function, "custom": st.none() | st.just(5)}
    )
    custom_call = st.fixed_dictionaries(
        {"id": some_id, "custom": custom}, optional={"type": some_type, "function": nameless}
    )
    clear_call = st.builds(
        lambda i, f: {"id": i, "type": "function", "function": {"name": "f"} | f}, st.sampled_from("abcd"), function
    )
    # Where neither of two has a name, one goes, and so do its texts: so these have one.
    two_sided = st.builds(
        lambda call, more: call | more,
        clear_call,
        st.fixed_dictionaries({"custom": nameless}, optional={"type": some_type}),
    )
    calls = st.none() | st.lists(clear_call | clear_call | some_call | two_sided | custom_call, max_size=3)
    extra = {"metadata": st.just({"a": [1]}), "reasoning_content": st.just("hm"), "name": name | st.just("a b")}
    plain = {"role": st.just("assistant"), "content": content, "tool_calls": calls}
    rich = {
        "refusal": text,
        "audio": st.just({"id": "x"}) | odd,
        "function_call": function | st.just({"name": 5}),
    } | extra
    said = st.fixed_dictionaries(plain) | st.fixed_dictionaries(plain, optional=rich)
    others = st.fixed_dictionaries(
        {"role": st.sampled_from(["user", "user", "system", "developer"]), "content": content}, optional=extra
    )
    results = st.fixed_dictionaries(
        {"role": st.just("tool"), "content": content, "tool_call_id": some_id | st.sampled_from("abcd") | st.none()}
    )
    of_functions = st.fixed_dictionaries({"role": st.just("function"), "content": content}, optional=extra)
    message = said | results | results | others | of_functions
    return [ChatMessage.model_validate(body) for body in draw(st.lists(message, max_size=14))]


any_history = settings(examples, max_examples=1000 if TORTURE else 200)


@any_history
@given(history=histories())
def test_whatever_was_stored_the_api_takes_what_comes_out(history: list[ChatMessage]) -> None:
    assert not list(objections(sent(history)))


def numbered(value: Any) -> list[str]:
    """Every ``text n;`` in a value, in its order."""
    if isinstance(value, str):
        return re.findall(r"text \d+;", value)
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return [text for item in inner for text in numbered(item)]


@any_history
@given(history=histories())
def test_every_text_and_every_call_stays_in_its_order(history: list[ChatMessage]) -> None:
    def said(messages: Dicts, key: str) -> list[str]:
        return numbered([message.get(key) for message in messages if message["role"] not in ("tool", "function")])

    stored = [message.model_dump() for message in history]
    for key in ("content", "refusal", "tool_calls", "function_call"):
        assert said(sent(history), key) == said(stored, key)


@any_history
@given(history=histories())
def test_a_result_goes_only_when_that_is_reported(history: list[ChatMessage]) -> None:
    repairs: list[HistoryRepair] = []
    came_out = numbered([message["content"] for message in sent(history, on_repair=repairs.append)])
    dropped = {repair.message_id for repair in repairs if repair.kind in ("duplicate_result", "orphan_result")}
    for message in history:
        assert all((text in came_out) != (message.message_id in dropped) for text in numbered(message.content))


@any_history
@given(history=histories())
def test_what_came_out_comes_out_unchanged_again(history: list[ChatMessage]) -> None:
    assert unchanged(sent(history))


def unchanged(messages: Dicts) -> bool:
    """Whether the messages come out as they went in, without a repair."""
    repairs: list[HistoryRepair] = []
    again = sent([ChatMessage.model_validate(message) for message in messages], on_repair=repairs.append)
    return again == messages and not repairs


@any_history
@given(history=histories() | st.builds(sent, histories()).map(lambda dicts: [*map(ChatMessage.model_validate, dicts)]))
def test_what_is_taken_to_be_clear_needs_no_repair(history: list[ChatMessage]) -> None:
    repairs: list[HistoryRepair] = []
    merged = merge_consecutive_assistant_messages(history)
    repaired = openai_format._repaired(merged, repairs.append)
    if openai_format._is_clear(merged):
        assert (repaired, repairs) == (merged, [])


@any_history
@given(history=histories())
def test_the_history_itself_is_left_as_it_is(history: list[ChatMessage]) -> None:
    before = [message.model_copy(deep=True) for message in history]
    merge_consecutive_assistant_messages(history)
    to_openai_messages(history)
    assert history == before


@any_history
@given(history=histories())
def test_merging_changes_only_runs_of_assistant_messages(history: list[ChatMessage]) -> None:
    merged = merge_consecutive_assistant_messages(history)
    others = [[id(message) for message in messages if message.role != "assistant"] for messages in (merged, history)]
    assert others[0] == others[1]
    for before, after in itertools.pairwise(merged):
        if before.role == after.role == "assistant":
            assert any(getattr(before, k, None) and getattr(after, k, None) for k in ("audio", "function_call"))


# Valid histories


@st.composite
def valid_histories(draw: st.DrawFn) -> Dicts:
    """What a client would send: OpenAI's format, nothing to repair; ids are used again in later messages."""
    text = st.text(min_size=1)
    parts = st.lists(st.builds(lambda text: {"type": "text", "text": text}, text), min_size=1, max_size=2)
    image = {"type": "image_url", "image_url": {"url": "https://example.org/a.png"}}
    name = st.sampled_from(["ann", "bob"])
    asked = st.fixed_dictionaries(
        {"role": st.just("user"), "content": st.text() | parts | st.just([image])}, optional={"name": name}
    )
    instructed = st.fixed_dictionaries(
        {"role": st.sampled_from(["system", "developer"]), "content": text | parts}, optional={"name": name}
    )
    answered = st.fixed_dictionaries(
        {"role": st.just("assistant"), "content": text | parts},
        optional={"refusal": text, "name": name, "audio": st.just({"id": "audio_1"})},
    )

    def calls() -> Dicts:
        made: dict[str, Any] = {"role": "assistant", "content": draw(st.none() | st.text() | parts)}
        if draw(st.booleans()):
            made["function_call"] = {"name": "f", "arguments": draw(text)}
            return [made, {"role": "function", "name": "f", "content": draw(st.none() | st.text())}]
        ids = draw(st.lists(st.sampled_from(["c1", "c2", "c3"]), min_size=1, unique=True))
        made["tool_calls"] = [call(i) for i in ids]
        return [made, *({"role": "tool", "tool_call_id": i, "content": draw(st.text() | parts)} for i in ids)]

    history: Dicts = draw(st.lists(instructed, max_size=1))
    for turn in draw(st.lists(st.sampled_from(["ask", "answer", "call", "call"]), max_size=8)):
        if turn == "call":
            if not history or history[-1]["role"] != "assistant":
                history += calls()
        elif turn == "ask" or (history and history[-1]["role"] == "assistant"):
            history.append(draw(asked))
        else:
            history.append(draw(answered))
    return history


@any_history
@given(history=valid_histories())
def test_a_valid_history_comes_out_as_it_went_in(history: Dicts) -> None:
    assert not list(objections(history))
    assert unchanged(history)
    assert sent([ChatMessage.model_validate(message) for message in history], repair=False) == history


@any_history
@given(st.data())
def test_results_end_at_their_calls_wherever_they_were_stored(data: st.DataObject) -> None:
    """Turns of a user message and calls; their results are lost, doubled, and put anywhere."""
    turns = data.draw(st.lists(st.lists(st.booleans(), min_size=1, max_size=3), min_size=1, max_size=4))
    tidy: Dicts = []
    stored: list[ChatMessage] = []
    scattered: list[ChatMessage] = []
    for number, has_result in enumerate(turns):
        ids = [f"c{number}-{n}" for n in range(len(has_result))]
        made = {"role": "assistant", "content": None, "tool_calls": [call(i) for i in ids]}
        spoken: Dicts = [{"role": "user", "content": "u"}, made]
        stored += [ChatMessage.model_validate(message) for message in spoken]
        came = [f"result of {i}" if there else NO_RESULT for i, there in zip(ids, has_result, strict=True)]
        tidy += [*spoken, *({"role": "tool", "content": c, "tool_call_id": i} for i, c in zip(ids, came, strict=True))]
        scattered += [result(i, c) for i, c in zip(ids, came, strict=True) if c != NO_RESULT]
    doubled = data.draw(st.lists(st.sampled_from(scattered), max_size=3)) if scattered else []
    for one in [*scattered, *doubled]:
        stored.insert(data.draw(st.integers(0, len(stored))), one)
    assert sent(stored) == tidy


def test_real_conversations_come_out_as_they_went_in() -> None:
    """150 conversations of a tool-using agent, which are not part of the repository."""
    given_path = os.environ.get("CHATLEDGER_TEST_CONVERSATIONS")
    path = given_path or next(iter(Path(__file__).parents[2].parent.glob("*/data/tau_airline.jsonl")), None)
    if path is None:
        pytest.skip(
            "needs tau_airline.jsonl, the conversations of tau-bench: set CHATLEDGER_TEST_CONVERSATIONS to its path"
        )
    conversations = [json.loads(line)["messages"] for line in Path(path).read_bytes().splitlines()]
    assert len(conversations) == 150
    assert all(unchanged(conversation) for conversation in conversations)
