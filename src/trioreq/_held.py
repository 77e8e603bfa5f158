"""A connection's end, held by a descriptor of one's own, so that it can be shut down.

libzmq cannot end one connection of a bound ROUTER. The kernel can: after a shutdown(2), libzmq
reads the end of the stream, and takes the connection for ended. What must be certain is whose
descriptor it is. docs/design.md has the order of steps that makes it so.
"""

from __future__ import annotations

import os
import socket
import struct
from contextlib import suppress

PEER_CREDENTIALS = struct.Struct("3i")  # process, user, group


class Held:
    """The connection that has a descriptor now, whoever has its number later."""

    def __init__(self, own: socket.socket) -> None:
        self._socket = own

    @property
    def address(self) -> str:
        """Where its peer is: an IP address, or the user that it runs as on this machine (ipc)."""
        if self._socket.family == socket.AF_UNIX:
            told = self._socket.getsockopt(
                socket.SOL_SOCKET, socket.SO_PEERCRED, PEER_CREDENTIALS.size
            )
            return f"uid {PEER_CREDENTIALS.unpack(told)[1]}"
        try:
            address: str = self._socket.getpeername()[0]
        except OSError:  # it has gone already
            return ""
        return address

    def shut_down(self) -> None:
        """End the connection, in both directions."""
        with suppress(OSError):  # the peer was faster
            self._socket.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """Let go of it; it lives on."""
        self._socket.close()


def hold(descriptor: int) -> Held | None:
    """Hold what has this descriptor; None if that is no socket."""
    try:
        own = os.dup(descriptor)
    except OSError:
        return None
    try:
        return Held(socket.socket(fileno=own))
    except OSError:
        os.close(own)
        return None
