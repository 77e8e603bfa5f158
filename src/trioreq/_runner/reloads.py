"""Reloads, one at a time."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import trio

from .systemd import Notifier


class Reloads:
    """Reloads whenever that is requested. All requests that come during one are done as one.

    Args:
        reload: What reloads.
        notifier: Reports each to systemd.
    """

    def __init__(self, reload: Callable[[], Awaitable[object]], notifier: Notifier) -> None:
        self._reload = reload
        self._notifier = notifier
        self._requested = trio.Event()

    def request(self) -> None:
        """Reload, now or when `run` does."""
        self._requested.set()

    async def run(self) -> None:
        """Do what is requested, until the service stops."""
        while True:
            await self._requested.wait()
            self._requested = trio.Event()
            if self._notifier.stops:
                return
            self._notifier.reloading()
            await self._reload()
            if self._notifier.stops:
                return
            self._notifier.ready()
