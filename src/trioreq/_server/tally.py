"""What the server counts, sans-IO: the numbers behind `Statistics`."""

from __future__ import annotations

from typing import Literal

from .._statistics import RepliesDropped, Statistics

Outcome = Literal[
    "replied",
    "failed",
    "timed_out",
    "superseded",
    "cancelled_by_disconnect",
    "cancelled_by_client",
    "never_started",
    "overloaded",
    "malformed",
    "shut_down",
]
"""How a request ended; each ends in exactly one of these ways."""


class Tally:
    """The counters behind `Statistics`."""

    __slots__ = ("dropped_full", "dropped_gone", "ended", "requests", "unattributed")

    def __init__(self) -> None:
        self.requests: int = 0
        self.ended: dict[Outcome, int] = dict.fromkeys(Outcome.__args__, 0)  # type: ignore[attr-defined]
        self.dropped_gone: int = 0
        self.dropped_full: int = 0
        self.unattributed: int = 0

    def snapshot(
        self,
        *,
        in_flight: int,
        waiting: int,
        running: int,
        connections: int,
        sent: int,
        abandoned: int,
        refused: int,
        thrown_out: int,
    ) -> Statistics:
        """All of it, with what others count, as it is now."""
        return Statistics(
            requests=self.requests,
            **self.ended,
            in_flight=in_flight,
            waiting=waiting,
            running=running,
            connections=connections,
            replies_sent=sent,
            replies_dropped=RepliesDropped(self.dropped_gone, self.dropped_full),
            unattributed=self.unattributed,
            abandoned_threads=abandoned,
            refused=refused,
            thrown_out=thrown_out,
        )
