"""Whether the ledger kept its word: every call that was made, against the rows that are stored at the end.

Knows what the ledger promises and nothing of how it works. Each rule is a function of its own and gives what is wrong,
a line a problem. The history is of one session; all its calls have ended or will never end.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from math import inf

from .history import Call, Json, Kind, Row, Stored, fingerprint, header_of

# What a caller of the Python client may get to see, beside the ledger's own errors: Postgres's, for what the ledger
# cannot cure.
CLEAR = {
    "DatabaseUnavailable",
    "CancelledError",  # the caller's own doing
    "25P03",  # idle_in_transaction_session_timeout
    "53100",  # disk full
    "55P03",  # lock_timeout
    "57014",  # statement_timeout
}


def violations(calls: Sequence[Call], stored: Stored) -> list[str]:
    """Return what is wrong, by all rules."""
    return [f"{rule.__name__}: {problem}" for rule in RULES for problem in rule(calls, stored)]


def acknowledged_is_stored(calls: Sequence[Call], stored: Stored) -> Iterable[str]:
    """Every acknowledged message is there, at the sequence that was answered."""
    if stored.deleted:
        return
    by_id = {row.message_id: row for row in stored.rows}
    for call in _acknowledged(calls, "append", "save", "add_tool_call"):
        answers = _places(call)
        for message_id, sequence in answers:
            row = by_id.get(message_id)
            if row is None:
                yield f"{message_id}, answered at {sequence}, is missing"
            elif row.sequence != sequence:
                yield f"{message_id} is at {row.sequence}, not at {sequence} as {call.writer} was told"
        if call.kind != "add_tool_call" and {a[0] for a in answers} != {m["message_id"] for m in call.sent["messages"]}:
            yield f"{call.writer} was answered for other messages than it sent in call {call.number}"


def nothing_unsent(calls: Sequence[Call], stored: Stored) -> Iterable[str]:
    """Nothing is there that nobody sent, or that was refused each time that it was sent."""
    sent = {message_id for call in calls if call.outcome != "refused" for message_id in _sent_ids(call)}
    refused = {message_id for call in calls for message_id in _sent_ids(call)}
    for row in stored.rows:
        if row.message_id not in sent:
            yield f"{row.message_id} is stored, but was {'refused' if row.message_id in refused else 'sent by nobody'}"


def stored_as_sent(calls: Sequence[Call], stored: Stored) -> Iterable[str]:
    """A message that nobody changed is as it was sent; a changed one differs only in what somebody changed."""
    sent = _Sent(calls)
    for row in stored.rows:
        if not row.removed:
            yield from sent.problems(row, changed=row.amended_version is not None)


def once(calls: Sequence[Call], stored: Stored) -> Iterable[str]:
    """No message is there twice, and none was said to be appended twice."""
    for message_id, count in Counter(row.message_id for row in stored.rows).items():
        if count > 1:
            yield f"{message_id} is stored {count} times"
    appended = Counter(a[0] for call in _acknowledged(calls, "append") for a in call.answer if a[2])
    for message_id, count in appended.items():
        if count > 1:
            yield f"{message_id} was appended {count} times"


def no_gap(calls: Sequence[Call], stored: Stored) -> Iterable[str]:
    """The sequences are 0, 1, 2, …, and the next one is the session's next_sequence."""
    if stored.deleted:
        return
    for expected, row in enumerate(stored.rows):
        if row.sequence != expected:
            yield f"{row.sequence} stands where {expected} should be"
            return
    if stored.next_sequence != len(stored.rows):
        yield f"next_sequence is {stored.next_sequence} after {len(stored.rows)} messages"


def batches_whole(calls: Sequence[Call], stored: Stored) -> Iterable[str]:
    """What was first sent together is there whole, in a row and in its order, under one timestamp; or not at all."""
    for batch in _batches(calls):
        rows = _rows_of(batch, stored)
        if rows and (len(rows) != len(batch) or not _in_one_piece(rows, batch)):
            places = [(row.message_id, row.sequence, row.created_at) for row in rows]
            yield f"the batch {batch} is torn: {places}"


