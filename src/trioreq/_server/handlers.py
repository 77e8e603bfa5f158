"""What runs handlers, as the server sees it, and what handlers are."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import partial
from typing import Any, Protocol

import trio

from .._request import Request

Handler = Callable[[Request], Any]


class Workers(Protocol):
    """What reads requests, runs the handler for each that has a turn, and says how that ended."""

    @property
    def abandoned(self) -> int:
        """Threads that still run for a request that has ended."""

    def start(self) -> None:
        """See that the requests that have a turn are taken: somebody else has read them."""

    async def run(self, task_status: trio.TaskStatus[None]) -> None:
        """Read and run, until cancelled."""


def is_async(handler: Handler) -> bool:
    """Whether calling the handler gives a coroutine."""
    while isinstance(handler, partial):
        handler = handler.func
    return inspect.iscoroutinefunction(handler) or inspect.iscoroutinefunction(
        getattr(handler, "__call__", None)  # noqa: B004  # an object with an async __call__
    )


def ends_program(error: BaseException) -> bool:
    """Whether it is no failure of the handler, but of all that is around it."""
    if isinstance(error, BaseExceptionGroup):
        return any(ends_program(part) for part in error.exceptions)
    return isinstance(error, trio.Cancelled | KeyboardInterrupt | SystemExit | GeneratorExit)
