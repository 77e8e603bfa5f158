"""How long clients wait for their replies."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence

import trio

from .clients import ClientSocket


def percentile(ordered: Sequence[float], share: float) -> float:
    """The least value that at least this share of all does not exceed (nearest rank).

    Args:
        ordered: The values, the least first; the result is 0 if there are none.
        share: From 0 to 1.
    """
    return ordered[max(0, math.ceil(share * len(ordered)) - 1)] if ordered else 0.0


class Waits:
    """How long a client waited for its replies.

    Attributes:
        waits: Seconds.
        ends: When each wait ended, in seconds of `time.monotonic`.
    """

    def __init__(self) -> None:
        self.waits: list[float] = []
        self.ends: list[float] = []

    async def ask(self, client: ClientSocket, pause: float = 0.0) -> None:
        """Ask one request after the other, until cancelled, with so many seconds in between."""
        while True:
            await self.ask_once(client)
            await trio.sleep(pause)

    async def ask_once(self, client: ClientSocket) -> None:
        """Send a request, and wait for the reply."""
        start = time.monotonic()
        try:
            await client.request(b"echo")
        finally:  # a wait that is cancelled would have been longer
            end = time.monotonic()
            self.waits.append(end - start)
            self.ends.append(end)

    def percentile(self, percent: float) -> float:
        """The wait that so many of a hundred do not exceed."""
        return percentile(sorted(self.waits), percent / 100)

    def between(self, start: float, stop: float) -> Waits:
        """Those that ended after `start`, and not after `stop`."""
        part = Waits()
        for wait, end in zip(self.waits, self.ends, strict=True):
            if start < end <= stop:
                part.waits.append(wait)
                part.ends.append(end)
        return part