def times_never_decrease(calls: Sequence[Call], stored: Stored) -> Iterable[str]:
    """Timestamps do not decrease along the sequence, and none is after the session's last change."""
    for earlier, later in pairwise(stored.rows):
        if later.created_at < earlier.created_at:
            yield f"{later.sequence} was stored before {earlier.sequence}, by its timestamp"
    if stored.rows and stored.rows[-1].created_at > stored.updated_at:
        yield "the last message was stored after the session's updated_at"


def in_order_of_time(calls: Sequence[Call], stored: Stored) -> Iterable[str]:
    """A message that was sent after another one was acknowledged has the higher sequence."""
    sent_at: dict[str, int] = {}
    for call in calls:
        for message_id in _sent_ids(call):
            sent_at[message_id] = min(call.start, sent_at.get(message_id, call.start))
    known_at = _known_at(calls)
    earliest: tuple[float, Row | None] = (inf, None)  # of what has a higher sequence, the first to be known
    for row in reversed(stored.rows):
        known, later = earliest
        if later is not None and known < sent_at.get(row.message_id, 0):
            yield f"{row.message_id} at {row.sequence} was sent after {later.message_id} at {later.sequence} was stored"
        earliest = min(earliest, (known_at.get(row.message_id, inf), row), key=lambda pair: pair[0])


def tool_calls_in_their_turn(calls: Sequence[Call], stored: Stored) -> Iterable[str]:
    """A tool call that was added after a user's message was acknowledged stands behind that message."""
    known_at = _known_at(calls)
    added_at: dict[str, int] = {}
    for call in calls:
        if call.kind == "add_tool_call":
            call_id = call.sent["tool_call"]["id"]
            added_at[call_id] = min(call.start, added_at.get(call_id, call.start))
    turn_known = inf  # when the first of the user's messages behind was
    for row in reversed(stored.rows):
        for tool_call in row.body.get("tool_calls") or ():
            if turn_known < added_at.get(tool_call["id"], 0):
                yield f"{tool_call['id']} was added at {row.sequence}, in front of a user's message that was known"
        if row.body.get("role") == "user" and not row.removed:
            turn_known = min(turn_known, known_at.get(row.message_id, inf))


def reads_are_prefixes(calls: Sequence[Call], stored: Stored) -> Iterable[str]:
    """A read shows each message where it is in the end, leaves out none but removed ones, and tears no batch."""
    if stored.deleted:
        return
    rows = {row.sequence: row for row in stored.rows}
    inside: dict[int, list[str]] = {}  # a batch, by each next_sequence that would be in the middle of it
    for batch in _batches(calls):
        inside |= {row.sequence: batch for row in _rows_of(batch, stored)[1:]}
    for read in _reads(calls):
        answer = read.answer
        if torn := inside.get(answer["next_sequence"]):
            yield f"{_name(read)} shows half of the batch {torn}"
        shown = {sequence: message_id for sequence, message_id, *_ in answer["messages"]}
        if [m[0] for m in answer["messages"]] != sorted(shown):
            yield f"{_name(read)} is out of order, or shows a message twice"
        for sequence in range(max(answer["next_sequence"], max(shown, default=-1) + 1)):
            row = rows.get(sequence)
            if sequence not in shown:
                if row is not None and not row.removed:
                    yield f"{_name(read)} leaves out {row.message_id} at {sequence}"
            elif row is None or row.message_id != shown[sequence] or sequence >= answer["next_sequence"]:
                yield f"{_name(read)} shows {shown[sequence]} at {sequence}, where it is not in the end"


def reads_go_forward(calls: Sequence[Call], stored: Stored) -> Iterable[str]:
    """A read that began after another one ended shows nothing older: all that the other showed, or what changed it."""
    reads = sorted(_reads(calls), key=lambda call: call.start)
    ended = sorted(reads, key=_end)
    amended: dict[int, int] = {}  # the newest amendment that was shown by a read that has ended
    newest, done = (0, 0), 0
    for read in reads:
        while done < len(ended) and _end(ended[done]) < read.start:
            answer = ended[done].answer
            newest = max(newest, (answer["version"], answer["next_sequence"]))
            for sequence, _, version, _ in answer["messages"]:
                amended[sequence] = max(amended.get(sequence, 0), version or 0)
            done += 1
        if (read.answer["version"], read.answer["next_sequence"]) < newest:
            yield f"{_name(read)} is older than a read before it, which was at {newest}"
        for sequence, message_id, version, _ in read.answer["messages"]:
            if (version or 0) < amended.get(sequence, 0):
                yield f"{_name(read)} shows {message_id} as it was before an amendment that was read before"


