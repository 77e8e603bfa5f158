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


class Gate:
    """Answers libzmq's questions.

    Args:
        socket: Where they come.
        stamp: Gives the number of the newest monitor event, after it has looked for newer ones.
    """

    def __init__(self, socket: ZSocket, stamp: Callable[[], int]) -> None:
        self._socket = socket
        self._stamp = stamp

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
        for sender, _, *question in asked:
            self._socket.raw.send_multipart([sender, b"", *reply(question, stamp)], zmq.NOBLOCK)


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
