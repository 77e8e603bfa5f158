"""A shorter switch interval of the interpreter, while functions run for long.

A thread that waits for the GIL lets the one that has it run for the switch interval, 5 ms unless
the program says otherwise. Which of the waiting threads comes next is up to the system. So beside
thirty functions that compute, the event loop waits for thirty intervals on average, and sometimes
for a multiple, whenever it has let go of the GIL, as it does each time it sleeps. Nothing gives the
event loop precedence. A shorter interval shortens that wait in proportion. It costs a running
function nothing as long as no other thread wants the GIL.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from threading import Lock
from typing import Final

INTERVAL: Final = 0.0005  # seconds; `python -m benchmarks computing` has what others would do


class _Shortened:
    """How many ask for the shorter interval, in the whole process, and what it was before."""

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
            # What the program itself has set meanwhile stays.
            if not self._holders and sys.getswitchinterval() == self._set:
                sys.setswitchinterval(self._before)


_shortened = _Shortened()


@contextmanager
def short_switch_interval() -> Iterator[None]:
    """Let threads that want the GIL have it sooner, unless they do already."""
    _shortened.hold()
    try:
        yield
    finally:
        _shortened.release()