def reads_are_fresh(calls: Sequence[Call], stored: Stored) -> Iterable[str]:
    """A read, of the cache too, shows all that was acknowledged before it began."""
    writes = sorted(_acknowledged(calls, "append", "save", "add_tool_call", "truncate", "delete"), key=_end)
    needed = 0  # at least this next_sequence
    removed_from, gone, done = 0, False, 0
    for read in sorted(_acknowledged(calls, "read"), key=lambda call: call.start):
        while done < len(writes) and _end(writes[done]) < read.start:
            write = writes[done]
            if write.kind == "delete":
                gone = True
            elif write.kind == "truncate":
                removed_from = max(removed_from, write.answer["next_sequence"])
            else:
                needed = max([needed, *(sequence + 1 for _, sequence in _places(write))])
            done += 1
        if read.answer is None:
            if not any(call.kind == "delete" and call.start < _end(read) for call in calls):
                yield f"{_name(read)} does not find the session"
            continue
        if gone:
            yield f"{_name(read)} finds a session that was deleted before"
        if read.answer["next_sequence"] < needed:
            yield f"{_name(read)} is stale: it ends at {read.answer['next_sequence']}, {needed} was acknowledged before"
        if removed_from:
            cuts = [c for c in _acknowledged(calls, "truncate") if _end(c) < read.start]
            for sequence, message_id, *_ in read.answer["messages"]:
                if any(c.sent["from_sequence"] <= sequence < c.answer["next_sequence"] for c in cuts):
                    yield f"{_name(read)} shows {message_id}, which was removed before"


def versions_are_fresh(calls: Sequence[Call], stored: Stored) -> Iterable[str]:
    """What shows the session's header is at the version of every change that was acknowledged before, or later."""
    writes = sorted(_acknowledged(calls, "amend", "truncate", "update", "usage"), key=_end)
    newest, done = 0, 0
    for view in sorted(_views(calls, stored), key=lambda view: view.start):
        while done < len(writes) and _end(writes[done]) < view.start:
            newest = max(newest, writes[done].answer["version"])
            done += 1
        if view.version < newest:
            yield f"{view.name} is stale: version {view.version}, {newest} was acknowledged before"


def reads_agree(calls: Sequence[Call], stored: Stored) -> Iterable[str]:
    """Two reads that show the same state of a message show the same message; the stored one, if it is the last."""
    seen: dict[tuple[int, int], str] = {}
    for row in stored.rows:
        if not row.removed:
            seen[row.sequence, row.amended_version or 0] = fingerprint(row.body)
    for read in [*_reads(calls), *_acknowledged(calls, "pages")]:
        for sequence, message_id, version, print_ in read.answer["messages"]:
            if seen.setdefault((sequence, version or 0), print_) != print_:
                yield f"{_name(read)} shows {message_id} at version {version} with another body than others"


def versions_agree(calls: Sequence[Call], stored: Stored) -> Iterable[str]:
    """Whatever shows one version of the session shows the same header, and the same messages if it shows any."""
    headers: dict[int, Json] = {}
    messages: dict[int, Json] = {}
    for view in _views(calls, stored):
        if headers.setdefault(view.version, view.header) != view.header:
            yield f"{view.name} shows another header at version {view.version} than others"
    for read in _reads(calls):
        shown = {name: read.answer[name] for name in ("next_sequence", "messages")}
        if messages.setdefault(read.answer["version"], shown) != shown:
            yield f"{_name(read)} shows other messages at version {read.answer['version']} than others"


