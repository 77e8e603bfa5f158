"""What the tasks of a client send in one pass of trio's loop goes out together.

The first message of a pass is sent at once, for it may be the only one. The others are held until
the next pass, or until there are enough of them: each time that libzmq's thread is woken costs more
than a message. Where the server takes packs, they go in packs.
"""

from __future__ import annotations

from typing import NoReturn

import trio

from .._protocol import packs
from .._protocol.envelope import Frames
from .._transport.line import Line

TOGETHER = 16  # messages that are sent together, at the most, if they go in no packs


class SendBuffer:
    """The messages that are held for a line.

    Args:
        line: What they are sent on.
    """

    def __init__(self, line: Line) -> None:
        self._line = line
        self._messages: list[Frames] = []
        self._max_pack_size = 0  # of the server, as of the last message
        self._flusher = trio.lowlevel.ParkingLot()  # where it waits until there is something
        self._flush_is_due = False

    def append(self, frames: Frames, max_pack_size: int) -> None:
        """Send a message, now or in the next pass.

        Args:
            frames: The message.
            max_pack_size: Bytes of the largest pack that the server takes; 0 for none.
        """
        self._messages.append(frames)
        self._max_pack_size = max_pack_size
        if not self._flush_is_due:
            self._flush_is_due = bool(self._flusher.unpark())
            self.flush()
        elif self._is_full(frames):
            self.flush()

    def _is_full(self, last: Frames) -> bool:
        """Whether no more are to be held: those that go in no pack may be large."""
        packed = len(last[-1]) < self._max_pack_size
        return len(self._messages) >= (packs.MAX_MESSAGES if packed else TOGETHER)

    @trio.lowlevel.enable_ki_protection  # what is taken out is to be sent
    def flush(self) -> None:
        """Send what is held."""
        if self._messages:
            messages, self._messages = self._messages, []
            if self._max_pack_size and len(messages) > 1:
                messages = packs.pack(messages, self._max_pack_size, self._line.max_pack_size)
            self._line.send(messages)

    def clear(self) -> None:
        """Forget what is held: its connection is lost."""
        self._messages.clear()

    @trio.lowlevel.enable_ki_protection
    async def keep_flushing(self) -> NoReturn:
        """Send what is held, in each pass that follows one in which something was sent."""
        while True:
            self._flush_is_due = False
            self.flush()
            await self._flusher.park()
