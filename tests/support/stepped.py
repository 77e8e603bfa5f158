"""A run of trio that continues only on request, from synchronous code.

hypothesis drives its state machines without an event loop. So trio runs in a greenlet of its own,
and its main task gives the word back after each step. In between nothing of trio moves; its
synchronous functions may be called all the same, as by a task.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

import greenlet
import trio
from trio.testing import MockClock

Step = Callable[[], Awaitable[object]]


class Stepped:
    """The run.

    Args:
        main: The main task: given the function that does steps until the run is to end.
    """

    def __init__(self, main: Callable[[Callable[[], Awaitable[None]]], Awaitable[None]]) -> None:
        self._outside = greenlet.getcurrent()
        self._inside = greenlet.greenlet(self._run)
        self._inside.switch(main)

    def do(self, step: Step) -> Any:
        """Do a step, and return what it returns. A crash of the run comes out here."""
        assert not self._inside.dead, "the run is over"
        return self._inside.switch(step)

    def end(self) -> None:
        """Let the run end, if it has not."""
        if not self._inside.dead:
            self._inside.switch(None)
        assert self._inside.dead

    def _run(self, main: Callable[[Callable[[], Awaitable[None]]], Awaitable[None]]) -> None:
        trio.run(main, self._do_steps, clock=MockClock(autojump_threshold=0))

    async def _do_steps(self) -> None:
        step: Step | None = self._outside.switch()
        while step is not None:
            result = await step()
            step = self._outside.switch(result)