def header_changes_kept(calls: Sequence[Call], stored: Stored) -> Iterable[str]:
    """The header shows every acknowledged change of it, from its version on, and changes only as somebody asked."""
    changing = [call for call in calls if call.outcome != "refused" and ("header" in call.sent or "usage" in call.sent)]
    for call in _acknowledged(calls, "update"):
        if not call.sent["header"].items() <= call.answer["header"].items():
            yield f"{_name(call)} was answered with {call.answer['header']}"
    before = _View("the beginning", 0, 0, 1, header_of(None, False, 0, {}))
    for view in sorted(_views(calls, stored), key=lambda view: view.version):
        made = [call for call in changing if view.after(call)]
        lost = {key for call in made for key in call.sent.get("header", {}) if key not in view.header}
        if lost:
            yield f"{view.name} has lost {sorted(lost)} of the header"
        certain = {usage_id: tokens for call in made for usage_id, tokens in call.sent.get("usage", ())}
        possible = {
            usage_id: tokens
            for call in changing
            if call.start < view.end
            for usage_id, tokens in call.sent.get("usage", ())
        }
        if not sum(certain.values()) <= view.header["total_tokens"] <= sum(possible.values()):
            tokens = f"{sum(certain.values())} to {sum(possible.values())}"
            yield f"{view.name} shows {view.header['total_tokens']} tokens, not {tokens}"
        wanted = {pair for call in changing if not before.after(call) for pair in call.sent.get("header", {}).items()}
        for name, value in view.header.items() - before.header.items():
            if name != "total_tokens" and (name, value) not in wanted:
                yield f"{view.name} shows {name} {value!r} at {view.version}, to which nobody changed it after {before}"
        before = view


def amendments_kept(calls: Sequence[Call], stored: Stored) -> Iterable[str]:
    """No acknowledged amendment is lost, and none that was made from an older state undid a newer one."""
    rows = {row.message_id: row for row in stored.rows if not row.removed}
    by_message: dict[str, list[Call]] = defaultdict(list)
    unsure: dict[str, set[str]] = defaultdict(set)
    for call in calls:
        for amendment in _amendments(call):
            row = rows.get(amendment["message_id"])
            if call.outcome == "acknowledged" and row is not None:
                for key in amendment.get("keys", ()):
                    if key not in (row.body.get("metadata") or {}):
                        yield f"{row.message_id} has lost {key} of its metadata"
            if "content" in amendment:
                if call.outcome == "acknowledged" and call.answer["amended"]:
                    by_message[amendment["message_id"]].append(call)
                else:
                    unsure[amendment["message_id"]].add(amendment["content"])
    for message_id, amending in by_message.items():
        amending.sort(key=lambda call: call.answer["version"])
        for earlier, later in pairwise(amending):
            if later.sent["expected_version"] < earlier.answer["version"]:
                versions = f"{earlier.answer['version']} and {later.answer['version']}"
                yield f"{message_id} was amended at versions {versions}, then by one who had not seen that"
        row = rows.get(message_id)
        if row is not None and row.body.get("content") not in {amending[-1].sent["content"], *unsure[message_id]}:
            yield f"{message_id} is {row.body.get('content')!r}, not what it was amended to last"


def tool_calls_once(calls: Sequence[Call], stored: Stored) -> Iterable[str]:
    """Every acknowledged tool call stands in the message that was answered, and none stands anywhere twice."""
    found = Counter(c["id"] for row in stored.rows for c in row.body.get("tool_calls") or ())
    yield from (f"the tool call {call_id} is stored {count} times" for call_id, count in found.items() if count > 1)
    rows = {row.sequence: row for row in stored.rows}
    for call in _acknowledged(calls, "add_tool_call"):
        row = rows.get(call.answer["sequence"])
        if row is not None and not row.removed:
            call_id = call.sent["tool_call"]["id"]
            if call_id not in {c["id"] for c in row.body.get("tool_calls") or ()}:
                yield f"the tool call {call_id} is lost"


def usage_once(calls: Sequence[Call], stored: Stored) -> Iterable[str]:
    """Usage is added exactly once: acknowledged is counted, unknown is counted once or not, refused is not."""
    if stored.deleted:
        return
    total = stored.header["total_tokens"]
    if sum(stored.usage.values()) != total:
        yield f"the total is {total}, the records add up to {sum(stored.usage.values())}"
    possible = {uid: n for call in calls if call.outcome != "refused" for uid, n in call.sent.get("usage", ())}
    certain = {uid: n for call in calls if call.outcome == "acknowledged" for uid, n in call.sent.get("usage", ())}
    if not sum(certain.values()) <= total <= sum(possible.values()):
        yield f"{total} tokens, not {sum(certain.values())} to {sum(possible.values())} as was sent"
    for call in _acknowledged(calls, "usage"):
        for usage_id, tokens in call.sent["usage"]:
            if stored.usage.get(usage_id) != tokens:
                yield f"usage {usage_id} is {stored.usage.get(usage_id)}, not {tokens}"


