"""How ZMTP heartbeats are timed."""

from __future__ import annotations

PATIENCE = 5.0  # seconds that a PONG may take, unless that is more than half of the heartbeat


def heartbeat_times(heartbeat: float) -> tuple[float, float]:
    """Split a heartbeat so that a silent peer is noticed within it.

    libzmq's I/O thread searches its timers in the order of time whenever a PONG comes. So with many
    connections, short waits and rare PINGs are cheap; but a slow network needs time.

    Args:
        heartbeat: Seconds in which a silent peer is to be noticed.

    Returns:
        Seconds between two PINGs, and seconds in which each must be answered.
    """
    timeout = max(heartbeat / 4, min(heartbeat / 2, PATIENCE))
    return heartbeat - timeout, timeout
