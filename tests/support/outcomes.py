"""How requests ended."""

from __future__ import annotations

import trioreq
from trioreq._server.tally import Outcome


def outcomes(server: trioreq.Server) -> dict[str, int]:
    """How many ended in each way, without the zeros. Each has ended in one way, or not yet."""
    stats = server.statistics()
    counts = {name: getattr(stats, name) for name in Outcome.__args__}  # type: ignore[attr-defined]
    assert stats.requests == sum(counts.values()) + stats.in_flight
    return {name: count for name, count in counts.items() if count}
