"""The task that holds a stream, cancelled when the stream cannot go on."""

from __future__ import annotations

import asyncio


class HolderTask:
    """Cancels the task that entered ``async with``, and takes that cancellation back on leaving.

    As :func:`asyncio.timeout` does it: whoever else cancelled the task goes first, so :meth:`take_back` tells whether
    the cancellation that ends the block is only its own.
    """

    def __init__(self) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._task = task
        self._cancelling = task.cancelling()
        self._cancelled = False

    def cancel(self) -> None:
        """Cancel the task, unless it is the one that calls this: an exception tells that one."""
        if asyncio.current_task() is not self._task:
            self._cancelled = self._task.cancel() or self._cancelled

    def take_back(self) -> bool:
        """Take the cancellation back, if there was one; return False when somebody else cancelled the task, too."""
        if not self._cancelled:
            return True
        self._cancelled = False
        return self._task.uncancel() <= self._cancelling
