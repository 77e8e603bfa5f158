"""How a process has ended."""

from __future__ import annotations

import signal


def describe(code: int) -> str:
    """How a process has ended, by its exit code: that, or the name of a signal."""
    if code >= 0:
        return f"exit code {code}"
    try:
        return signal.Signals(-code).name
    except ValueError:  # a real-time signal
        return f"signal {-code}"
