"""Signals as calls in trio's event loop.

The third SIGTERM or SIGINT ends the process at once, also if a handler blocks the event loop.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

import trio

ENDING = (signal.SIGTERM, signal.SIGINT)
OTHERS = (signal.SIGHUP, signal.SIGUSR1)
PATIENCE = 2  # of those that end it, how many the event loop may see


@contextmanager
def received(call: Callable[[signal.Signals], object]) -> Iterator[None]:
    """Call a function with each signal."""
    token = trio.lowlevel.current_trio_token()
    ending = 0

    def receive(number: int, _: FrameType | None) -> None:
        nonlocal ending
        if number in ENDING:
            ending += 1
            if ending > PATIENCE:
                os._exit(128 + number)
        token.run_sync_soon(call, signal.Signals(number))

    before = {number: signal.signal(number, receive) for number in ENDING + OTHERS}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
