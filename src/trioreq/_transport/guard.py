"""When to look for a message without end, and at whom. `_unfinished` has what is told from it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import islice
from typing import NoReturn

import trio

from .._protocol.connection_table import Presence
from .._protocol.message_guard import Unfinished
from .linux import KernelCounters

ENDLESS = (
    "ended the connection of %s: it has sent more than %d bytes and no whole message; if it was "
    "honest, raise max_message_size"
)
PAUSE = 0.25  # seconds between two looks
BRIEF = 0.02  # seconds instead, while the process's memory grows
GROWTH = 4 * 1024 * 1024  # bytes of it that are worth looking at everybody
SLICE = 100  # connections to look at in one step, one or two microseconds each


class Lookout:
    """Ends those who send a message without end.

    There is no event to wait for: libzmq tells nobody what it gathers, nor does the kernel. So
    this looks now and then, while anybody is connected: at all of them if the process's memory
    has grown, else at some in each turn, since what is gathered may go into memory that C has
    kept from earlier.

    Args:
        presence: Who is connected.
        unfinished: What is known of their messages.
        read_monitor: Takes in who came and who went.
        read_up: Reads what has come; returns whether that was all.
        end: Ends a connection: its descriptor, its number, and what to log.

    Attributes:
        somebody: Set when one is connected.
    """

    def __init__(
        self,
        presence: Presence,
        unfinished: Unfinished,
        read_monitor: Callable[[], object],
        read_up: Callable[[], bool],
        end: Callable[[int, int, str], None],
    ) -> None:
        self._presence = presence
        self._unfinished = unfinished
        self._read_monitor = read_monitor
        self._read_up = read_up
        self._end = end
        self.somebody = trio.Event()

    async def run(self, meter: KernelCounters) -> NoReturn:
        """Look, until cancelled."""
        lowest = meter.memory()
        pause = PAUSE
        others = iter(self._presence.living())  # whose turn is still to come
        while True:
            if not self._presence:
                self.somebody = trio.Event()
                await self.somebody.wait()
            await trio.sleep(pause)
            memory = meter.memory()
            grown = memory >= lowest + GROWTH
            lowest = memory if grown else min(lowest, memory)
            pause = BRIEF if grown else PAUSE
            for _ in range(2 + len(self._presence) // SLICE if grown else 1):
                begun = trio.current_time()
                some = tuple(islice(others, SLICE))
                self.look(meter, some)
                if len(some) < SLICE:
                    others = iter(self._presence.living())
                pause += 10 * (trio.current_time() - begun)  # not all the time, with many
                await trio.lowlevel.checkpoint()

    @trio.lowlevel.enable_ki_protection  # what is read may be answered at once
    def look(self, meter: KernelCounters, some: Sequence[tuple[int, int]]) -> None:
        """Look at some connections, and end those whose message has no end."""
        unfinished = self._unfinished
        self._read_monitor()
        now = trio.current_time()
        asked_about = []
        for descriptor, number in some:
            # If it has gone just now, what is counted is another's: `end` will find that out.
            if self._presence.holder(descriptor) == number and unfinished.is_notable(
                number, meter.received(descriptor)
            ):
                least, most = meter.read_by_owner(descriptor)
                if unfinished.weigh(number, least, most, now):
                    asked_about.append((descriptor, number))
        if asked_about:
            dry = self._read_up()
            for descriptor, number in asked_about:
                if unfinished.is_endless(number, len(self._presence), dry=dry):
                    self._end(descriptor, number, ENDLESS)
