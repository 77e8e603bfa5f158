"""The finishing blocks of a server: work that must finish, within a limit.

A block in a task is a shield, which is lifted when the limit is over. The scope itself is not
cancelled: then the block would end like one that has finished its work. A task beside the block,
outside the shield, waits for the cancellation from which the limit counts. It ends with the nursery
that both are in, so a block that an abandoned generator leaves open ends with it.

A block in a thread keeps `check_cancelled` quiet for as long, and the server from ending. Those in
worker processes are in `worker` and `processes`.
"""

from __future__ import annotations

import math
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from contextvars import Context, copy_context
from typing import Protocol

import trio

from .._finishing import NOT_ASYNC, current_place
from .._log import log
from .._nursery import open_own_nursery
from .._request import Request, current_block, current_request, entered
from .pending_request import PendingRequest


class Block(Protocol):
    """A block in progress."""

    def until(self) -> float:
        """Until when it is protected, on trio's clock; `math.inf` while that is not known."""

    def lift(self) -> None:
        """Protect it no longer."""


class Blocks:
    """The finishing blocks of a server: a `Place`, for tasks and threads.

    Attributes:
        clock: Gives trio's time, in any thread.
        over: Whether a drain is over: then no block is protected.
        inline: Whether plain functions run in the event loop, as on a network in memory.
    """

    def __init__(self) -> None:
        self._blocks: set[Block] = set()
        self.clock = trio.lowlevel.current_clock().current_time
        self._token = trio.lowlevel.current_trio_token()
        self._left = trio.Event()
        self._is_awaited = False
        self.over = False
        self.inline = False

    def __len__(self) -> int:
        """How many are in progress (in any thread)."""
        return len(self._blocks)

    def new_context(self) -> Context:
        """A copy of the current context, for handlers: these blocks, none entered, no request."""
        context = copy_context()
        context.run(current_place.set, self)
        context.run(current_block.set, None)
        context.run(current_request.set, None)
        return context

    # Those in tasks.

    @asynccontextmanager
    async def async_block(self, limit: float) -> AsyncIterator[None]:
        """As in `Place`."""
        if trio.lowlevel.current_trio_token() is not self._token:
            raise RuntimeError(NOT_ASYNC)
        await trio.lowlevel.checkpoint()  # what is cancelled by now does not begin
        async with open_own_nursery() as nursery:
            block = _TaskBlock(self, limit, nursery.cancel_scope)
            with block.scope, self.counted(block), entered(block):
                nursery.start_soon(block.watch, name="finishing")
                try:
                    yield
                finally:
                    block.leave()

    # Those in threads.

    @contextmanager
    def plain_block(self, limit: float) -> Iterator[None]:
        """As in `Place`."""
        request = current_request.get()
        if not isinstance(request, PendingRequest) or (_in_task() and not self.inline):
            raise RuntimeError(
                "with finishing(...) is for plain functions that process a request: in an async "
                "function use async with"
            )
        request.check_cancelled()  # what is cancelled by now does not begin
        block = _ThreadBlock(request, limit, self)
        with self.counted(block), entered(block):
            try:
                yield
            finally:
                block.is_quiet()  # which logs that it took too long
                block.ended = True

    # All of them.

    @contextmanager
    def counted(self, block: Block) -> Iterator[None]:
        """Count a block while it is in progress (in any thread)."""
        self._blocks.add(block)
        try:
            yield
        finally:
            self.discard(block)

    def discard(self, block: Block) -> None:
        """Count a block no longer (in any thread)."""
        # In this order: `_wait` says first that it waits, and then looks.
        self._blocks.discard(block)
        if self._is_awaited:
            with suppress(trio.RunFinishedError):
                self._token.run_sync_soon(self._tell)

    def _tell(self) -> None:
        self._left.set()
        self._left = trio.Event()

    async def wait_none(self) -> None:
        """Wait until no block is protected."""
        await self._wait()

    async def wait_limits(self) -> None:
        """Wait until no block in a thread is protected; all requests have ended.

        All tasks of the server have ended too. The blocks that tasks are in are the program's.
        """
        with trio.CancelScope(shield=True):
            await self._wait(_ThreadBlock)

    async def _wait(self, kind: type = object) -> None:
        self._is_awaited = True
        while True:
            until = self._until(kind)
            with trio.CancelScope(deadline=until) as scope:
                await self._left.wait()
            # One may have begun meanwhile, such as that of a worker whose request was the last.
            if scope.cancelled_caught and self._until(kind) <= until:
                return

    def _until(self, kind: type) -> float:
        """Until when any of them is protected."""
        blocks = [block for block in tuple(self._blocks) if isinstance(block, kind)]
        return max((block.until() for block in blocks), default=-math.inf)

    def lift_all(self) -> None:
        """A drain is over: protect no block."""
        self.over = True
        if self._blocks:
            log.warning("%d finishing blocks had not ended when the drain was over", len(self))
        for block in tuple(self._blocks):
            block.lift()


