"""The checker finds what is wrong: each rule has histories that break it, and a sound one breaks none."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from tests.helpers.messages import call
from tests.helpers.sql import user_json

from . import checker
from .history import Call, Json, Kind, Outcome, Row, Stored, calls_of, fingerprint


class History:
    """A session and all calls that were made, one after the other, each 10 long with a pause of 10."""

    def __init__(self) -> None:
        self.calls: list[Call] = []
        self.stored = Stored("s", "ann")

    def call(
        self, kind: Kind, answer: Any = None, outcome: Outcome = "acknowledged", writer: str = "client-1", **sent: Any
    ) -> Call:
        number = len(self.calls)
        call = Call(writer, number, kind, "s", sent, 20 * number, 20 * number + 10, outcome, answer)
        self.calls.append(call)
        return call

    def store(self, *messages: Json) -> None:
        """Store a batch."""
        self.stored.updated_at += 1
        self.stored.version += 1
        for message in messages:
            body = {key: value for key, value in message.items() if key != "message_id"}
            row = Row(len(self.stored.rows), message["message_id"], body, self.stored.updated_at)
            self.stored.rows.append(row)
        self.stored.next_sequence = len(self.stored.rows)

    def append(self, *messages: Json, **told: Any) -> Call:
        first = self.stored.next_sequence
        self.store(*messages)
        answer = [[message["message_id"], first + index, True] for index, message in enumerate(messages)]
        return self.call("append", answer, messages=list(messages), **told)

    def amended(self, sequence: int, **changes: Any) -> Json:
        self.stored.version += 1
        row = self.stored.rows[sequence]
        row.body |= changes
        row.amended_version = self.stored.version
        return {"version": self.stored.version, "amended": True}

    def read(self, **told: Any) -> Call:
        rows = [row for row in self.stored.rows if not row.removed]
        shown = [[row.sequence, row.message_id, row.amended_version, fingerprint(row.body)] for row in rows]
        answer = self.header() | {"next_sequence": self.stored.next_sequence, "messages": shown}
        return self.call("read", answer, **told)

    def header(self, **changes: Any) -> Json:
        """The header as it is after these changes."""
        if changes:
            self.stored.version += 1
            self.stored.header |= changes
        return {"version": self.stored.version, "header": dict(self.stored.header)}

    def update(self, **changes: Any) -> Call:
        return self.call("update", self.header(**changes), header=changes)

    def fork(self, fork: str, at: int | None = None) -> Call:
        rows = [
            Row(row.sequence, row.message_id, dict(row.body), row.created_at)
            for row in self.stored.rows[: at + 1 if at is not None else None]
        ]
        self.stored.forks.append(Stored(fork, "ann", rows, len(rows)))
        return self.call("fork", fork=fork, at=at)

    def walk(self, user: str = "ann") -> Call:
        """A walk through a list, page by page."""
        forks = [[fork.session, 1, {}] for fork in self.stored.forks]
        return self.call("list", [*forks, ["s", *self.header().values()]] if user == "ann" else [], user=user)

    def violated(self) -> set[str]:
        return {problem.partition(":")[0] for problem in checker.violations(self.calls, self.stored)}


def sound() -> History:
    """Everything that writers do, and all of it well.

    Calls: 0 appends a0 and a1; 1 appends b0 and is not answered; 2 is its retry; 3 saves c0 and c1; 4 reads; 5 amends
    a0's metadata; 6 and 7 amend b0's content; 8 adds a tool call to c1; 9 records usage; 10 appends d0 and d1; 11
    removes d1; 12 is refused; 13 reads; 14 adds a tool call in a message of its own; 15 and 16 change the header; 17
    and 18 fork; 19 walks through the messages; 20 and 21 through lists; 22 reads.
    """
    h = History()
    h.append(user_json("a0"), user_json("a1"), writer="psql")
    h.store(user_json("b0"))
    h.call("append", outcome="unknown", messages=[user_json("b0")]).error = "DatabaseUnavailable"
    h.call("append", [["b0", 2, False]], messages=[user_json("b0")])
    c0, c1 = user_json("c0"), {"message_id": "c1", "role": "assistant", "content": "hello"}
    h.store(c0, c1)
    h.call(
        "save", [["c0", 3, None], ["c1", 4, None]], messages=[c0, c1], header={"k": "set"}, usage=[("u1", 5)],
    )  # fmt: skip
    h.header(k="set", total_tokens=5)
    h.read()
    h.call("amend", h.amended(0, metadata={"x": 1}), message_id="a0", keys=["x"])
    before = h.stored.version
    for content in ("once", "twice"):
        expected = h.stored.version
        answer = h.amended(2, content=content)
        h.call("amend", answer, message_id="b0", content=content, expected_version=expected)
    assert before < h.stored.version
    h.amended(4, tool_calls=[call("t")])
    h.call("add_tool_call", {"message_id": "c1", "sequence": 4}, tool_call=call("t"), message_id="t-holder")
    h.call("usage", h.header(total_tokens=12), usage=[("u2", 7)])
    h.stored.usage = {"inside": 5, "u2": 7}
    h.append(user_json("d0"), user_json("d1"))
    h.amended(6)
    h.stored.rows[6].body, h.stored.rows[6].removed = {}, True
    h.call("truncate", {"next_sequence": 7, "version": h.stored.version}, from_sequence=6)
    h.call("append", outcome="refused", messages=[user_json("e0")]).error = "55P03"
    h.read()
    h.store({"message_id": "v-holder", "role": "assistant", "content": "", "tool_calls": [call("v")]})
    h.call("add_tool_call", {"message_id": "v-holder", "sequence": 7}, tool_call=call("v"), message_id="v-holder")
    h.update(title="first")
    h.update(title="second", pinned=True)
    h.fork("f", at=3)
    h.fork("g")
    h.stored.forks[1].rows.pop(6)
    h.stored.forks[1].rows[6].sequence = 6
    h.stored.forks[1].next_sequence = 7
    shown = [[row.sequence, row.message_id, row.amended_version, fingerprint(row.body)] for row in h.stored.rows]
    h.call("pages", {"messages": shown[:6] + shown[7:]})
    h.walk()
    h.walk("bob")
    h.read()
    return h


def test_a_sound_history_breaks_no_rule() -> None:
    h = sound()
    assert checker.violations(h.calls, h.stored) == []


def test_every_rule_has_histories_that_break_it() -> None:
    assert {rule for rule, _ in BROKEN} == {rule.__name__ for rule in checker.RULES}


def _set(path: str, value: Any) -> Callable[[History], None]:
    def change(h: History) -> None:
        exec(f"h.{path} = value", {"h": h, "value": value})

    return change


def _drop_row(index: int) -> Callable[[History], None]:
    def change(h: History) -> None:
        del h.stored.rows[index]

    return change


def _swap_rows(h: History) -> None:
    a1, b0 = h.stored.rows[1], h.stored.rows[2]
    a1.message_id, b0.message_id = b0.message_id, a1.message_id


def _again(h: History) -> None:
    h.store(user_json("b0"))


def _told_twice(h: History) -> None:
    h.calls[2].answer[0][2] = True
    h.calls.append(h.calls[2])


def _unsent(h: History) -> None:
    h.store(user_json("z0"))


def _refused_but_stored(h: History) -> None:
    h.store(user_json("e0"))


def _apart(h: History) -> None:
    h.append(user_json("f0"), user_json("g0"))
    h.append(user_json("f1"), user_json("g1"))
    f = [call for call in h.calls if call.kind == "append"][-2:]
    f[0].sent["messages"], f[1].sent["messages"] = (
        [user_json("f0"), user_json("f1")],
        [user_json("g0"), user_json("g1")],
    )
    f[0].answer, f[1].answer = [["f0", 8, True], ["f1", 10, True]], [["g0", 9, True], ["g1", 11, True]]


def _half_of_an_unknown_one(h: History) -> None:
    h.call("append", outcome="unknown", messages=[user_json("f0"), user_json("f1")])
    h.store(user_json("f0"))


def _late_but_in_front(h: History) -> None:
    first, second = h.append(user_json("f0")), h.append(user_json("g0"))
    h.stored.rows[8].message_id, h.stored.rows[9].message_id = "g0", "f0"
    first.answer, second.answer = [["f0", 9, True]], [["g0", 8, True]]


def _own_message_in_front(h: History) -> None:
    h.append(user_json("f0"))
    h.store({"message_id": "w-holder", "role": "assistant", "content": "", "tool_calls": [call("w")]})
    h.stored.rows[8], h.stored.rows[9] = h.stored.rows[9], h.stored.rows[8]
    h.call("add_tool_call", {"message_id": "w-holder", "sequence": 8}, tool_call=call("w"), message_id="w-holder")


def _in_a_turn_before(h: History) -> None:
    h.append(user_json("f0"))
    h.amended(7, tool_calls=[call("v"), call("w")])
    h.call("add_tool_call", {"message_id": "v-holder", "sequence": 7}, tool_call=call("w"), message_id="w-holder")


def _shown(change: Callable[[list[Any]], object], read: int = 13) -> Callable[[History], None]:
    def apply(h: History) -> None:
        change(h.calls[read].answer["messages"])

    return apply


def _half_a_batch_read(h: History) -> None:
    answer = h.calls[4].answer
    answer["next_sequence"], answer["messages"] = 4, answer["messages"][:4]


def _older_than_a_read_before(h: History) -> None:
    h.read().answer["version"] -= 1


def _amendment_forgotten(h: History) -> None:
    h.calls[13].answer["messages"][0][2] = None
    h.calls.insert(13, h.read())
    h.calls[13].start, h.calls[13].end = h.calls[12].start, h.calls[12].end


def _stale(h: History) -> None:
    h.calls[13].answer = h.calls[4].answer


def _stale_after_an_amendment(h: History) -> None:
    h.append(user_json("f0"))
    version = h.stored.version
    h.call("amend", h.amended(8, content="new"), message_id="f0", content="new", expected_version=version)
    h.read().answer["version"] -= 1


def _title_not_set(h: History) -> None:
    h.call("update", h.header(), header={"title": "third"})


def _title_again(h: History) -> None:
    h.header(title="first")
    h.read()


def _older_title_at_a_newer_version(h: History) -> None:
    h.append(user_json("f0"))
    h.read().answer["header"]["title"] = "first"


def _key_that_nobody_sent(h: History) -> None:
    h.header(other="set")
    h.read()


def _key_lost(h: History) -> None:
    del h.calls[22].answer["header"]["k"]


def _tokens(total: int) -> Callable[[History], None]:
    def change(h: History) -> None:
        h.calls[22].answer["header"]["total_tokens"] = total

    return change


def _fork_lost(h: History) -> None:
    h.stored.forks.pop()


def _fork_of_nobody(h: History) -> None:
    h.fork("h")
    h.calls.pop()


def _drop_of_fork(number: int, index: int) -> Callable[[History], None]:
    """Leave a message out, and number the others anew."""

    def change(h: History) -> None:
        fork = h.stored.forks[number]
        del fork.rows[index]
        for sequence, row in enumerate(fork.rows):
            row.sequence = sequence
        fork.next_sequence -= 1

    return change


def _listed_after_deletion(h: History) -> None:
    _deleted(h)
    h.walk()


def _not_found(h: History) -> None:
    h.calls[4].answer = None


def _shows_what_was_removed(h: History) -> None:
    h.calls[13].answer["messages"].append([6, "d1", None, fingerprint(user_json("d1"))])


def _shows_what_was_deleted(h: History) -> None:
    h.call("delete", {"deleted": True})
    h.calls.append(h.read())


def _undone(h: History) -> None:
    h.calls[7].sent["expected_version"] = h.calls[6].answer["version"] - 1


def _back_to_the_first(h: History) -> None:
    h.stored.rows[2].body["content"] = "once"


def _call_twice(h: History) -> None:
    h.stored.rows[4].body["tool_calls"].append(call("t"))


def _unknown_counted_twice(h: History) -> None:
    h.stored.usage["twice"] = 5
    h.stored.header["total_tokens"] += 5


def _removed_by_nobody(h: History) -> None:
    h.stored.rows[5].removed, h.stored.rows[5].body = True, {}


def _back_again(h: History) -> None:
    h.stored.rows[6].removed, h.stored.rows[6].body = False, {"role": "user", "content": "hi"}


def _deleted(h: History, *, rows: bool = False) -> None:
    h.call("delete", {"deleted": True})
    h.stored.deleted = True
    if not rows:
        h.stored.rows = []


def _written_after_deletion(h: History) -> None:
    _deleted(h)
    h.call("append", [["f0", 7, True]], messages=[user_json("f0")])


def _brought_back(h: History) -> None:
    _deleted(h)
    h.stored.deleted = False


def _internal_error_in_psql(h: History) -> None:
    h.calls[1].writer, h.calls[1].error = "psql", "XX000"


BROKEN: list[tuple[str, Callable[[History], None]]] = [
    ("acknowledged_is_stored", _drop_row(6)),
    ("acknowledged_is_stored", _swap_rows),
    ("acknowledged_is_stored", _set("calls[0].answer", [["a0", 0, True]])),
    ("acknowledged_is_stored", _set("calls[8].answer", {"message_id": "c9", "sequence": 4})),
    ("nothing_unsent", _unsent),
    ("nothing_unsent", _refused_but_stored),
    ("stored_as_sent", _set("stored.rows[1].body", {"role": "user", "content": "ho"})),
    ("stored_as_sent", _set("stored.rows[0].body['content']", "ho")),
    ("stored_as_sent", _set("stored.rows[0].body['role']", "assistant")),
    ("stored_as_sent", _set("stored.rows[0].body['metadata']['y']", 1)),
    ("stored_as_sent", _set("stored.rows[0].body['tool_calls']", [call("other")])),
    ("stored_as_sent", _set("stored.rows[0].body['metadata']", {"x": 2})),
    ("stored_as_sent", _set("stored.rows[4].body['content']", "ho")),
    ("stored_as_sent", _set("stored.rows[4].body['tool_calls']", [call("t") | {"function": {"name": "g"}}])),
    ("stored_as_sent", _set("stored.rows[7].body['content']", "ho")),
    ("once", _again),
    ("once", _told_twice),
    ("no_gap", _drop_row(1)),
    ("no_gap", _set("stored.next_sequence", 9)),
    ("batches_whole", _set("stored.rows[1].created_at", 2)),
    ("batches_whole", _apart),
    ("batches_whole", _half_of_an_unknown_one),
    ("times_never_decrease", _set("stored.rows[2].created_at", 0)),
    ("times_never_decrease", _set("stored.updated_at", 3)),
    ("in_order_of_time", _late_but_in_front),
    ("in_order_of_time", _own_message_in_front),
    ("tool_calls_in_their_turn", _in_a_turn_before),
    ("reads_are_prefixes", _shown(lambda shown: shown.pop(1))),
    ("reads_are_prefixes", _shown(lambda shown: shown.reverse())),
    ("reads_are_prefixes", _shown(lambda shown: shown.append(shown[-1]))),
    ("reads_are_prefixes", _shown(lambda shown: shown.append([7, "f0", None, ""]))),
    ("reads_are_prefixes", _half_a_batch_read),
    ("reads_go_forward", _older_than_a_read_before),
    ("reads_go_forward", _amendment_forgotten),
    ("reads_are_fresh", _stale),
    ("reads_are_fresh", _not_found),
    ("versions_are_fresh", _stale_after_an_amendment),
    ("versions_are_fresh", lambda h: h.calls[22].answer.update(h.calls[15].answer)),
    ("versions_are_fresh", lambda h: h.calls[20].answer[-1].__setitem__(1, 5)),
    ("versions_agree", _set("calls[22].answer['header']['title']", "first")),
    ("versions_agree", _set("calls[20].answer[2][2]['title']", "first")),
    ("versions_agree", _set("stored.header['title']", "first")),
    ("versions_agree", lambda h: h.read().answer["messages"].pop()),
    ("header_changes_kept", _title_not_set),
    ("header_changes_kept", _title_again),
    ("header_changes_kept", _older_title_at_a_newer_version),
    ("header_changes_kept", _set("stored.header['title']", "nobody's")),
    ("header_changes_kept", _key_that_nobody_sent),
    ("header_changes_kept", _key_lost),
    ("header_changes_kept", _tokens(11)),
    ("header_changes_kept", _tokens(13)),
    ("reads_are_fresh", _shows_what_was_removed),
    ("reads_are_fresh", _shows_what_was_deleted),
    ("reads_agree", _shown(lambda shown: shown[1].__setitem__(3, "other"), read=4)),
    ("reads_agree", _shown(lambda shown: shown[2].__setitem__(3, "other"))),
    ("amendments_kept", _set("stored.rows[0].body['metadata']", {})),
    ("amendments_kept", _undone),
    ("amendments_kept", _back_to_the_first),
    ("tool_calls_once", _set("stored.rows[4].body['tool_calls']", [])),
    ("tool_calls_once", _call_twice),
    ("usage_once", _set("stored.header['total_tokens']", 13)),
    ("usage_once", _set("stored.usage", {"inside": 12})),
    ("usage_once", _unknown_counted_twice),
    ("pages_are_whole", _shown(lambda shown: shown.pop(1), read=19)),
    ("pages_are_whole", _shown(lambda shown: shown.pop(), read=19)),
    ("pages_are_whole", _shown(lambda shown: shown.reverse(), read=19)),
    ("pages_are_whole", _shown(lambda shown: shown.insert(1, shown[0]), read=19)),
    ("pages_are_whole", _shown(lambda shown: shown.append([8, "z0", None, ""]), read=19)),
    ("reads_agree", _shown(lambda shown: shown[1].__setitem__(3, "other"), read=19)),
    ("forks_are_whole", _fork_lost),
    ("forks_are_whole", _fork_of_nobody),
    ("forks_are_whole", _set("calls[17].error", "CL010")),
    ("forks_are_whole", _set("stored.forks[0].next_sequence", 5)),
    ("forks_are_whole", _drop_of_fork(1, 0)),
    ("forks_are_whole", _drop_of_fork(0, -1)),
    ("forks_are_whole", _drop_of_fork(1, -1)),
    ("forks_are_whole", _set("calls[17].sent['at']", 2)),
    ("forks_are_whole", _set("stored.forks[0].rows[3].body['content']", "ho")),
    ("forks_are_whole", _set("stored.forks[0].rows[2].body['content']", "ho")),
    ("lists_are_whole", lambda h: h.calls[20].answer.pop(0)),
    ("lists_are_whole", lambda h: h.calls[20].answer.append(h.calls[20].answer[0])),
    ("lists_are_whole", lambda h: h.calls[21].answer.append(h.calls[20].answer[0])),
    ("lists_are_whole", _listed_after_deletion),
    ("removed_by_somebody", _removed_by_nobody),
    ("removed_by_somebody", _back_again),
    ("stays_deleted", _set("stored.deleted", True)),
    ("stays_deleted", lambda h: _deleted(h, rows=True)),
    ("stays_deleted", _written_after_deletion),
    ("stays_deleted", _brought_back),
    ("stays_deleted", _set("calls[12].error", "CL001")),
    ("errors_are_clear", _set("calls[1].error", "InternalClientError")),
    ("errors_are_clear", _set("calls[1].error", "TimeoutError")),
    ("errors_are_clear", _internal_error_in_psql),
]


@pytest.mark.parametrize(("rule", "change"), BROKEN)
def test_a_broken_history_breaks_its_rule(rule: str, change: Callable[[History], None]) -> None:
    h = sound()
    change(h)
    assert rule in h.violated()


def test_a_session_that_was_deleted_is_sound_without_its_messages() -> None:
    h = sound()
    _deleted(h)
    h.call("read")
    h.call("append", outcome="refused", messages=[user_json("f0")]).error = "CL001"
    assert checker.violations(h.calls, h.stored) == []


def test_a_call_of_a_killed_writer_has_no_end() -> None:
    begun = '{"writer": "w", "number": 0, "kind": "append", "session": "s", "sent": {"messages": []}, "start": 1}'
    [call] = calls_of([begun])
    assert (call.outcome, call.end) == ("unknown", None)