def pages_are_whole(calls: Sequence[Call], stored: Stored) -> Iterable[str]:
    """A walk through the pages of a session shows all that was acknowledged before it began, once and in order."""
    if stored.deleted:
        return
    known_at = _known_at(calls)
    for walk in _acknowledged(calls, "pages"):
        known = {message_id for message_id, moment in known_at.items() if moment < walk.start}
        shown = [message_id for _, message_id, *_ in walk.answer["messages"]]
        yield from (f"{_name(walk)} {problem}" for problem in _not_the_first(shown, stored.rows, known))


def forks_are_whole(calls: Sequence[Call], stored: Stored) -> Iterable[str]:
    """A fork holds the messages up to the one that was asked for, as they were; without one, all that were known."""
    known_at, sent = _known_at(calls), _Sent(calls)
    asked: dict[str, Call] = {}
    for call in calls:
        if call.kind == "fork":
            asked.setdefault(call.sent["fork"], call)
            if call.error == "CL010":
                yield f"{_name(call)} was told that its own fork is another one"
            if call.outcome == "acknowledged" and call.sent["fork"] not in {fork.session for fork in stored.forks}:
                yield f"{_name(call)} was acknowledged, and the fork is not there"
    for fork in stored.forks:
        if fork.session not in asked:
            yield f"{fork.session} was forked by nobody"
            continue
        yield from (f"{fork.session}: {problem}" for problem in no_gap(calls, fork))
        if stored.deleted:  # and nothing is left to compare it with
            continue
        call = asked[fork.session]
        at = call.sent["at"]
        rows = stored.rows if at is None else stored.rows[: at + 1]
        known = {row.message_id for row in rows if at is not None or known_at.get(row.message_id, inf) < call.start}
        shown = [row.message_id for row in fork.rows]
        yield from (f"{fork.session} {problem}" for problem in _not_the_first(shown, rows, known))
        unchanged = {row.message_id for row in rows if row.amended_version is None}
        for row in fork.rows:
            problems = sent.problems(row, changed=row.message_id not in unchanged)
            yield from (f"{fork.session}: {problem}" for problem in problems)


def lists_are_whole(calls: Sequence[Call], stored: Stored) -> Iterable[str]:
    """A walk through a list shows its owner's sessions only, and all that nobody touches: none twice, but for a change.

    Nobody touches the forks.
    """
    ours = {stored.session, *(fork.session for fork in stored.forks)}
    for walk in _acknowledged(calls, "list"):
        shown = Counter((session, version) for session, version, _ in walk.answer if session in ours)
        sessions = {session for session, _ in shown}
        if walk.sent["user"] != stored.user:
            if sessions:
                yield f"{_name(walk)} shows {sorted(sessions)}, of another user"
            continue
        for (session, version), count in shown.items():
            if count > 1:
                yield f"{_name(walk)} shows {session} {count} times at version {version}"
        known = {call.sent["fork"] for call in _acknowledged(calls, "fork") if _end(call) < walk.start}
        if left_out := known - sessions:
            yield f"{_name(walk)} leaves out {sorted(left_out)}"
        gone = any(_end(call) < walk.start for call in _acknowledged(calls, "delete"))
        if gone and stored.session in sessions:
            yield f"{_name(walk)} shows a session that was deleted before"


def removed_by_somebody(calls: Sequence[Call], stored: Stored) -> Iterable[str]:
    """What is removed somebody asked to remove; what was removed stays so."""
    wanted = min(
        (c.sent["from_sequence"] for c in calls if c.kind == "truncate" and c.outcome != "refused"), default=None
    )
    cuts = _acknowledged(calls, "truncate")
    for row in stored.rows:
        if row.removed and (wanted is None or row.sequence < wanted):
            yield f"{row.message_id} at {row.sequence} was removed by nobody"
        if not row.removed and any(c.sent["from_sequence"] <= row.sequence < c.answer["next_sequence"] for c in cuts):
            yield f"{row.message_id} at {row.sequence} was removed and is back"


