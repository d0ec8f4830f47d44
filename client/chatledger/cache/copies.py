"""What lies in Redis of a session: one hash, ``chat:session:{session_id}``.

Its fields: ``format``, ``created`` (which session of that id this is), ``version``, ``header``, and the messages in
numbered blocks; header and blocks behind a checksum. Without I/O.
"""

from __future__ import annotations

import hashlib
import json
import zlib
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

_FORMAT = b"3"

# Applies a change to the copy it was made for, and only to that: atomic, without a round trip to look first. Versions
# are compared as text where they must be equal, since Lua's numbers end at 2^53. More than 8,000 values at a time are
# too many for unpack.
WRITE = """
local key, ttl, format, created, version, base = KEYS[1], ARGV[1], ARGV[2], ARGV[3], ARGV[4], ARGV[5]
local first_pair = 7 + tonumber(ARGV[6])

local kind = redis.call('TYPE', key).ok
local held = kind == 'hash' and redis.call('HMGET', key, 'format', 'created', 'version')
if kind ~= 'none' and not (held and held[1] == format and held[2] and tonumber(held[3])) then
    redis.call('UNLINK', key)
    held = false
end

if base == '' then
    -- A whole copy. One with another created is of another session that had this id; we cannot tell which session is
    -- newer, so overwrite; a wrong copy is detected and replaced on the next read.
    if held and held[2] == created and tonumber(held[3]) >= tonumber(version) then return 0 end
elseif not held or held[2] ~= created or held[3] ~= base then
    return 0
end
-- Without memory only a script's first write is refused, and only one that adds something.
redis.call('HSET', key, 'format', format)
if base == '' then redis.call('UNLINK', key) end
for i = 7, first_pair - 1, 1000 do
    redis.call('HDEL', key, unpack(ARGV, i, math.min(i + 999, first_pair - 1)))
end
for i = first_pair, #ARGV, 1000 do
    redis.call('HSET', key, unpack(ARGV, i, math.min(i + 999, #ARGV)))
end
redis.call('PEXPIRE', key, ttl)
return 1
"""
WRITE_SHA = hashlib.sha1(WRITE.encode(), usedforsecurity=False).hexdigest()


@dataclass(frozen=True, slots=True)
class CachedSession:
    """A session as it was at ``header["version"]``."""

    header: dict[str, Any]
    blocks: dict[int, bytes]
    """Its messages, by number, in order. Not parsed here: who cannot read them, or misses some, drops the copy."""


def key_of(session_id: str) -> bytes:
    return b"chat:session:" + session_id.encode("utf-8", "surrogatepass")  # no Unicode: for Postgres to refuse


def _sealed(field: bytes, value: bytes) -> bytes:
    """Return the value behind a checksum of it and its field: damaged JSON may be JSON still."""
    return b"%08x" % zlib.crc32(value, zlib.crc32(field)) + value


def _unsealed(field: bytes, sealed: bytes) -> bytes:
    value = sealed[8:]
    if int(sealed[:8], 16) != zlib.crc32(value, zlib.crc32(field)):
        raise ValueError("not as it was written")
    return value


def _created(header: Mapping[str, Any]) -> int:
    """When the session was created. As a number, since the text depends on the time zone of who read it."""
    since = datetime.fromisoformat(header["created_at"]) - datetime(1970, 1, 1, tzinfo=UTC)
    return since // timedelta(microseconds=1)


def parse(answer: Any, session_id: str) -> CachedSession:
    """Return the copy in an answer to HGETALL.

    Raises:
        ValueError, TypeError, KeyError, AttributeError, RecursionError: The copy is not whole.
    """
    if isinstance(answer, list):  # RESP2
        answer = dict(zip(answer[::2], answer[1::2], strict=True))
    if answer.pop(b"format") != _FORMAT:
        raise ValueError("another format")
    created, version = int(answer.pop(b"created")), int(answer.pop(b"version"))
    header = json.loads(_unsealed(b"header", answer.pop(b"header")))
    blocks = {int(field): _unsealed(field, answer[field]) for field in sorted(answer, key=int)}
    if (header["session_id"], header["version"], _created(header)) != (session_id, version, created):
        raise ValueError("another session's or version's header")
    return CachedSession(header, blocks)


def write_arguments(
    session_id: str,
    ttl: int,
    base: int | bytes,
    header: Mapping[str, Any],
    blocks: Mapping[int, bytes],
    removed: Collection[int],
) -> tuple[Any, ...]:
    """Return the arguments of the script that writes a copy, from the number of keys on.

    Args:
        session_id: The session.
        ttl: For how many milliseconds the copy is kept.
        base: The version of the copy that this is a change of; empty: it is a whole copy.
        header: The session's header, as JSON has it.
        blocks: Blocks that are new or changed.
        removed: Blocks that are gone.
    """
    created, version = _created(header), int(header["version"])
    pairs: list[bytes | int] = [b"format", _FORMAT, b"created", created, b"version", version]
    pairs += [b"header", _sealed(b"header", json.dumps(header, separators=(",", ":")).encode())]
    for number, block in blocks.items():
        pairs += (number, _sealed(b"%d" % number, block))
    return (1, key_of(session_id), ttl, _FORMAT, created, version, base, len(removed), *removed, *pairs)
