"""How many connections there may be, in all and from one address, sans-IO."""

from __future__ import annotations

import math
from collections import Counter


class Limits:
    """Counts those who are inside.

    Args:
        most: Connections in all; None for no limit.
        most_per_address: Connections from one address; None for no limit.
    """

    def __init__(self, most: int | None, most_per_address: int | None) -> None:
        self.unlimited: bool = most is None and most_per_address is None
        self._most = math.inf if most is None else most
        self._most_per_address = math.inf if most_per_address is None else most_per_address
        self._inside: dict[int, str] = {}  # connection -> address
        self._at: Counter[str] = Counter()

    def enter(self, number: int, address: str) -> str | None:
        """Let a connection in, or say which limit is in its way."""
        if len(self._inside) >= self._most:
            return "max_connections is reached"
        if self._at[address] >= self._most_per_address:
            return "max_connections_per_address is reached"
        self._inside[number] = address
        self._at[address] += 1
        return None

    def leave(self, number: int) -> None:
        """A connection has gone; it need not have been let in."""
        address = self._inside.pop(number, None)
        if address is not None:
            self._at[address] -= 1
            if not self._at[address]:
                del self._at[address]
