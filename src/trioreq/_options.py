"""What an option may be; a mistake is told before anything is opened."""

from __future__ import annotations

MOST = 2**31 - 1  # libzmq's options are ints, its times in milliseconds
PATIENCE = 5.0  # seconds that a PONG may take, unless that is more than a half of the heartbeat


def check_count(name: str, value: int, least: int) -> None:
    """A whole number that libzmq can have, and not less than `least`."""
    if not isinstance(value, int) or isinstance(value, bool):
        raise TypeError(f"{name} is a whole number, not {value!r}")
    if not least <= value <= MOST:
        raise ValueError(f"{name} is a number from {least} to {MOST}, not {value}")


def check_limit(name: str, value: int | None) -> None:
    """A whole number above 0, or None."""
    if value is not None:
        check_count(name, value, 1)


def check_seconds(name: str, value: float | None) -> None:
    """A time above 0 that libzmq can have, or None."""
    if value is None:
        return
    if not isinstance(value, int | float) or isinstance(value, bool):
        raise TypeError(f"{name} is a number of seconds, or None, not {value!r}")
    if not 0 < value < MOST / 1000:
        raise ValueError(f"{name} is a number of seconds above 0, or None, not {value}")


def heartbeat_times(heartbeat: float) -> tuple[float, float]:
    """How a heartbeat is made, so that silence is noticed within it.

    libzmq's I/O thread looks for a connection's timer among all of them whenever a PONG comes, in
    the order of time. So with many connections, short waits and rare PINGs are cheap; but a line
    that is slow needs time.

    Args:
        heartbeat: Seconds in which it is to be noticed.

    Returns:
        Seconds between two PINGs, and seconds in which each is to be answered.
    """
    timeout = max(heartbeat / 4, min(heartbeat / 2, PATIENCE))
    return heartbeat - timeout, timeout
