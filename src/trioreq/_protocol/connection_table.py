"""Which connection a message came on, sans-IO: events in, connections out.

libzmq's socket monitor tells that a connection came or went, and names its file descriptor; a
message names the descriptor that it was read from. Descriptors are used again at once, so the
descriptor alone lies. What makes the answer exact is the stamp: when a connection is let in, the
table has all events up to then, and the connection's messages carry the number of the last.

- Events are numbered 1, 2, 3, ...; a connection is known by the number of its opening.
- A descriptor has one holder at a time, and its end is told before the descriptor is free again.
- So the sender of (descriptor, stamp) is the present holder if that was opened at or before the
  stamp. Otherwise the holder came later, and the sender is gone.

Only the living are kept. One who is looked up after its end is not found, and that is the
answer: gone. docs/design.md has the proof.
"""

from __future__ import annotations


class Presence:
    """The table of living connections.

    Attributes:
        stamp: The number of the newest event: what a connection let in now is to carry.
    """

    __slots__ = ("_holder", "stamp")

    def __init__(self) -> None:
        self.stamp = 0
        self._holder: dict[int, int] = {}

    def __len__(self) -> int:
        return len(self._holder)

    def opened(self, descriptor: int) -> int | None:
        """Take in that a connection was accepted.

        Returns:
            The connection whose end on this descriptor was never told, if there is one: it
            is gone all the same. None is the rule.
        """
        unended = self._holder.get(descriptor)
        self.stamp += 1
        self._holder[descriptor] = self.stamp
        return unended

    def ended(self, descriptor: int) -> int | None:
        """Take in that the connection on a descriptor ended; returns its number."""
        self.stamp += 1
        return self._holder.pop(descriptor, None)

    def living(self) -> tuple[tuple[int, int], ...]:
        """All connections: descriptor and number."""
        return tuple(self._holder.items())

    def holder(self, descriptor: int) -> int | None:
        """The connection that has a descriptor."""
        return self._holder.get(descriptor)

    def forget(self, descriptor: int) -> None:
        """Take the connection on a descriptor for gone, before its end is told."""
        del self._holder[descriptor]

    def sender(self, descriptor: int, stamp: int) -> int | None:
        """The connection that a message came on, or None if it is gone."""
        opened = self._holder.get(descriptor)
        return opened if opened is not None and opened <= stamp else None