def stays_deleted(calls: Sequence[Call], stored: Stored) -> Iterable[str]:
    """A session is gone once its deletion was acknowledged, whoever writes late; and only if somebody deleted it."""
    deletions = [call for call in calls if call.kind == "delete" and call.outcome != "refused"]
    for call in calls:
        # A direct writer's transaction may have failed at another session.
        not_found = call.error == "CL001" and not call.writer.startswith("direct")
        if not_found and not any(deletion.start < _end(call) for deletion in deletions):
            yield f"{_name(call)} was told that there is no session, and nobody had deleted it"
    if stored.deleted and not deletions:
        yield "the session was deleted by nobody"
    if stored.deleted and stored.rows:
        yield f"the session was deleted, but {len(stored.rows)} messages are left"
    gone = min((_end(call) for call in deletions if call.outcome == "acknowledged"), default=None)
    if gone is None:
        return
    if not stored.deleted:
        yield f"the session was deleted and is back, with {len(stored.rows)} messages"
    for call in calls:
        if call.outcome == "acknowledged" and call.start > gone and call.kind not in ("read", "list", "delete"):
            yield f"{_name(call)} was acknowledged after the session was deleted"


def errors_are_clear(calls: Sequence[Call], stored: Stored) -> Iterable[str]:
    """The Python client raises errors of the ledger, or those of Postgres that it documents; nothing else.

    Nobody meets an internal error, a key or a name that the ledger's SQL runs into, or a call without an end.
    """
    for call in calls:
        unclear = call.writer.startswith("client") and call.error not in CLEAR and (call.error or "")[:2] != "CL"
        if call.error and (unclear or call.error[:2] in ("XX", "23", "42") or call.error == "TimeoutError"):
            yield f"{_name(call)} raised {call.error}"


Rule = Callable[[Sequence[Call], Stored], Iterable[str]]
RULES: tuple[Rule, ...] = (
    acknowledged_is_stored,
    nothing_unsent,
    stored_as_sent,
    once,
    no_gap,
    batches_whole,
    times_never_decrease,
    in_order_of_time,
    tool_calls_in_their_turn,
    reads_are_prefixes,
    reads_go_forward,
    reads_are_fresh,
    versions_are_fresh,
    reads_agree,
    versions_agree,
    header_changes_kept,
    amendments_kept,
    tool_calls_once,
    usage_once,
    pages_are_whole,
    forks_are_whole,
    lists_are_whole,
    removed_by_somebody,
    stays_deleted,
    errors_are_clear,
)


def _acknowledged(calls: Sequence[Call], *kinds: Kind) -> list[Call]:
    return [call for call in calls if call.outcome == "acknowledged" and call.kind in kinds]


def _reads(calls: Sequence[Call]) -> list[Call]:
    return [call for call in _acknowledged(calls, "read") if call.answer is not None]


@dataclass(frozen=True, slots=True)
class _View:
    """What showed the session's header at a version."""

    name: str
    start: int
    end: float
    version: int
    header: Json

    def after(self, call: Call) -> bool:
        """Whether it is certain that it shows what the call changed."""
        if call.outcome != "acknowledged":
            return False
        return call.answer["version"] <= self.version if call.kind in ("update", "usage") else _end(call) < self.start


def _views(calls: Sequence[Call], stored: Stored) -> list[_View]:
    views = [
        _View(_name(call), call.start, _end(call), call.answer["version"], call.answer["header"])
        for call in [*_reads(calls), *_acknowledged(calls, "update", "usage")]
    ]
    for walk in _acknowledged(calls, "list"):
        views += [
            _View(_name(walk), walk.start, _end(walk), version, header)
            for session, version, header in walk.answer
            if session == stored.session
        ]
    if not stored.deleted:
        last = max((call.end or 0 for call in calls), default=0) + 1
        views.append(_View("the stored session", last, last, stored.version, stored.header))
    return views


