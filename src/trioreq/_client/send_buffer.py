"""Sends the messages of one pass of the event loop together.

The first message of a pass is sent at once, since it may be the only one. The others are held until
the next pass, or until there are enough of them: a wake-up of libzmq's thread costs more than a
message. If the server accepts packs, they are sent in packs.
"""

from __future__ import annotations

from typing import NoReturn

import trio

from .._protocol import packs
from .._protocol.envelope import Frames
from .._transport.line import Line

TOGETHER = 16  # messages that are held at most, unless they are sent in packs


class SendBuffer:
    """The messages that are held for a line.

    Args:
        line: Sends them.
    """

    def __init__(self, line: Line) -> None:
        self._line = line
        self._messages: list[Frames] = []
        self._max_pack_size = 0  # of the server, as of the last message
        self._flusher = trio.lowlevel.ParkingLot()  # it waits here for the first message
        self._flush_is_due = False

    def append(self, frames: Frames, max_pack_size: int) -> None:
        """Send a message, now or in the next pass.

        Args:
            frames: The message.
            max_pack_size: Bytes of the largest pack that the server accepts; 0 for none.
        """
        self._messages.append(frames)
        self._max_pack_size = max_pack_size
        if not self._flush_is_due:
            self._flush_is_due = bool(self._flusher.unpark())
            self.flush()
        elif self._is_full(frames):
            self.flush()

    def _is_full(self, last: Frames) -> bool:
        """Whether no more may be held: messages that fit in no pack may be large."""
        packed = len(last[-1]) < self._max_pack_size
        return len(self._messages) >= (packs.MAX_MESSAGES if packed else TOGETHER)

    @trio.lowlevel.enable_ki_protection  # messages that are taken out must be sent
    def flush(self) -> None:
        """Send the held messages."""
        if self._messages:
            messages, self._messages = self._messages, []
            if self._max_pack_size and len(messages) > 1:
                messages = packs.pack(messages, self._max_pack_size, self._line.max_pack_size)
            self._line.send(messages)

    def clear(self) -> None:
        """Drop the held messages: their connection was lost."""
        self._messages.clear()

    @trio.lowlevel.enable_ki_protection
    async def keep_flushing(self) -> NoReturn:
        """Send the held messages in the pass after the one in which they were appended."""
        while True:
            self._flush_is_due = False
            self.flush()
            await self._flusher.park()
