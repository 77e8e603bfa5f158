"""A client's connections: one for new requests, and retired ones.

A go-away from the server retires the current connection: new requests are sent on another one, to
the same address, and the retired one is closed when the last of its own requests has ended.
"""

from __future__ import annotations

import math
from functools import partial
from typing import NoReturn

import trio
from trio_util import wait_any

from .._statistics import ClientStatistics, Timings
from .._transport.line import Line
from .backoff import BACKOFF
from .multiplexer import Multiplexer


class Connections:
    """The connections of one client.

    Args:
        line: Carries the messages; its successors do later.
        endpoint: What errors call the server.
        connect_timeout: Seconds that a request waits for a connection; infinity for no limit.

    Attributes:
        current: The one for new requests.
    """

    def __init__(self, line: Line, endpoint: str, connect_timeout: float) -> None:
        self.current: Multiplexer = Multiplexer(line, endpoint, connect_timeout, self._replace)
        # Never changed in place, for `statistics` in other threads.
        self._all: tuple[Multiplexer, ...] = (self.current,)
        self._replaced = trio.Event()

    @property
    def timings(self) -> Timings | None:
        """How long the newest connection took to make, and when; None while there was none."""
        return self.current.timings

    def statistics(self) -> ClientStatistics:
        """A snapshot of what the client has done."""
        in_flight = sum(multiplexer.in_flight for multiplexer in self._all)
        return ClientStatistics(**self.current.counts | {"in_flight": in_flight})

    async def run(self) -> NoReturn:
        """Follow all connections, and take what comes on them, until cancelled."""
        async with trio.open_nursery() as nursery:
            while True:
                nursery.start_soon(self._run_one, self.current)
                await self._replaced.wait()
                await self._pause()

    async def wait_changed(self) -> None:
        """Wait until the state of the current connection has changed, or another one is current."""
        current = self.current
        await wait_any(partial(current.wait_changed, current.state), self._replaced.wait)

    async def _run_one(self, multiplexer: Multiplexer) -> None:
        await multiplexer.run()
        multiplexer.line.close()
        self._all = tuple(other for other in self._all if other is not multiplexer)

    async def _pause(self) -> None:
        """Wait if the last connection was very short: the server may send each one a go-away."""
        timings = self.current.timings
        await trio.sleep_until(-math.inf if timings is None else timings.since + BACKOFF)

    def _replace(self) -> None:
        """The current connection is to take no more requests."""
        self.current = self.current.successor()
        self._all = (*self._all, self.current)
        self._replaced.set()
        self._replaced = trio.Event()  # here, so that no task finds the old one set

    @trio.lowlevel.enable_ki_protection  # no pending request may be left out
    def close(self) -> None:
        """Take no more requests, and fail those that are pending or wait for a connection."""
        for multiplexer in self._all:
            multiplexer.close()

    async def aclose(self) -> None:
        """Close the lines."""
        for multiplexer in self._all:
            multiplexer.line.close()
        await self.current.line.aclose()
