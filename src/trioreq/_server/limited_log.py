"""Warnings that strangers can cause as often as they like: at most one a second is logged."""

from __future__ import annotations

import logging

import trio

log = logging.getLogger("trioreq")

LOG_EVERY = 1.0  # seconds between two log lines of one kind


class LimitedLog:
    """Logs warnings of one kind, and how many were left out."""

    def __init__(self) -> None:
        self._left_out = 0
        self._silent_until = -1.0

    def warning(self, text: str, *args: object) -> None:
        """Log a warning, unless another one was logged just now."""
        now = trio.current_time()
        if now < self._silent_until:
            self._left_out += 1
            return
        more = f" ({self._left_out} more since the last such line)" if self._left_out else ""
        log.warning("%s%s", text % args, more)
        self._left_out = 0
        self._silent_until = now + LOG_EVERY
