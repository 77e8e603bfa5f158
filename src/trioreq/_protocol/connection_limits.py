"""Limits the number of connections, in all and from one address."""

from __future__ import annotations

import math
from collections import Counter
from typing import Protocol

from .connection_table import Connection


class Total(Protocol):
    """How many connections there are, here and in other processes of the same server."""

    def add(self, change: int) -> int:
        """Count a change here; returns how many there are in all."""


class OwnTotal:
    """The connections of a server that is one process."""

    def __init__(self) -> None:
        self._connections = 0

    def add(self, change: int) -> int:
        """As in `Total`."""
        self._connections += change
        return self._connections


class ConnectionLimits:
    """Counts the connections that were accepted within the limits.

    Args:
        most: Connections in all; None for no limit.
        most_per_address: Connections from one address; None for no limit.
        total: How many there are in all; None if this process alone has them.
    """

    def __init__(
        self, most: int | None, most_per_address: int | None, total: Total | None = None
    ) -> None:
        self._most = math.inf if most is None else most
        self._most_per_address = math.inf if most_per_address is None else most_per_address
        self._counts: Counter[str] = Counter()
        self._total = OwnTotal() if total is None else total

    def enter(self, connection: Connection, address: str) -> str | None:
        """Count a connection; returns the reason to refuse it if a limit is reached."""
        reason = None
        # Counted first: two processes that accept the last connection at once both see it.
        if self._total.add(1) > self._most:
            reason = "max_connections is reached"
        elif self._counts[address] >= self._most_per_address:
            reason = "max_connections_per_address is reached"
        if reason is not None:
            self._total.add(-1)
            return reason
        connection.address = address
        connection.counted = True
        self._counts[address] += 1
        return None

    def leave(self, connection: Connection) -> None:
        """A connection has closed. It may be one that was not counted."""
        if connection.counted:
            address = connection.address
            connection.counted = False
            self._total.add(-1)
            self._counts[address] -= 1
            if not self._counts[address]:
                del self._counts[address]
