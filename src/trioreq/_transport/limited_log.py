"""Log lines that any peer could cause by the thousand."""

from __future__ import annotations

import trio

from .._log import log

EVERY = 1.0  # seconds between two lines


class LimitedLog:
    """Warnings of one kind: at most one a second, which says how many were skipped before it."""

    def __init__(self) -> None:
        self._unlogged = 0
        self._silent_until = -1.0

    def warning(self, text: str, *arguments: object) -> None:
        """Log a line, unless another was logged just now."""
        now = trio.current_time()
        if now < self._silent_until:
            self._unlogged += 1
            return
        more = f" ({self._unlogged} more since the last such line)" if self._unlogged else ""
        log.warning("%s%s", text % arguments, more)
        self._unlogged = 0
        self._silent_until = now + EVERY
