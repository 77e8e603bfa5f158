"""Finds the handshakes that failed: libzmq's events in, failures out.

libzmq reports that a handshake succeeded, was refused or failed, without naming the connection. It
reports some failures with a reason, just before the disconnect; others, such as a peer that speaks
HTTP or has the wrong socket type, not at all. But each handshake ends once:

- So of the connections with an unknown outcome, as many have succeeded or were refused as libzmq
  has reported. The other disconnected ones have failed.
- When libzmq has reported as many as there are, none has failed, and all are forgotten.
- A connection has succeeded if a message came on it, or if it is open for longer than a handshake
  may take.
- A connection that the server has closed has not failed because of that. libzmq reads the end of
  the stream, which it reports with a reason if the handshake was in progress: then the connection
  has neither succeeded nor failed. Otherwise its handshake had ended before, or ends with what was
  received, and its report may be read after the server closed it. So it keeps its place among the
  unknown outcomes until its disconnect, which counts as any other's.

So each connection leaves the unknown outcomes with its own report, with a reason, or as a failure.
When the last has left them, those that ended and have no report have failed: the number of failures
is exact in the end. (The exception is a connection that the ZAP handler refuses in the moment in
which the server closes it, if a reason is reported too: one failure may be missed.) While several
handshakes are in progress, it may be unknown for a while which of them failed, and which address to
log.
"""

from __future__ import annotations

from collections.abc import Iterator
from enum import Enum
from itertools import takewhile

from .connection_table import Connection


class Failure(Enum):
    """The reason why a handshake failed, as in the log."""

    FOREIGN = (
        "it does not speak ZMTP 3 (is it HTTP, TLS, or ZeroMQ before 4.0?), its socket is not a "
        "REQ or DEALER (is it SUB, PUSH, PAIR or REP?), or its routing id does not fit into "
        "max_message_size"
    )
    """libzmq reports only the disconnect."""
    MECHANISM = "it has another security mechanism than the server"
    KEYS = "it has another public key of the server than the server's, or damaged boxes (CURVE)"
    MALFORMED = "a command was malformed or out of order"
    TIMED_OUT = "it was not completed in time"
    BROKEN_OFF = (
        "the peer closed the connection during the handshake, as a client does that detects "
        "another security mechanism or socket type"
    )
    LEFT = "the peer closed the connection"
    """As far as is known it sent nothing, as a health check or a port scan: logged at DEBUG."""


class Handshakes:
    """The connections whose handshakes have an unknown outcome.

    Call the methods in the order of libzmq's events.

    Attributes:
        failed: How many handshakes have failed.
    """

    def __init__(self) -> None:
        self.failed = 0
        self._open: dict[Connection, float] = {}  # time of the accept, oldest first
        self._closed: dict[int, Connection] = {}  # by the server, by descriptor
        self._ended = 0  # disconnected connections with an unknown outcome
        self._succeeded = 0  # reports about connections of the three above
        self._refused = 0

    def __contains__(self, connection: Connection) -> bool:
        return connection in self._open

    def newest(self) -> Iterator[Connection]:
        """Connections whose handshake may be in progress, the newest first."""
        return reversed(self._open)

    @property
    def undecided(self) -> bool:
        """Whether there are disconnected connections with an unknown outcome."""
        return self._ended > 0

    def begun(self, connection: Connection, now: float) -> None:
        """A connection was accepted, at this time in seconds."""
        self._open[connection] = now

    def outlasted(self, begun: float) -> list[Failure]:
        """Record success for connections that were accepted before a time, and are still open."""
        oldest = takewhile(lambda item: item[1] < begun, self._open.items())
        failures = []
        for connection in [connection for connection, _ in oldest]:
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
        """A message of a connection was read, and then all events; returns the same as `ended`."""
        if connection not in self._open:
            return []
        del self._open[connection]
        self._succeeded = max(0, self._succeeded - 1)
        return self._known([])

    def closed(self, connection: Connection) -> None:
        """The server has closed a connection; `closed_ended` is called when it is disconnected."""
        if self._open.pop(connection, None) is not None:
            self._closed[connection.descriptor] = connection

    def ended(self, connection: Connection, reason: Failure | None) -> list[Failure]:
        """A connection was disconnected.

        Args:
            connection: The connection.
            reason: What libzmq reported just before; None if it did not.

        Returns:
            The reason of each failure that is known now: normally this connection's, or none.
        """
        if connection not in self._open:
            return []
        if connection.peer is not None:
            return self.heard(connection)
        del self._open[connection]
        if reason is not None and not self._refused:
            return self._known([reason])
        return self._ended_without_reason()

    def closed_ended(self, descriptor: int, reason: Failure | None) -> list[Failure]:
        """A connection was disconnected that the server had closed.

        Args:
            descriptor: The connection's.
            reason: As in `ended`.

        Returns:
            The same as `ended`.
        """
        if self._closed.pop(descriptor, None) is None:
            return []
        return self._ended_without_reason() if reason is None else self._known([])

    def _ended_without_reason(self) -> list[Failure]:
        if self._refused:  # if it was another one, that one counts as this one when it ends
            self._refused -= 1
        else:
            self._ended += 1
        return self._known([])

    def _known(self, failures: list[Failure]) -> list[Failure]:
        """Add the failures without a report: more have ended than have succeeded."""
        surplus = max(0, self._ended - self._succeeded)
        self._ended -= surplus
        self._settle()
        failures += [Failure.FOREIGN] * surplus
        self.failed += len(failures)
        return failures

    def _settle(self) -> None:
        """Forget all connections if there are as many reports."""
        unknown = len(self._open) + len(self._closed) + self._ended
        if self._succeeded + self._refused >= unknown:
            self._open.clear()
            self._closed.clear()
            self._ended = self._succeeded = self._refused = 0
