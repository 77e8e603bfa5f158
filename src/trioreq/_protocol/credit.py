"""Credit, sans-IO: how far a server may run ahead of the consumer of a stream.

The client counts what its consumer has taken, and gives as much again. Both sides count what the
server may still send. `docs/protocol.md` specifies it.
"""

from __future__ import annotations

import math
import struct
from typing import Final

from .envelope import Frames

CREDIT: Final = struct.Struct("!II")
"""Replies and bytes, to be added; network order, 8 bytes."""
REPLIES: Final = 256
"""Replies that a stream begins with."""
BYTES: Final = 64 * 1024
"""Bytes that it begins with."""


class Credit:
    """What the server may still send of a stream.

    Args:
        limited: Whether there is a limit; a client without a header gives no credit.

    Attributes:
        replies: How many replies.
        bytes: How many bytes; below 0 after a reply that was larger.
    """

    __slots__ = ("bytes", "replies")

    def __init__(self, *, limited: bool) -> None:
        self.replies: float = REPLIES if limited else math.inf
        self.bytes: float = BYTES if limited else math.inf

    def __bool__(self) -> bool:
        """Whether a reply may be sent, of any size."""
        return self.replies > 0 and self.bytes > 0

    def spend(self, reply: Frames) -> bool:
        """A reply is sent, or has arrived; returns whether there was credit for it."""
        was_left = self.replies > 0 and self.bytes > 0
        self.replies -= 1
        self.bytes -= size_of(reply)
        return was_left

    def add_untrusted(self, body: Frames) -> bool:
        """The client gives more; returns False if the message is malformed."""
        if len(body) != 1 or len(body[0]) != CREDIT.size:
            return False
        self.add(body[0])
        return True

    def add(self, credit: bytes) -> None:
        """Add what `Consumed.count` has returned."""
        replies, size = CREDIT.unpack(credit)
        self.replies += replies
        self.bytes += size


class Consumed:
    """What the consumer of a stream has taken since the client has last given credit."""

    __slots__ = ("_bytes", "_replies")

    def __init__(self) -> None:
        self._replies = 0
        self._bytes = 0

    def count(self, reply: Frames) -> bytes | None:
        """The consumer takes a reply; returns the body of the credit to give, when it is time."""
        self._replies += 1
        self._bytes += size_of(reply)
        if self._replies < REPLIES // 2 and self._bytes < BYTES // 2:
            return None
        # A reply may be larger than what can be given at once: the rest is given with the next.
        size = min(self._bytes, 0xFFFFFFFF)
        body = CREDIT.pack(self._replies, size)
        self._replies = 0
        self._bytes -= size
        return body


def size_of(reply: Frames) -> int:
    """The bytes that a reply counts as."""
    return len(reply[0]) if len(reply) == 1 else sum(map(len, reply))
