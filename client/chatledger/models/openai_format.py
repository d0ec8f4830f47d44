"""A history as OpenAI's chat completions API takes it, in whatever order its pieces were stored.

No I/O, no clock, no chance: the same history always gives the same messages, so that prompt caches hold.
"""

from __future__ import annotations

import json
import re
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any, Literal, TypeVar, cast

from chatledger.models.bodies import copy_json
from chatledger.models.message import ChatMessage

if TYPE_CHECKING:  # importing openai takes half a second
    from openai.types.chat import ChatCompletionMessageParam

NO_RESULT = "No result was recorded for this call."
"""Content of the result that stands in for one that never came."""
NO_NAME = "unknown"
"""Name of a function that was called without one."""

RepairKind = Literal[
    "moved_result", "missing_result", "duplicate_result", "orphan_result", "empty_message", "malformed_call"
]

_EXPLANATIONS: dict[RepairKind, str] = {
    "moved_result": "the result did not stand right after its call, in the order of the calls: moved there",
    "missing_result": "the call has no result: it was given a stand-in",
    "duplicate_result": "the call has a result already: this one was dropped",
    "orphan_result": "no call has this id: the result was dropped",
    "empty_message": "the assistant message has neither text nor calls: dropped",
    "malformed_call": "the call had no name, no id, or the id of another call in its message: it was given one",
}

# What makes an assistant message worth sending when it has no text.
_WITHOUT_TEXT = ("refusal", "audio", "tool_calls", "function_call")
# What a message may carry besides its role and content.
_KEYS = {
    "assistant": ("name", *_WITHOUT_TEXT),
    "tool": ("name", "tool_call_id"),
}
_NAME = ("name",)
# What stands for no value; 0 and False are values.
_NOTHING: tuple[Any, ...] = (None, "", [], {})
# The text that each kind of call carries, and what stands for a missing one.
_TEXT_OF_CALL = {"function": ("arguments", "{}"), "custom": ("input", "")}
# Kinds of content parts that carry a text, under their own name.
_TEXT_PARTS = ("text", "refusal")
# What the API refuses in the name of who says a message.
_NOT_IN_NAMES = re.compile(r"[\s<|\\/>]")
# What a message has room for once.
_ONCE = ("audio", "function_call")

AnyMessage = TypeVar("AnyMessage", bound="ChatMessage | ChatCompletionMessageParam")


@dataclass(frozen=True, slots=True)
class HistoryRepair:
    """Something in a history that the API would refuse, and what was done about it."""

    kind: RepairKind
    message_id: str
    """The message in which it was found; of merged messages, the first."""
    sequence: int | None
    """That message's place in the session; None when it is not stored."""
    tool_call_id: str | None
    """The call as stored (for a legacy ``function_call`` the function's name); None when it is not about a call."""
    explanation: str


def merge_consecutive_assistant_messages(messages: Sequence[AnyMessage]) -> list[AnyMessage]:
    r"""Make consecutive assistant messages one, and repair nothing.

    Texts and refusals are joined by a newline; lists of content parts and tool calls are concatenated (a text among
    lists becomes a part); empty content is ignored. Of all other keys the first value stays. Only messages that both
    have an ``audio``, or both a ``function_call``, stay apart: a message has room for one.

    Args:
        messages: In order; ``ChatMessage`` objects, or dicts in OpenAI's format. They are not changed.

    Returns:
        Copies where something was merged, the same objects where nothing was.

    Example:
        >>> call = {"id": "c1", "type": "function", "function": {"name": "f", "arguments": "{}"}}
        >>> [one] = merge_consecutive_assistant_messages([
        ...     ChatMessage(role="assistant", content="Let me look."),
        ...     ChatMessage(role="assistant", content="", tool_calls=[call]),
        ... ])
        >>> one.content, len(one.tool_calls)
        ('Let me look.', 1)
    """
    roles = [message.get("role") if isinstance(message, dict) else message.role for message in messages]
    if ("assistant", "assistant") not in pairwise(roles):
        return list(messages)
    runs: list[list[AnyMessage]] = []
    role_before = None
    for message, role in zip(messages, roles, strict=True):
        if role == role_before == "assistant" and _fits(message, runs[-1]):
            runs[-1].append(message)
        else:
            runs.append([message])
        role_before = role
    return [run[0] if len(run) == 1 else _merged(run) for run in runs]


