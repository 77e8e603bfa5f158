"""How long to pause before what has failed is tried again."""

from __future__ import annotations

DOUBLINGS = 1000  # at most; 2.0**1024 is too large for a float


def backoff(first: float, most: float, failures: int) -> float:
    """The pause after some failures in a row, which doubles with each of them.

    Args:
        first: Seconds after the first failure.
        most: Seconds that it grows to.
        failures: How many there were, at least 1.
    """
    return min(first * 2.0 ** min(failures - 1, DOUBLINGS), most)
