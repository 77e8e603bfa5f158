"""Signals as calls in trio's event loop.

SIGHUP and SIGUSR1 do not end the program: its entry point ignores them while it imports the
package. SIGTERM and SIGINT end it at once before `hold` or `received`: there is nothing to clean up
yet. While it cleans up, a further one changes nothing, and the third ends the process at once. So
does the third if a handler blocks the event loop. When all is cleaned up, the first ends what is
left of the process, such as a thread.
"""

from __future__ import annotations

import atexit
import os
import signal
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from types import FrameType

import trio

ENDING = (signal.SIGTERM, signal.SIGINT)
OTHERS = (signal.SIGHUP, signal.SIGUSR1)
PATIENCE = 2  # of those that end it, how many the event loop may see


class Signals:
    """Handles the signals of the program from now on."""

    def __init__(self) -> None:
        self._ending = 0
        self._early: list[signal.Signals] = []
        self._pass_on: Callable[[signal.Signals], object] = self._early.append
        self._handle(OTHERS)
        atexit.register(_ignore_others)

    def hold(self) -> None:
        """Leave SIGTERM and SIGINT to `received`, from now on."""
        self._handle(ENDING)

    @contextmanager
    def received(self, call: Callable[[signal.Signals], object]) -> Iterator[None]:
        """Call a function with each signal, also with those that have come before."""
        token = trio.lowlevel.current_trio_token()
        receiving = True

        def deliver(number: signal.Signals) -> None:
            if receiving:
                call(number)

        def pass_on(number: signal.Signals) -> None:
            # While one waits, the next is the same: a flood of them must not fill trio's queue.
            token.run_sync_soon(deliver, number, idempotent=number in OTHERS)

        self._pass_on = pass_on
        self.hold()
        for number in self._early:
            self._pass_on(number)
        try:
            yield
        finally:
            receiving = False
            self._pass_on = lambda _: None

    def restore(self) -> None:
        """Let SIGTERM and SIGINT have their default effect again: all is cleaned up."""
        for number in ENDING:
            if signal.getsignal(number) == self._receive:
                signal.signal(number, signal.SIG_DFL)

    def _handle(self, numbers: Sequence[signal.Signals]) -> None:
        for number in numbers:
            signal.signal(number, self._receive)

    def _receive(self, number: int, _: FrameType | None) -> None:
        if number in ENDING:
            self._ending += 1
            if self._ending > PATIENCE:
                os._exit(128 + number)
        self._pass_on(signal.Signals(number))


def _ignore_others() -> None:
    """Python restores the default effect of each signal that has a handler, at its own exit."""
    for number in OTHERS:
        signal.signal(number, signal.SIG_IGN)
