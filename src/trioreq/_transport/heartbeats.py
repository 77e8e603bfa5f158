"""The timing of ZMTP heartbeats."""

from __future__ import annotations

PATIENCE = 5.0  # seconds that a PONG may take, unless that is more than half of the heartbeat


def heartbeat_times(heartbeat: float) -> tuple[float, float]:
    """Split a heartbeat so that a silent peer is detected within it.

    libzmq's I/O thread searches its timers in the order of time for each PONG. So with many
    connections, short timeouts and rare PINGs are cheap; but a slow network needs longer timeouts.

    Args:
        heartbeat: Seconds in which a silent peer must be detected.

    Returns:
        Seconds between two PINGs, and seconds in which each must be answered.
    """
    timeout = max(heartbeat / 4, min(heartbeat / 2, PATIENCE))
    return heartbeat - timeout, timeout
