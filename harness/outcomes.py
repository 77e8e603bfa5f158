"""What the statistics of a server say of its requests."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from trioreq._protocol.endings import ENDINGS

OUTCOMES = tuple(dict.fromkeys(ending.outcome for ending in ENDINGS))
"""How a request ends; each ends in one of these ways."""


def ended(statistics: Mapping[str, Any]) -> int:
    """How many requests have ended, in any way."""
    return sum(statistics[outcome] for outcome in OUTCOMES)
