"""Limits the number of connections, in all and from one address."""

from __future__ import annotations

import math
from collections import Counter

from .connection_table import Connection


class ConnectionLimits:
    """Counts the connections that were accepted within the limits.

    Args:
        most: Connections in all; None for no limit.
        most_per_address: Connections from one address; None for no limit.
    """

    def __init__(self, most: int | None, most_per_address: int | None) -> None:
        self._most = math.inf if most is None else most
        self._most_per_address = math.inf if most_per_address is None else most_per_address
        self._counts: Counter[str] = Counter()
        self._connections = 0

    def enter(self, connection: Connection, address: str) -> str | None:
        """Count a connection; returns the reason to refuse it if a limit is reached."""
        if self._connections >= self._most:
            return "max_connections is reached"
        if self._counts[address] >= self._most_per_address:
            return "max_connections_per_address is reached"
        connection.address = address
        connection.counted = True
        self._connections += 1
        self._counts[address] += 1
        return None

    def leave(self, connection: Connection) -> None:
        """A connection has closed. It may be one that was not counted."""
        if connection.counted:
            address = connection.address
            connection.counted = False
            self._connections -= 1
            self._counts[address] -= 1
            if not self._counts[address]:
                del self._counts[address]