class _Sent:
    """What the messages may look like, by all that was sent."""

    def __init__(self, calls: Sequence[Call]) -> None:
        self._first: dict[str, Json] = {}
        self._contents: defaultdict[str, set[str | None]] = defaultdict(set)
        self._keys: defaultdict[str, set[str]] = defaultdict(set)
        self._added: dict[str, Json] = {}
        for call in calls:
            self._first |= {message["message_id"]: message for message in call.sent.get("messages", ())}
            if call.kind == "add_tool_call":
                added = call.sent["tool_call"]
                self._added[added["id"]] = added
                self._first[call.sent["message_id"]] = {"role": "assistant", "content": "", "tool_calls": [added]}
            for amendment in _amendments(call):
                self._contents[amendment["message_id"]].add(amendment.get("content"))
                self._keys[amendment["message_id"]].update(amendment.get("keys", ()))

    def problems(self, row: Row, *, changed: bool) -> Iterable[str]:
        """What nobody sent of a message, which may have been changed or not."""
        sent = self._first.get(row.message_id)
        if sent is None:
            return
        if not changed:
            if fingerprint(row.body) != fingerprint(sent):
                yield f"{row.message_id} is stored as {row.body}, not as {sent}"
            return
        if row.body["role"] != sent["role"] or row.body.get("content") not in {
            sent.get("content"), *self._contents[row.message_id],
        }:  # fmt: skip
            yield f"{row.message_id} has a content that nobody sent: {row.body}"
        metadata = row.body.get("metadata") or {}
        possible = (sent.get("metadata") or {}) | dict.fromkeys(self._keys[row.message_id], 1)
        if not (sent.get("metadata") or {}).items() <= metadata.items() <= possible.items():
            yield f"{row.message_id} has the metadata {metadata}, not of {possible}"
        own = sent.get("tool_calls") or []
        tool_calls = row.body.get("tool_calls") or []
        if tool_calls[: len(own)] != own or any(c != self._added.get(c["id"]) for c in tool_calls[len(own) :]):
            yield f"{row.message_id} has the tool calls {tool_calls}, not {own} and what was added"


def _end(call: Call) -> int:
    assert call.end is not None
    return call.end


def _name(call: Call) -> str:
    return f"{call.kind} {call.number} of {call.writer}"


def _sent_ids(call: Call) -> list[str]:
    """Ids of the messages that the call may bring into being."""
    if call.kind == "add_tool_call":
        return [call.sent["message_id"]]
    return [message["message_id"] for message in call.sent.get("messages", ())]


def _places(call: Call) -> list[tuple[str, int]]:
    """Where messages are, as an acknowledged append, save or added tool call was answered."""
    if call.kind == "add_tool_call":
        return [(call.answer["message_id"], call.answer["sequence"])]
    return [(message_id, sequence) for message_id, sequence, _ in call.answer]


def _known_at(calls: Sequence[Call]) -> dict[str, int]:
    """When a message was first acknowledged."""
    known_at: dict[str, int] = {}
    for call in _acknowledged(calls, "append", "save", "add_tool_call"):
        for message_id, _ in _places(call):
            known_at[message_id] = min(_end(call), known_at.get(message_id, _end(call)))
    return known_at


def _not_the_first(shown: Sequence[str], rows: Sequence[Row], known: set[str]) -> Iterable[str]:
    """Why these are not the first of the rows, as far as no row was removed, up to the known ones at least."""
    places = {row.message_id: place for place, row in enumerate(rows)}
    if strange := [message_id for message_id in shown if message_id not in places]:
        yield f"shows {strange}, which are not there"
        return
    found = [places[message_id] for message_id in shown]
    if found != sorted(set(found)):
        yield "is out of order, or shows a message twice"
    last = max(found, default=-1)
    for place in set(range(len(rows))) - set(found):
        row = rows[place]
        if not row.removed and (place < last or row.message_id in known):
            yield f"leaves out {row.message_id} at {row.sequence}"


def _amendments(call: Call) -> list[Json]:
    return [call.sent] if call.kind == "amend" else list(call.sent.get("amendments", ()))


def _batches(calls: Sequence[Call]) -> list[list[str]]:
    """The ids of what was first sent together, in the order in which it was sent."""
    known: set[str] = set()
    batches = []
    for call in sorted(calls, key=lambda call: call.start):
        batch = [message_id for message_id in _sent_ids(call) if message_id not in known]
        known.update(batch)
        if batch:
            batches.append(batch)
    return batches


def _rows_of(batch: Sequence[str], stored: Stored) -> list[Row]:
    wanted = set(batch)
    return [row for row in stored.rows if row.message_id in wanted]


def _in_one_piece(rows: Sequence[Row], batch: Sequence[str]) -> bool:
    first = rows[0]
    return [(row.message_id, row.sequence, row.created_at) for row in rows] == [
        (message_id, first.sequence + index, first.created_at) for index, message_id in enumerate(batch)
    ]
