"""A zmq socket in trio: it never blocks, and never sleeps on a message that is there.

A zmq socket's descriptor is edge-triggered: it tells that something has happened since one last
looked, and any call on the socket may be that look. So nobody waits on it before `readable` has
said no, and who uses the socket while its reader sleeps calls `nudge` afterwards.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NoReturn

import trio
import zmq

POLLIN = int(zmq.POLLIN)  # the enum's own & is slow


class ZSocket:
    """A zmq socket with one task that reads it, as trio has it: one waiter a descriptor."""

    __slots__ = ("_asleep", "_descriptor", "_nap", "raw")

    def __init__(self, raw: zmq.Socket[bytes]) -> None:
        self.raw = raw
        self._descriptor: int = raw.getsockopt(zmq.FD)  # type: ignore[assignment]
        self._asleep = False
        self._nap = trio.CancelScope()

    def readable(self) -> bool:
        """Whether there is a message to read."""
        events: int = self.raw.get(zmq.EVENTS)  # type: ignore[assignment]
        return bool(events & zmq.POLLIN)

    @trio.lowlevel.enable_ki_protection
    async def keep_reading(self, read: Callable[[], object]) -> NoReturn:
        """Call `read` whenever there may be a message, for ever.

        Args:
            read: Reads what it finds, a bounded number of messages; does not block.
        """
        while True:
            # The scope is for `nudge` alone, and lives until it is used.
            with trio.CancelScope() as self._nap:
                while True:
                    read()
                    if self.readable():
                        await trio.lowlevel.checkpoint()
                        continue
                    self._asleep = True
                    try:
                        await trio.lowlevel.wait_readable(self._descriptor)
                    finally:
                        self._asleep = False

    def nudge(self) -> None:
        """After another call on the socket: wake the reader if it sleeps on a message."""
        if self._asleep and self.readable():
            self._asleep = False
            self._nap.cancel()
