"""What is common to workers that are killed when a request ends early: processes, and Ray's tasks.

To the server the plain function is an async handler, `run`. What cancels async handlers cancels it.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager, AbstractContextManager
from functools import update_wrapper
from typing import Final

import trio

from .._errors import Code, ReplyError
from .._log import log
from .._protocol.envelope import Frames
from .._request import Request
from .._statistics import WorkerStatistics
from .handlers import Handler, name_of

NOT_ON_RAY: Final = "finishing cannot protect a function on Ray: use ProcessWorkers, or threads"


class RayPlace:
    """Finishing blocks in tasks of Ray: a `Place`. They are refused: Ray kills without looking."""

    def async_block(self, limit: float) -> AbstractAsyncContextManager[None]:
        """Refuse."""
        raise RuntimeError(NOT_ON_RAY)

    def plain_block(self, limit: float) -> AbstractContextManager[None]:
        """Refuse."""
        raise RuntimeError(NOT_ON_RAY)


class OpenWorkers(ABC):
    """Where a plain function runs.

    Args:
        handler: The function.

    Attributes:
        run: The async handler.
        killed: Workers that were killed, because their requests had ended early.
        died: Workers that ended by themselves.
        retired: Workers that were replaced between two requests.
    """

    def __init__(self, handler: Handler) -> None:
        self.killed: int = 0
        self.died: int = 0
        self.retired: int = 0

        @trio.lowlevel.enable_ki_protection
        async def run(request: Request) -> Frames:
            return await self._run(request)

        update_wrapper(run, handler)
        run.__qualname__ = name_of(handler)
        self.run: Callable[[Request], Awaitable[Frames]] = run

    @abstractmethod
    async def _run(self, request: Request) -> Frames:
        """Let a worker handle a request, and kill it when this is cancelled."""

    @abstractmethod
    def statistics(self) -> WorkerStatistics:
        """The workers now (in any thread)."""

    @property
    def finishing(self) -> int:
        """Finishing blocks in workers, of requests that have not ended (in any thread)."""
        return 0

    def _count_kill(self) -> None:
        self.killed += 1
        log.debug("a worker is killed, since its request has ended")

    def _count_death(self, cause: str) -> ReplyError:
        """A worker has ended by itself; returns the error for the client."""
        self.died += 1
        log.error("worker died: %s", cause)
        return ReplyError(Code.HANDLER_FAILED, f"worker died: {cause}")
