"""Sizes of frames on the wire, which libzmq compares with its limit.

`max_message_size` counts the user's bytes, but:

- CURVE makes each frame larger (RFC 26).
- The commands of a handshake are frames too. With a limit below their sizes no client can connect.
"""

from __future__ import annotations

from typing import Final

from .zap import Mechanism

ENCRYPTION: Final = 33
"""Bytes that CURVE adds to a frame: the command's name 8, the nonce 8, the MAC 16, the flags 1."""

WELCOME: Final = len(b"\x07WELCOME") + 16 + 144
"""Bytes of CURVE's WELCOME: the nonce, and the box."""


def on_wire(size: int, *, encrypted: bool) -> int:
    """Bytes of a frame for libzmq, with CURVE or without."""
    return size + ENCRYPTION if encrypted else size


def ready(socket_type: str, routing_id: bytes = b"") -> int:
    """Bytes of a READY command of NULL (RFC 23)."""
    return len(b"\x05READY") + _metadata(socket_type, routing_id)


def _metadata(socket_type: str, routing_id: bytes = b"") -> int:
    """Bytes of the properties that libzmq sends in a handshake.

    A property is a length of 1 byte, the name, a length of 4 bytes, and the value.
    """
    properties = (("Socket-Type", len(socket_type)), ("Identity", len(routing_id)))
    return sum(1 + len(name) + 4 + size for name, size in properties)


GREETING: Final = 64
SHORT: Final = 2
"""Bytes of the header of a frame with fewer than 256 bytes."""

SENT_IN_HANDSHAKE: Final[dict[Mechanism, int]] = {
    "NULL": GREETING + SHORT + ready("ROUTER"),
    "PLAIN": GREETING + SHORT + len(b"\x07WELCOME") + SHORT + ready("ROUTER"),
    # READY: the nonce 8, a box of 16 more, and the properties.
    "CURVE": GREETING + SHORT + WELCOME + SHORT + len(b"\x05READY") + 8 + 16 + _metadata("ROUTER"),
}
"""Bytes that a ROUTER has sent when a handshake has succeeded, and not before."""

LEAST_AT_SERVER: Final[dict[Mechanism, int]] = {
    "NULL": ready("DEALER"),
    # INITIATE. HELLO has 8 bytes, the user name and the password, and can be longer than that.
    "PLAIN": len(b"\x08INITIATE") + _metadata("DEALER"),
    # INITIATE: the cookie 96, the nonce 8; in a box of 16 more, the key 32, the vouch 96, the
    # properties.
    "CURVE": len(b"\x08INITIATE") + 96 + 8 + 16 + 32 + 96 + _metadata("DEALER") - ENCRYPTION,
}
"""The least `max_message_size` with which a server accepts REQ and DEALER sockets.

The bytes of an explicit routing id are added to it."""

LEAST_AT_CLIENT: Final[dict[Mechanism, int]] = {
    "NULL": ready("ROUTER"),
    "CURVE": WELCOME - ENCRYPTION,
}
"""The least `max_message_size` with which a client can connect to a ROUTER socket."""
