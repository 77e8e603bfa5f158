"""Finds connections whose messages libzmq never delivers: byte counts in, verdicts out.

libzmq ignores a connection if another one has the same routing id, permanently, also after that one
has closed. It does not report it, and still answers the connection's heartbeats. Such a connection
is detected by bytes of messages, of which no message was read. But heartbeats are bytes too. The
bytes in the other direction distinguish them: each PING is answered with a PONG, which is 2 bytes
shorter. With *r* bytes received and *s* bytes sent since the handshake, a connection that carried
only heartbeats has

    pong * r - ping * s <= -(ping**2 - pong**2) * n

where *ping* and *pong* are the sizes of the server's own, and *n* is the number of PINGs that the
server has sent at least. A PING of the client with its PONG leaves the left side unchanged, or
lowers it if the PING has a context; a PING of the server with its PONG lowers it by the bracket. So
a surplus is bytes of messages. The bytes received are those of the check before, so that libzmq has
answered all PINGs among them.

A message may be incomplete: its end has not arrived yet. So a connection is only suspected until
two checks differ by heartbeats alone: they are not sent inside a frame.
"""

from __future__ import annotations

from collections import deque
from typing import NamedTuple

from .connection_table import Connection
from .frame_sizes import GREETING, SENT_IN_HANDSHAKE
from .zap import Mechanism

ON_TIME = 0.98  # libzmq's timers are late, by a millisecond or so each time
LOOKS = 8  # checks to compare: a PONG may take longer than the time between two


class Sizes(NamedTuple):
    """Bytes on the wire, in one security mechanism."""

    ping: int
    pong: int
    sent: int
    """Bytes that the server sends in its handshake."""
    complete: int | None
    """Bytes received at least when the last command of the client's handshake has arrived; None if
    it does not send that before the ZAP handler's reply."""


SIZES: dict[Mechanism, Sizes] = {
    "NULL": Sizes(ping=9, pong=7, sent=SENT_IN_HANDSHAKE["NULL"], complete=72),
    "PLAIN": Sizes(ping=9, pong=7, sent=SENT_IN_HANDSHAKE["PLAIN"], complete=None),
    "CURVE": Sizes(ping=42, pong=40, sent=SENT_IN_HANDSHAKE["CURVE"], complete=525),
}


class Silence:
    """The state of a connection from which no message was read.

    Attributes:
        since: When `received` and `sent` were counted, in seconds.
        received, sent: Bytes at the end of its handshake.
        before: Bytes received at the check before.
        looks: The checks since it is suspected, as `UnheardGuard` compares them.
        proven: Whether heartbeats have followed the messages, which so are complete.
    """

    __slots__ = ("before", "looks", "proven", "received", "sent", "since")

    def __init__(self, since: float, received: int, sent: int) -> None:
        self.since = since
        self.received = self.before = received
        self.sent = sent
        self.looks: deque[tuple[int, int]] | None = None
        self.proven = False


class UnheardGuard:
    """Decides about connections from which no message was read, by their bytes.

    Args:
        mechanism: The security mechanism.
        interval: Seconds between two PINGs of the server; None if it sends none.
        patience: Seconds that a connection has at least. By then a cut-off connection with the same
            routing id has been disconnected, so a client that connects again is heard.
    """

    def __init__(self, mechanism: Mechanism, interval: float | None, patience: float) -> None:
        self._sizes = SIZES[mechanism]
        self._interval = interval
        self._patience = patience

    def asks(self, connection: Connection, received: int, now: float) -> bool:
        """The ZAP handler is about to reply to some connections, of which this may be one.

        A client sends no message before that reply. So if the last command of its handshake has
        arrived, all received bytes are those of the handshake.

        Returns:
            Whether only that command is missing, so that a wait for it may help.
        """
        complete = self._sizes.complete
        if connection.silence is not None or complete is None:
            return False
        if received >= complete:
            connection.silence = Silence(now, received, self._sizes.sent)
        return self._sizes is SIZES["NULL"] and GREETING <= received < complete

    def is_unheard(self, connection: Connection, received: int, sent: int, now: float) -> bool:
        """Whether its messages are not delivered, if all delivered messages were read.

        Args:
            connection: One that has completed its handshake, and from which nothing was read.
            received: Bytes that have arrived, all of which libzmq has read.
            sent: Bytes that libzmq has written.
            now: Seconds.
        """
        silence = connection.silence
        if silence is None:
            # Not `sent`: it may include a PING that is not answered yet.
            connection.silence = Silence(now, received, self._sizes.sent)
            return False
        ping, pong, *_ = self._sizes
        pair = ping**2 - pong**2
        out = ping * (sent - silence.sent)
        surplus = pong * (silence.before - silence.received) - out
        silence.before = received
        if silence.looks is None:
            if surplus + pair * self._pings(now - silence.since) <= 0:
                return False
            silence.looks = deque(maxlen=LOOKS)
        balance = pong * received - out
        for balance_then, sent_then in silence.looks:
            fallen = balance_then - balance
            if sent > sent_then and fallen >= 0 and not fallen % pair:
                silence.proven = True
        silence.looks.append((balance, sent))
        return silence.proven and now - silence.since >= self._patience

    def _pings(self, seconds: float) -> int:
        """How many PINGs the server has sent in this time, at least."""
        if self._interval is None:
            return 0
        return max(0, int(ON_TIME * seconds / self._interval) - 1)
