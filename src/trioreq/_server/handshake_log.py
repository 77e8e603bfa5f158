"""Logs handshakes that failed."""

from __future__ import annotations

from .._log import log
from .._protocol.handshakes import Failure
from .._transport.limited_log import LimitedLog


class HandshakeLog:
    """Logs failed handshakes at WARNING; likely health checks and port scans at DEBUG."""

    def __init__(self) -> None:
        self._log = LimitedLog()
        self._last_known = ""

    def failed(self, address: str, failure: Failure) -> None:
        """A handshake failed.

        Args:
            address: The peer's; empty if the connection ended before it was looked up.
            failure: The reason.
        """
        if failure is Failure.LEFT:
            log.debug("no handshake with %s: %s", self._name(address), failure.value)
        else:
            self._log.warning("handshake with %s failed: %s", self._name(address), failure.value)
            self._last_known = address or self._last_known

    def _name(self, address: str) -> str:
        if address:
            return address
        last = f" (the last known one was {self._last_known})" if self._last_known else ""
        return f"an unknown address{last}"
