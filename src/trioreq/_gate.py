"""Who is let in, and with what stamp: the server's ZAP handler (ZeroMQ RFC 27).

libzmq asks before it lets a connection in, with the NULL mechanism too, if the socket has a ZAP
domain. The properties in the answer then ride on every message of that connection.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence

import zmq

from ._sockets import DOMAIN
from ._zsocket import ZSocket

log = logging.getLogger("trioreq")

STAMP = "X-Trioreq-Stamp"
FULL = (
    "the process has nearly as many file descriptors open as it may (ulimit -n): newcomers are "
    "turned away until some of them are free"
)
# Told no, a libzmq client gives up for good. Where there is no answer that libzmq understands it
# closes the connection, and the client comes back by itself, a moment later.
NO_VERSION = b"0.0"
NO_ANSWER = (b"500", b"no room", b"", b"")


class Gate:
    """Answers libzmq's questions.

    Args:
        socket: Where they come.
        stamp: Gives the number of the newest monitor event, after it has looked for newer ones.
        full: Says, after that, whether newcomers are to be turned away.
    """

    def __init__(
        self, socket: ZSocket, stamp: Callable[[], int], full: Callable[[], bool] = lambda: False
    ) -> None:
        self._socket = socket
        self._stamp = stamp
        self._full = full
        self._was_full = False

    def answer(self) -> None:
        """Answer all that ask now.

        The order is what makes presence exact: first the questions, then the events, of which
        the opening of each connection that asks is one, then the answers.
        """
        asked = []
        while self._socket.readable():
            asked.append(self._socket.raw.recv_multipart(zmq.NOBLOCK))
        if not asked:
            return
        stamp = b"%d" % self._stamp()
        full = self._full()
        if full and not self._was_full:
            log.warning(FULL)
        self._was_full = full
        for sender, _, *question in asked:
            answer = [NO_VERSION, question[1], *NO_ANSWER] if full else reply(question, stamp)
            self._socket.raw.send_multipart([sender, b"", *answer], zmq.NOBLOCK)


def reply(question: Sequence[bytes], stamp: bytes) -> list[bytes]:
    """The answer to one question, sans-IO; in doubt it is no."""
    version, request_id, domain, address, _routing_id, mechanism, *_credentials = question
    if (version, domain, mechanism) == (b"1.0", DOMAIN, b"NULL"):
        return [version, request_id, b"200", b"OK", b"", _property(STAMP.encode(), stamp)]
    log.warning("refused %r: mechanism %r in domain %r", address, mechanism, domain)
    return [b"1.0", request_id, b"400", b"this mechanism is not served here", b"", b""]


def _property(name: bytes, value: bytes) -> bytes:
    """One property as ZMTP's metadata has it."""
    return b"%c%b%b%b" % (len(name), name, len(value).to_bytes(4, "big"), value)
