"""Ids of sessions, messages, usage and streams."""

from __future__ import annotations

import os
import time
from uuid import UUID


def new_id() -> str:
    """Return a fresh id: a UUID of version 7.

    They sort by the time they were made, so that appends to a long session write to the end of its part of the index
    instead of all over it.
    """
    bits = time.time_ns() // 1_000_000 << 80 | int.from_bytes(os.urandom(10))
    return str(UUID(int=bits & ~(0xF << 76 | 0b11 << 62) | 7 << 76 | 0b10 << 62))
