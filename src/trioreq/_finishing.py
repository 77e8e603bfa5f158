"""`finishing`: work that is not cancelled in the middle, within a limit.

What such a block does depends on where it runs: in a task, in a thread, or in a worker process.
Each of these is a `Place`, which the context of a handler has.
"""

from __future__ import annotations

from contextlib import AbstractAsyncContextManager, AbstractContextManager
from contextvars import ContextVar
from types import TracebackType
from typing import Final, Protocol

from ._checks import check_duration

NOT_ASYNC: Final = "use with finishing(...) in a plain function, not async with"


class Place(Protocol):
    """Where a handler runs."""

    def async_block(self, limit: float) -> AbstractAsyncContextManager[None]:
        """A block in an async function."""

    def plain_block(self, limit: float) -> AbstractContextManager[None]:
        """A block in a plain function."""


current_place: ContextVar[Place | None] = ContextVar("trioreq.current_place", default=None)
"""Where the handler, or the task of a session, runs."""


class FinishingBlock:
    """What `finishing` returns."""

    __slots__ = ("_async_block", "_limit", "_plain_block")

    def __init__(self, limit: float) -> None:
        self._limit = limit
        self._async_block: AbstractAsyncContextManager[None] | None = None
        self._plain_block: AbstractContextManager[None] | None = None

    async def __aenter__(self) -> None:
        self._async_block = self._place().async_block(self._limit)
        await self._async_block.__aenter__()

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> bool | None:
        assert self._async_block is not None  # noqa: S101  # it was entered
        return await self._async_block.__aexit__(kind, error, traceback)

    def __enter__(self) -> None:
        self._plain_block = self._place().plain_block(self._limit)
        self._plain_block.__enter__()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> bool | None:
        assert self._plain_block is not None  # noqa: S101  # it was entered
        return self._plain_block.__exit__(kind, error, traceback)

    def _place(self) -> Place:
        """Where this is entered, for the first time."""
        if self._async_block is not None or self._plain_block is not None:
            raise RuntimeError("a finishing block can be entered once: call finishing() again")
        place = current_place.get()
        if place is None:
            raise RuntimeError(
                "finishing is for handlers and for the tasks of sessions, and none runs here; in a "
                "test of a handler use trioreq.testing.open_memory_server"
            )
        return place


def finishing(*, limit: float) -> FinishingBlock:
    """Let a block finish its work, although its request ends.

    For the few things that must not be cancelled in the middle, such as two rows of a table. A
    disconnect, a cancel, a later request of a REQ client and a deadline do not reach the block, nor
    does any other cancellation from outside of it, until `limit` seconds later. Only a drain whose
    grace is over reaches it at once. No reply is sent for a request that has ended.

    In an async function it is ``async with``. To enter it is a checkpoint: work that has not begun
    when its request ends does not begin. To leave it is not; code after it is cancelled at its next
    checkpoint.

    In a plain function it is ``with``. If the request has ended, to enter it raises
    `RequestCancelled`. Inside, `check_cancelled` does not raise for as long, and a worker process
    is not killed.

    A block inside another ends with that one: the limit of the outer one counts.

    Args:
        limit: Seconds that the block may go on after it was to be cancelled.

    Raises:
        RequestCancelled: The request of this plain function has ended.
        RuntimeError: It is entered outside a handler, or a second time, or on Ray, or ``with`` is
            used in an async function.
        TypeError: `limit` is not a number.
        ValueError: `limit` is negative, or infinite.

    Example:
        >>> async def handler(request):
        ...     async with trioreq.finishing(limit=5):
        ...         await withdraw(request.body)
        ...         await deposit(request.body)
        ...     return b"done"
    """
    check_duration("limit", limit)
    return FinishingBlock(limit)
