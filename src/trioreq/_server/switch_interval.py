"""A shorter switch interval of the interpreter, while functions run for long.

A thread that waits for the GIL lets the one that has it run for the switch interval, 5 ms unless
the program says otherwise. Which of the waiting threads comes next is up to the system. So beside
thirty functions that compute, the event loop waits for thirty intervals on average, and sometimes
for a multiple, whenever it has released the GIL, as it does each time it sleeps. Python has no
priorities for threads. A shorter interval shortens that wait in proportion. It costs a running
function nothing as long as no other thread wants the GIL.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from threading import Lock
from typing import Final

INTERVAL: Final = 0.0005  # seconds; `python -m benchmarks computing` measures others


class _Shortened:
    """Counts the uses of the shorter interval in this process, and keeps the previous one."""

    def __init__(self) -> None:
        self._lock = Lock()  # there may be several event loops, each in a thread
        self._holders = 0
        self._before = self._set = 0.0

    def hold(self) -> None:
        with self._lock:
            self._holders += 1
            if self._holders == 1:
                self._before = sys.getswitchinterval()
                sys.setswitchinterval(min(self._before, INTERVAL))
                self._set = sys.getswitchinterval()  # it is rounded

    def release(self) -> None:
        with self._lock:
            self._holders -= 1
            # An interval that the program has set itself meanwhile stays.
            if not self._holders and sys.getswitchinterval() == self._set:
                sys.setswitchinterval(self._before)


_shortened = _Shortened()


@contextmanager
def short_switch_interval() -> Iterator[None]:
    """Shorten the interval within the block, unless it is shorter already."""
    _shortened.hold()
    try:
        yield
    finally:
        _shortened.release()
