"""A circuit breaker: holds back calls that would only fail."""

from __future__ import annotations

import logging
from collections.abc import Callable

logger = logging.getLogger(__name__)

_FIRST_BACKOFF, _LONGEST_BACKOFF = 1.0, 30.0


class CircuitBreaker:
    """Holds back calls while they fail.

    Closed while calls succeed. Open after a failure: for a backoff, calls are held back. Then half-open: one call is
    let through as a probe, and closes the breaker, or opens it again for twice as long, up to 30 seconds. The log says
    once that calls fail, and once that they succeed again.

    Args:
        trouble: What the log says is wrong.
        clock: Tells the time in seconds.
    """

    def __init__(self, trouble: str, clock: Callable[[], float]) -> None:
        self._trouble = trouble
        self._clock = clock
        self._backoff = 0.0
        self._next_probe_at = 0.0
        self._openings = 0

    @property
    def is_open(self) -> bool:
        """Whether calls fail, as far as is known: also while a probe is under way."""
        return self._backoff > 0

    def holds_back(self) -> bool:
        """Tell whether a call must not be made now."""
        return self.is_open and self._clock() < self._next_probe_at

    def enter(self) -> int | None:
        """Return an attempt, for :meth:`failed` or :meth:`succeeded`; None: the call must not be made."""
        if self.holds_back():
            return None
        if self.is_open:
            self._next_probe_at = self._clock() + self._backoff  # one probe at a time, also if this one gets cancelled
        return self._openings

    def failed(self, attempt: int, error: Exception) -> None:
        """Take note that the call of an attempt failed."""
        if attempt != self._openings:
            return  # the call was under way when another one opened the breaker
        if not self.is_open:
            logger.warning("%s (%s): going on without the session cache", self._trouble, _reason(error))
        self._openings += 1
        self._backoff = min(max(_FIRST_BACKOFF, self._backoff * 2), _LONGEST_BACKOFF)
        self._next_probe_at = self._clock() + self._backoff

    def succeeded(self, attempt: int) -> None:
        """Take note that the call of an attempt succeeded."""
        if self.is_open and attempt == self._openings:
            self._backoff = 0.0
            logger.info("Over: %s", self._trouble)


def _reason(error: Exception) -> str:
    """What went wrong, without the server's words: they may quote the command, and so a message or the password."""
    cause = error.__cause__ or error.__context__
    system = cause.strerror if isinstance(cause, OSError) else None
    return f"{type(error).__name__}: {system}" if system else type(error).__name__
