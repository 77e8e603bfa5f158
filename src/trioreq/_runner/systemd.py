"""What systemd passes to a service in its environment, and reports to it (sd_notify(3)).

Where no NOTIFY_SOCKET is set, all of it does nothing.
"""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Callable

import trio

from .._log import log
from .settings import WrongSetting

FIRST = 3  # the first descriptor that systemd passes
STATUS = 5.0  # seconds between two lines about the state


class Notifier:
    """Reports the state of the service to systemd.

    It reads the environment, and removes what it has read.

    Attributes:
        interval: Seconds between two signs of life; None if systemd expects none.
        stops: Whether the service drains.
    """

    def __init__(self) -> None:
        self._address = os.environ.pop("NOTIFY_SOCKET", "")
        if self._address.startswith("@"):
            self._address = "\0" + self._address[1:]
        self.interval: float | None = None
        self.stops = False
        microseconds = os.environ.pop("WATCHDOG_USEC", "")
        if os.environ.pop("WATCHDOG_PID", str(os.getpid())) == str(os.getpid()) and microseconds:
            self.interval = int(microseconds) / 2e6

    def report(self, *lines: str) -> None:
        """Send lines such as ``READY=1``."""
        if not self._address:
            return
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK) as own:
                own.sendto("\n".join(lines).encode(), self._address)
        except OSError as error:
            log.warning("cannot report %s to systemd: %s", lines[0], error)

    def ready(self) -> None:
        """The service serves, or has reloaded."""
        self.report("READY=1", f"MAINPID={os.getpid()}")

    def reloading(self) -> None:
        """The service reloads, until it is ready again."""
        self.report("RELOADING=1", f"MONOTONIC_USEC={time.monotonic_ns() // 1000}")

    def stopping(self) -> None:
        """The service drains."""
        self.stops = True
        self.report("STOPPING=1")

    async def run(self, status: Callable[[], str]) -> None:
        """Show that the event loop is alive, and how the service is, until cancelled."""
        async with trio.open_nursery() as nursery:
            if self._address:
                nursery.start_soon(self._tell_status, status)
                if self.interval is not None:
                    nursery.start_soon(self._live, self.interval)
            await trio.sleep_forever()

    async def _live(self, interval: float) -> None:
        while True:
            self.report("WATCHDOG=1")
            await trio.sleep(interval)

    async def _tell_status(self, status: Callable[[], str]) -> None:
        while True:
            self.report(f"STATUS={status()}")
            await trio.sleep(STATUS)


def passed_sockets() -> list[socket.socket]:
    """The sockets that systemd has opened for this process (sd_listen_fds(3)).

    Raises:
        WrongSetting: One of them is not a listening stream socket.
    """
    number = os.environ.pop("LISTEN_FDS", "")
    os.environ.pop("LISTEN_FDNAMES", "")
    if os.environ.pop("LISTEN_PID", "") != str(os.getpid()) or not number:
        return []
    found = []
    for descriptor in range(FIRST, FIRST + int(number)):
        os.set_inheritable(descriptor, False)
        try:
            one = socket.socket(fileno=descriptor)
            listens = one.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN)
        except OSError:
            listens = 0
        if not listens or one.family not in (socket.AF_INET, socket.AF_INET6, socket.AF_UNIX):
            raise WrongSetting(
                f"descriptor {descriptor} of systemd must be a listening stream socket: use "
                "ListenStream= and Accept=no"
            )
        found.append(one)
    return found