def to_openai_messages(
    messages: Sequence[ChatMessage], *, repair: bool = True, on_repair: Callable[[HistoryRepair], None] | None = None
) -> list[ChatCompletionMessageParam]:
    """Return a history as messages for ``client.chat.completions.create(messages=…)``.

    Consecutive assistant messages are merged. Then, anywhere in the history:

    - Each call is followed by its result, right after the assistant message, in the order of the calls. A result
      belongs to the nearest call before it that has its id and no result yet (some models use an id again in a later
      turn); one that was stored before its call, to that call.
    - A call whose result never came gets ``NO_RESULT``.
    - A second result for a call is dropped. The first stays, since the model may have answered it already; to replace
      a result, amend its message.
    - A result without a call, and an assistant message with neither text nor refusal nor audio nor calls, are dropped.
    - A call without an id, or with the id of an earlier call in its message, gets a new one, and so does its result.
      A call without a name gets ``NO_NAME``. What is no string is no id and no name.

    A legacy ``function_call`` and its ``function`` message, which go by name, are treated as a call and its result.
    A valid history comes out as it went in; so what came out comes out unchanged again.

    Only keys that the API knows for the role are given. The API refuses others, so ``message_id``, ``metadata`` and
    what a provider added (``reasoning_content``, ``annotations``) are left out. Keys without a value are left out too,
    except ``content``: where it is missing it is None beside calls and ``""`` elsewhere. A call gets the ``type`` of
    what it has, ``function`` or ``custom``, and keeps only that one of the two. A content part without a type becomes a
    text. Where the API wants a text (``arguments``, ``input``, ``text``, ``refusal``), it gets an empty one (``{}`` for
    arguments) instead of nothing, and JSON instead of any other value. In the ``name`` of a message, what the API
    refuses becomes ``_``. Of an ``audio`` only the id is sent. Inside calls and content parts all else stays.

    Args:
        messages: In order. They are not changed, and the result shares nothing with them.
        repair: False: only merge and convert, so what is wrong stays wrong.
        on_repair: Called with each repair, in the order of the history.

    Example:
        >>> call = {"id": "c1", "type": "function", "function": {"name": "f", "arguments": "{}"}}
        >>> repairs = []
        >>> sent = to_openai_messages([
        ...     ChatMessage(role="assistant", tool_calls=[call]),
        ...     ChatMessage(role="user", content="Still there?"),
        ...     ChatMessage(role="tool", tool_call_id="c1", content="42"),
        ... ], on_repair=repairs.append)
        >>> [message["role"] for message in sent]
        ['assistant', 'tool', 'user']
        >>> [repair.kind for repair in repairs]
        ['moved_result']
    """
    history = merge_consecutive_assistant_messages(messages)
    if repair and not _is_clear(history):
        # Merged again: between two assistant messages there may have been nothing but a result that moved or went.
        history = merge_consecutive_assistant_messages(_repaired(history, on_repair or (lambda _: None)))
    return [_as_dict(message) for message in history]


def _get(message: Any, key: str) -> Any:
    if isinstance(message, dict):
        return message.get(key)
    # pydantic's own getattr takes most of the time when there is no such key.
    fields = message.__dict__
    return fields[key] if key in fields else (message.__pydantic_extra__ or {}).get(key)


def _has(message: Any, key: str) -> bool:
    value = _get(message, key)
    return bool(_text(_dict(value).get("id")) if key == "audio" else value)


def _fits(message: AnyMessage, run: list[AnyMessage]) -> bool:
    return not any(_has(message, key) and any(_has(other, key) for other in run) for key in _ONCE)


def _merged(run: list[AnyMessage]) -> AnyMessage:
    fields: dict[str, Any] = {}
    for message in reversed(run):
        values = dict(cast(Any, message)).items()
        fields |= {key: value for key, value in values if key not in fields or value not in _NOTHING}
    if contents := [content for message in run if not _is_empty(content := _get(message, "content"))]:
        fields["content"] = _joined(contents)
    if refusals := [refusal for message in run if (refusal := _get(message, "refusal"))]:
        fields["refusal"] = "\n".join(refusals)
    if calls := [call for message in run for call in _get(message, "tool_calls") or ()]:
        fields["tool_calls"] = calls
    first: Any = run[0]
    return cast(AnyMessage, fields if isinstance(first, dict) else first.model_copy(update=fields))


def _is_empty(content: Any) -> bool:
    return not content or (isinstance(content, list) and all(map(_is_empty_part, content)))


