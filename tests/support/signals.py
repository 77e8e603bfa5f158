"""The signals of `trioreq-server`, in a process that runs tests."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager

from trioreq._runner.signals import ENDING, OTHERS


@contextmanager
def signals_without_effect() -> Iterator[list[int]]:
    """Handle signals as before, at the end; returns those that no server has handled."""
    missed: list[int] = []
    before = {
        number: signal.signal(number, lambda number, _: missed.append(number))
        for number in ENDING + OTHERS
    }
    try:
        yield missed
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
