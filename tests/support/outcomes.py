"""How requests ended."""

from __future__ import annotations

import trioreq
from trioreq._protocol.endings import ENDINGS


def outcomes(server: trioreq.Server) -> dict[str, int]:
    """How many ended in each way, without the zeros. Each has ended in one way, or not yet."""
    stats = server.statistics()
    counts = {ending.outcome: getattr(stats, ending.outcome) for ending in ENDINGS}
    assert stats.requests == sum(counts.values()) + stats.in_flight
    return {name: count for name, count in counts.items() if count}
