"""Which connections failed their handshake: libzmq's events in, failures out.

libzmq reports that a handshake succeeded, was refused or has failed, and names no connection. It
reports some failures with a reason, just before the disconnect; others, such as a peer that speaks
HTTP or has the wrong socket type, not at all. But each handshake has one end:

- So of the connections that are not known to be through, as many have succeeded or were refused as
  libzmq has reported, and the others that are disconnected have failed.
- When libzmq has reported as many as there are, all are through, and nothing is kept of them.
- A connection that a message came from has succeeded, and so has one that is open for longer than a
  handshake may take.

So the number of failures is exact in the end. While several handshakes are in progress, it may be
open for a while whether one of them failed, and which, and then also whose address is logged.
"""

from __future__ import annotations

from collections.abc import Iterator
from enum import Enum

from .connection_table import Connection


class Failure(Enum):
    """Why a handshake failed, as the log says it."""

    FOREIGN = (
        "it does not speak ZMTP 3 (is it HTTP, TLS, or ZeroMQ before 4.0?), its socket is not a "
        "REQ or DEALER (is it SUB, PUSH, PAIR or REP?), or its routing id does not fit into "
        "max_message_size"
    )
    """libzmq reports nothing but the disconnect."""
    MECHANISM = "it has another security mechanism than the server"
    KEYS = "it has another public key of the server than the server's, or damaged boxes (CURVE)"
    MALFORMED = "a command was malformed or came out of turn"
    TIMED_OUT = "it was not completed in time"
    BROKEN_OFF = (
        "the peer closed the connection in the middle, as a client does that has another security "
        "mechanism or socket type, and sees it first"
    )
    LEFT = "the peer closed the connection"
    """As far as is known it sent nothing: a health check or a port scan. Not worth a warning."""


class Handshakes:
    """The connections whose handshakes are not known to be over.

    Call it in the order in which libzmq reports.

    Attributes:
        failed: Handshakes that have failed.
    """

    def __init__(self) -> None:
        self.failed = 0
        self._open: dict[Connection, float] = {}  # since when, in the order of their accepts
        self._ended = 0  # disconnected connections of which it is not known how they fared
        self._succeeded = 0  # reported of the two above
        self._refused = 0

    def __contains__(self, connection: Connection) -> bool:
        return connection in self._open

    def newest(self) -> Iterator[Connection]:
        """Those whose handshake may be in progress, the newest first."""
        return reversed(self._open)

    @property
    def undecided(self) -> bool:
        """Whether there are disconnected connections of which it is not known how they fared."""
        return self._ended > 0

    def begun(self, connection: Connection, now: float) -> None:
        """A connection was accepted, at this time in seconds."""
        self._open[connection] = now

    def outlasted(self, begun: float) -> list[Failure]:
        """Connections that were accepted before that time, and are open, are through."""
        failures = []
        for connection, since in tuple(self._open.items()):
            if since >= begun:
                break
            failures += self.heard(connection)
        return failures

    def succeeded(self) -> None:
        """A handshake succeeded."""
        self._succeeded += 1
        self._settle()

    def refused(self) -> None:
        """The ZAP handler has refused a connection, which is about to end."""
        self._refused += 1
        self._settle()

    def heard(self, connection: Connection) -> list[Failure]:
        """A message was read from a connection, and after it all events; returns as `ended`."""
        if connection not in self._open:
            return []
        del self._open[connection]
        self._succeeded = max(0, self._succeeded - 1)
        return self._known([])

    def forget(self, connection: Connection) -> None:
        """The server has closed a connection: however its handshake ends, it did not fail."""
        self._open.pop(connection, None)
        self._settle()

    def ended(self, connection: Connection, reason: Failure | None) -> list[Failure]:
        """A connection was disconnected.

        Args:
            connection: The connection.
            reason: What libzmq reported just before; None if it did not.

        Returns:
            Why a handshake failed, for each of which that is known now. As a rule it is that of
            this connection, or none.
        """
        if connection not in self._open:
            return []
        if connection.peer is not None:
            return self.heard(connection)
        del self._open[connection]
        if self._refused:  # if that is another one, it is taken for this one when it ends
            self._refused -= 1
        elif reason is not None:
            return self._known([reason])
        else:
            self._ended += 1
        return self._known([])

    def _known(self, failures: list[Failure]) -> list[Failure]:
        """Add those that ended without a report, and are too many to have succeeded."""
        surplus = max(0, self._ended - self._succeeded)
        self._ended -= surplus
        self._settle()
        failures += [Failure.FOREIGN] * surplus
        self.failed += len(failures)
        return failures

    def _settle(self) -> None:
        """All are through if that was reported as often."""
        if self._succeeded + self._refused >= len(self._open) + self._ended:
            self._open.clear()
            self._ended = self._succeeded = self._refused = 0