class _TaskBlock:
    """A block in a task.

    Args:
        blocks: Those that it is one of.
        limit: Seconds from the first cancellation.
        around: The scope of the nursery around it.

    Attributes:
        scope: The shield.
        inner: Blocks that were entered in this one.
    """

    def __init__(self, blocks: Blocks, limit: float, around: trio.CancelScope) -> None:
        self._blocks = blocks
        self._limit = limit
        self._around = around
        self._ended = trio.Event()
        self.scope = trio.CancelScope(shield=True)
        self.inner: set[_TaskBlock] = set()
        outer = current_block.get()
        self._outer = outer if isinstance(outer, _TaskBlock) else None
        if self._outer is not None:
            self._outer.inner.add(self)

    def is_quiet(self) -> bool:
        """As in `CurrentBlock`, in a thread that works for this block."""
        return self.scope.shield and not self._ended.is_set()

    def until(self) -> float:
        """As in `Block`: `watch` knows it."""
        return math.inf

    def lift(self) -> None:
        """As in `Block`."""
        self.scope.shield = self._around.shield = False
        for inner in self.inner:
            inner.lift()

    async def watch(self) -> None:
        """Wait for a cancellation from outside, and lift the shield when the limit is over."""
        try:
            await self._ended.wait()
        except trio.Cancelled:  # it is the block's, which gets it when the shield is lifted
            if self.scope.shield:
                await self._wait_limit()
        finally:
            self.leave()

    async def _wait_limit(self) -> None:
        self._around.shield = True  # only what ends the nursery cancels this task from now on
        with suppress(trio.Cancelled), trio.move_on_after(self._limit) as rest:
            await self._ended.wait()
        if rest.cancel_called and not self._ended.is_set():
            log_not_ended(current_request.get(), self._limit)
            self.lift()

    def leave(self) -> None:
        """The block has ended, one way or another, or is protected no longer."""
        self._ended.set()
        self._blocks.discard(self)
        if self._outer is not None:
            self._outer.inner.discard(self)


class _ThreadBlock:
    """A block in a thread.

    Attributes:
        ended: Whether it has ended.
    """

    def __init__(self, request: PendingRequest, limit: float, blocks: Blocks) -> None:
        self._request = request
        self._limit = limit
        self._blocks = blocks
        self._outer = current_block.get()
        self._logged = False
        self.ended = False

    def until(self) -> float:
        """As in `Block`."""
        if self._blocks.over:
            return -math.inf
        return self._request.ended_at + self._limit if self._request.ended else math.inf

    def is_quiet(self) -> bool:
        """As in `CurrentBlock`."""
        if self._outer is not None and self._outer.is_quiet():
            return True
        if self.ended or self._blocks.over:
            return False
        if self._blocks.clock() < self.until():
            return True
        if not self._logged:
            self._logged = True
            log_not_ended(self._request, self._limit)
        return False

    def lift(self) -> None:
        """`is_quiet` looks whether the drain is over."""


def log_not_ended(request: Request | None, limit: float) -> None:
    """Log that the limit of a block was reached."""
    log.warning(
        "%s: a finishing block has not ended within its limit of %g s",
        "a session" if request is None else request.client,
        limit,
    )


def _in_task() -> bool:
    try:
        trio.lowlevel.current_task()
    except RuntimeError:
        return False
    return True
