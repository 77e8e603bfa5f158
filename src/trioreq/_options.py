"""The options of `serve`, and what the value of an option must be.

A mistake is reported before anything is opened.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ._transport.curve import CurveServer

if TYPE_CHECKING:
    from ._protocol.zap import Admit

MOST = 2**31 - 1  # libzmq's options are ints, its times in milliseconds


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """The options of `serve`, which documents them. They are checked when they are made.

    Raises:
        TypeError: An option is of the wrong type.
        ValueError: An option is out of its range, or cannot be combined with another.
    """

    workers: int = 40
    max_in_flight: int = 1000
    max_queued_per_client: int = 1000
    timeout: float | None = None
    heartbeat: float | None = 15.0
    max_message_size: int = 16 * 1024 * 1024
    send_queue: int = 1000
    stall_timeout: float | None = 10.0
    watchdog: float | None = 1.0
    curve: CurveServer | None = None
    plain_insecure: bool = False
    admit: Admit | None = None
    max_connections: int | None = None
    max_connections_per_address: int | None = None

    def __post_init__(self) -> None:
        check_count("workers", self.workers, 1)
        check_count("max_in_flight", self.max_in_flight, 1)
        check_count("max_queued_per_client", self.max_queued_per_client, 0)
        check_count("max_message_size", self.max_message_size, 1)
        check_count("send_queue", self.send_queue, 1)
        check_seconds("timeout", self.timeout)
        check_seconds("heartbeat", self.heartbeat)
        check_seconds("stall_timeout", self.stall_timeout)
        check_seconds("watchdog", self.watchdog)
        check_limit("max_connections", self.max_connections)
        check_limit("max_connections_per_address", self.max_connections_per_address)
        self._check_access()

    def _check_access(self) -> None:
        curve, admit = self.curve, self.admit
        if curve is not None and not isinstance(curve, CurveServer):
            raise TypeError(f"curve must be a CurveServer, got {type(curve).__name__}")
        if admit is not None and not isinstance(admit, Callable):  # type: ignore[arg-type]
            raise TypeError(f"admit must be an async function, got {type(admit).__name__}")
        if curve is not None and self.plain_insecure:
            raise ValueError("curve and plain_insecure cannot be combined: choose one mechanism")
        if self.plain_insecure and admit is None:
            raise ValueError("plain_insecure needs admit, which checks the password")
        if curve is not None and curve.allow is None and admit is None:
            raise ValueError("curve without an allow-list needs admit, which decides about keys")
        if curve is not None and curve.allow is not None and admit is not None:
            raise ValueError("curve's allow-list and admit cannot be combined: choose one")


def check_count(name: str, value: int, least: int) -> None:
    """A whole number that libzmq can have, and not less than `least`."""
    if not isinstance(value, int) or isinstance(value, bool):
        raise TypeError(f"{name} must be an int, got {value!r}")
    if not least <= value <= MOST:
        raise ValueError(f"{name} must be from {least} to {MOST}, got {value}")


def check_limit(name: str, value: int | None) -> None:
    """A whole number above 0, or None."""
    if value is not None:
        check_count(name, value, 1)


def check_seconds(name: str, value: float | None) -> None:
    """A time above 0 that libzmq can have, or None."""
    if value is None:
        return
    if not isinstance(value, int | float) or isinstance(value, bool):
        raise TypeError(f"{name} must be a number of seconds or None, got {value!r}")
    if not 0 < value < MOST / 1000:
        raise ValueError(f"{name} must be a number of seconds above 0 or None, got {value}")
