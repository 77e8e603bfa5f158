"""How the requests of a server ended."""

from __future__ import annotations

from dataclasses import asdict

import trioreq
from harness.outcomes import OUTCOMES, ended


def outcomes(server: trioreq.Server) -> dict[str, int]:
    """How many requests ended in each way; ways in which none ended are left out."""
    statistics = asdict(server.statistics())
    assert statistics["requests"] == ended(statistics) + statistics["in_flight"]
    return {outcome: statistics[outcome] for outcome in OUTCOMES if statistics[outcome]}