def _is_empty_part(part: dict[str, Any]) -> bool:
    kind = _text(part.get("type")) or "text"
    return kind in _TEXT_PARTS and part.get(kind) in (None, "")


def _joined(contents: list[Any]) -> str | list[dict[str, Any]]:
    if all(isinstance(content, str) for content in contents):
        return "\n".join(contents)
    as_parts = ([{"type": "text", "text": c}] if isinstance(c, str) else c for c in contents)
    return [part for parts in as_parts for part in parts]


# A call, and the result that answers it: the role of the result, and its tool_call_id or its name.
_Key = tuple[Literal["tool", "function"], str]


def _call_keys(message: ChatMessage) -> list[_Key]:
    keys: list[_Key] = [("tool", _text(call.get("id"))) for call in message.tool_calls or ()]
    if message.function_call:
        keys.append(("function", _text(message.function_call.get("name"))))
    return keys


def _result_key(message: ChatMessage) -> _Key | None:
    if message.role == "tool":
        return "tool", _text(message.tool_call_id)
    return ("function", _text(message.name)) if message.role == "function" else None


def _text(value: Any) -> str:
    return value if isinstance(value, str) else ""


def _dict(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _call_name(call: dict[str, Any], kind: str) -> str:
    body = call.get(kind)
    return _text(body.get("name")) if isinstance(body, dict) else ""


def _kind(call: dict[str, Any]) -> str:
    """Return which of the two a call is: the one that has a name, else one that is there, else what its type says."""
    if call.get("type") == "function" and _call_name(call, "function"):  # nearly always
        return "function"
    return max(
        _TEXT_OF_CALL,
        key=lambda kind: (_call_name(call, kind) != "", isinstance(call.get(kind), dict), call.get("type") == kind),
    )


def _results_of_calls(messages: list[ChatMessage]) -> tuple[dict[tuple[int, int], int], set[_Key]]:
    """Return the place of each call's result, by the call's message and its number there, and the keys of all calls."""
    results: dict[tuple[int, int], int] = {}
    without_result: defaultdict[_Key, list[tuple[int, int]]] = defaultdict(list)
    early: dict[_Key, int] = {}
    for at, message in enumerate(messages):
        if message.role == "assistant":
            # The nearest message is the last of the list, but within a message the results follow the calls' order.
            for nth, key in reversed(list(enumerate(_call_keys(message)))):
                without_result[key].append((at, nth))
        elif result_key := _result_key(message):
            if waiting := without_result.get(result_key):
                results[waiting.pop()] = at
            elif result_key not in without_result:
                early.setdefault(result_key, at)
    # Last, so that a result left over from before (of a call that was cut off, say) never takes a later one's place.
    for key, at in early.items():
        if waiting := without_result.get(key):
            results[waiting[0]] = at
    return results, set(without_result)


def _is_clear(messages: list[ChatMessage]) -> bool:
    """Tell whether there is certainly nothing to repair. Most histories are like that, and repairing takes longer."""
    waiting: list[str] = []
    for message in messages:
        role = message.role
        if role == "tool":
            if not waiting or waiting.pop() != message.tool_call_id:
                return False
        elif waiting or role == "function" or message.function_call:
            return False
        elif role == "assistant":
            if calls := message.tool_calls:
                waiting = [_text(call.get("id")) for call in reversed(calls)]
                named = all(_call_name(call, _kind(call)) for call in calls)
                if not (named and all(waiting)) or len(set(waiting)) < len(waiting):
                    return False
            elif _is_empty(message.content):
                return False
    return not waiting


def _repaired(messages: list[ChatMessage], on_repair: Callable[[HistoryRepair], None]) -> list[ChatMessage]:
    def report(kind: RepairKind, message: ChatMessage, call_id: str = "") -> None:
        on_repair(HistoryRepair(kind, message.message_id, message.sequence, call_id or None, _EXPLANATIONS[kind]))

    results, calls = _results_of_calls(messages)
    used = set(results.values())
    repaired: list[ChatMessage] = []
    for at, message in enumerate(messages):
        if result_key := _result_key(message):
            if at not in used:
                report("duplicate_result" if result_key in calls else "orphan_result", message, result_key[1])
        elif message.role != "assistant":
            repaired.append(message)
        elif _is_empty(message.content) and not any(_has(message, key) for key in _WITHOUT_TEXT):
            report("empty_message", message)
        else:
            clear = _with_clear_calls(message, report)
            repaired.append(clear)
            in_place = at + 1
            for nth, (stored, key) in enumerate(zip(_call_keys(message), _call_keys(clear), strict=True)):
                where = results.get((at, nth))
                if where is None:
                    report("missing_result", message, stored[1])
                elif where == in_place:
                    in_place += 1
                else:
                    report("moved_result", messages[where], stored[1])
                repaired.append(_result(key, None if where is None else messages[where]))
    return repaired


def _with_clear_calls(message: ChatMessage, report: Callable[[RepairKind, ChatMessage, str], None]) -> ChatMessage:
    """Give each call a name, and an id that no other call of the message has."""
    calls: list[dict[str, Any]] = []
    taken: set[str] = set()
    times: defaultdict[str, int] = defaultdict(int)
    for call in message.tool_calls or ():
        stored = _text(call.get("id"))
        call_id = wanted = stored or "call"
        while call_id in taken:
            times[wanted] += 1
            call_id = f"{wanted}_{times[wanted] + 1}"
        taken.add(call_id)
        kind = _kind(call)
        name = _call_name(call, kind)
        if call_id != stored or not name:
            report("malformed_call", message, stored)
            call = call | {"id": call_id, kind: _dict(call.get(kind)) | {"name": name or NO_NAME}}
        calls.append(call)
    changed: dict[str, Any] = {}
    if calls != (message.tool_calls or []):
        changed["tool_calls"] = calls
    if message.function_call and not _text(message.function_call.get("name")):
        report("malformed_call", message, "")
        changed["function_call"] = message.function_call | {"name": NO_NAME}
    return message.model_copy(update=changed) if changed else message


def _result(key: _Key, stored: ChatMessage | None) -> ChatMessage:
    role, call_id = key
    field = "tool_call_id" if role == "tool" else "name"
    if stored is None:
        return ChatMessage.model_validate({"role": role, field: call_id, "content": NO_RESULT})
    return stored if _get(stored, field) == call_id else stored.model_copy(update={field: call_id})


def _as_dict(message: ChatMessage) -> ChatCompletionMessageParam:
    role, content = message.role, message.content
    fields: dict[str, Any] = {
        "role": role,
        "content": content if isinstance(content, str) else _as_content(message, content),
    }
    values = message.__dict__ | message.model_extra if message.model_extra else message.__dict__
    for key in _KEYS.get(role, _NAME):
        if value := values.get(key):
            fields[key] = value
    if len(fields) == 2:  # most messages
        return cast("ChatCompletionMessageParam", fields)
    if "name" in fields and role != "function":  # of which it is its call's
        fields["name"] = _NOT_IN_NAMES.sub("_", fields["name"])
    if "tool_calls" in fields:
        fields["tool_calls"] = [_as_call(call) for call in fields["tool_calls"]]
    if "function_call" in fields:
        fields["function_call"] = _with_text(copy_json(fields["function_call"]), *_TEXT_OF_CALL["function"])
    if audio_id := _text(_dict(fields.pop("audio", None)).get("id")):
        fields["audio"] = {"id": audio_id}
    return cast("ChatCompletionMessageParam", fields)


def _as_content(message: ChatMessage, content: list[dict[str, Any]] | None) -> str | list[dict[str, Any]] | None:
    role = message.role
    if not content:
        calls = role == "assistant" and (message.tool_calls or message.function_call)
        return None if calls or role == "function" else ""
    parts = [_as_part(part) for part in content]
    # Only a function's result may have no parts.
    return "\n".join(_text(part.get("text")) for part in parts) if role == "function" else parts


def _as_part(part: dict[str, Any]) -> dict[str, Any]:
    copied: dict[str, Any] = copy_json(part)
    kind = copied["type"] = _text(part.get("type")) or "text"
    return _with_text(copied, kind, "") if kind in _TEXT_PARTS else copied


def _as_call(call: dict[str, Any]) -> dict[str, Any]:
    kind = _kind(call)
    copied: dict[str, Any] = {
        key: copy_json(value) for key, value in call.items() if key == kind or key not in _TEXT_OF_CALL
    }
    copied["type"] = kind
    copied[kind] = _with_text(_dict(copied.get(kind)), *_TEXT_OF_CALL[kind])
    return copied


def _with_text(fields: dict[str, Any], key: str, empty: str) -> dict[str, Any]:
    """Give the key a text: an empty one where there is nothing, and JSON where there is something else."""
    value = fields.get(key)
    if not isinstance(value, str):
        fields[key] = empty if value is None else json.dumps(value, ensure_ascii=False)
    return fields
