"""Async handlers in tasks: Leader/Followers (Schmidt et al., POSA2).

The leader is the task that reads. It runs the handlers of the requests that it has read, one after
the other, so a handler that does not wait needs no task. An echo server answers 1.2 times (1
client) to 2.6 times (8 clients, 32 requests in flight each) as many requests. When a handler waits,
the task belongs to that request from then on, and ends with it; the remaining requests of the batch
get their own tasks at once, in their clients' nurseries, and a new leader reads. The coroutine of a
handler cannot be moved to another task, because trio's primitives remember the task that called
them.

Requests are isolated. Each handler runs in its own context. If it leaves a scope or a nursery open
in the leader's task, that is found when it has returned, and the task is not used again.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Sequence
from contextvars import Context
from types import CoroutineType, FrameType
from typing import Any, Final, Self, TypeAlias

import trio

from .._protocol.endings import SHUT_DOWN
from .._protocol.fair_queue import FairQueue
from .._request import current_request
from .._statistics import WorkerStatistics
from .._transport.outbox import Outbox
from .._transport.router import BATCH
from .client import Client
from .handlers import Handler, ends_program, is_cancelled
from .leftovers import Baseline
from .pending_request import PendingRequest
from .reader import Reader
from .requests import Requests

FIRST: Final = 16 * 1024  # bytes of the first batch after a wait: some eight messages
IN_A_ROW: Final = BATCH  # bytes that are read between two checkpoints, if no handler waits

Coro: TypeAlias = "CoroutineType[Any, Any, object]"
Waiting: TypeAlias = "tuple[Context, Coro, object]"
"""The context and the coroutine of a handler that waits, and the value that it yielded to trio."""


class HandlerTasks:
    """Runs async handlers.

    Args:
        handler: An async function.
        reader: Reads requests.
        requests: Ends them.
        queue: The slots that handlers take.
        outbox: Where replies go.
        nursery: The server's.
        crashed: Called when one of the server's tasks fails, before the exception is raised, so
            that requests in flight are answered before their handlers are cancelled.
    """

    abandoned = finishing = killed = died = retired = 0

    def __init__(
        self,
        handler: Handler,
        reader: Reader,
        requests: Requests,
        queue: FairQueue[Client, PendingRequest],
        outbox: Outbox,
        nursery: trio.Nursery,
        crashed: Callable[[], None],
    ) -> None:
        self._handler = handler
        self._reader = reader
        self._requests = requests
        self._queue = queue
        self._outbox = outbox
        self._nursery = nursery
        self._crashed = crashed
        self._context = requests.blocks.new_context()

    def processor_times(self) -> dict[PendingRequest, float]:
        """As `Pool.processor_times`: no request has a thread."""
        return {}

    def statistics(self) -> WorkerStatistics:
        """As `OpenWorkers.statistics`: async handlers have no workers."""
        return WorkerStatistics(alive=0, spare=0, busy=0)

    def start(self, requests: Sequence[PendingRequest]) -> None:
        """Run requests that have a slot, each in a task of its own."""
        granted = list(requests)
        for request in granted:
            if not self._requests.has_ended(request):
                run = self._run_in_scope if request.needs_scope else self._run
                request.owner.start(request, run, self._nursery, self._context)
            elif (following := self._queue.release()) is not None:
                granted.append(following)

    @trio.lowlevel.enable_ki_protection
    async def lead(self) -> None:
        """Read, and run handlers, until cancelled, or until one waits and another task leads."""
        try:
            with trio.CancelScope() as scope:
                await self._read_and_run(scope)
        except BaseException:
            self._crashed()
            raise

    async def _read_and_run(self, scope: trio.CancelScope) -> None:
        """Read, and run handlers in this task, until one waits; return when that has ended."""
        reader = self._reader
        room, others_ran = FIRST, reader.weight
        while True:
            batch = reader.read(room)
            if batch is None:
                await reader.wait()
                room, others_ran = FIRST, reader.weight
                continue
            room = min(2 * room, BATCH)
            if await self._run_here(batch, scope):
                return
            if reader.weight - others_ran >= IN_A_ROW:  # there may always be more to read
                await trio.lowlevel.checkpoint()
                others_ran = reader.weight

    async def _run_here(self, batch: list[PendingRequest], scope: trio.CancelScope) -> bool:
        """Run the handlers of a batch in this task.

        Args:
            batch: Requests that have a slot. It grows when a slot goes to a queued request.
            scope: The cancel scope that this task is in.

        Returns:
            Whether the task can lead no longer: it was a request's, or a handler changed its state.
        """
        if not batch:
            return False
        requests, release = self._requests, self._queue.release
        baseline = Baseline()
        requests.in_batch = True
        self._outbox.cork()
        for index, request in enumerate(batch):
            if requests.begin(request):
                request.scope = scope
                waiting = self._step_once(request, baseline)
                if waiting is not None or request.was_cancelled or not baseline.is_clean():
                    self._follow(batch[index + 1 :])
                    if waiting is not None:
                        await self._go_on(request, waiting, baseline)
                    baseline.restore(request.client)
                    self._release_slot()
                    return True
            following = release()
            if following is not None:
                batch.append(following)
        requests.in_batch = False
        self._outbox.flush()
        return False

    def _step_once(self, request: PendingRequest, baseline: Baseline) -> Waiting | None:
        """Call a handler, and run it until it waits; returns None if it has ended before."""
        scope, context = request.scope, self._context.copy()
        if request.timer is not None and scope is not None:
            scope.deadline = request.deadline
        try:
            steps, waits_for = context.run(_begin, self._handler, request)
        except StopIteration as returned:
            self._requests.finish(request, returned.value)
        except BaseException as error:  # noqa: BLE001  # what ends the program is raised again
            self._fail(request, error, baseline)
        else:
            return context, steps, waits_for
        if request.timer is not None and scope is not None:
            scope.deadline = math.inf  # the next request runs in the same scope
        return None

    def _follow(self, rest: Sequence[PendingRequest]) -> None:
        """Give the rest of the batch tasks of their own, and let another task lead."""
        self._requests.in_batch = False
        self.start(rest)
        self._outbox.flush()
        self._nursery.start_soon(self.lead, name="reader")

    async def _go_on(self, request: PendingRequest, waiting: Waiting, baseline: Baseline) -> None:
        """Run a handler that waits to its end, in this task."""
        task = trio.lowlevel.current_task()
        task.name = request.owner.task_name
        task.context, steps, waits_for = waiting
        try:
            result = await Begun(steps, waits_for)
        except BaseException as error:  # noqa: BLE001  # what ends the program is raised again
            self._fail(request, error, baseline)
        else:
            self._requests.finish(request, result)

    async def _run(self, request: PendingRequest) -> None:
        """Run a request in a task of its own, in its client's nursery.

        Nothing that its handler raises goes further, unless it ends the program.
        """
        try:
            if self._requests.begin(request):
                current_request.set(request)
                baseline = Baseline()
                try:
                    result = self._handler(request)
                    result = await (result if type(result) is CoroutineType else _awaited(result))
                except BaseException as error:  # noqa: BLE001  # what ends the program is raised again
                    self._fail(request, error, baseline)
                else:
                    self._requests.finish(request, result)
                    baseline.restore(request.client)
            self._release_slot()
        except BaseException:
            self._crashed()
            raise

    async def _run_in_scope(self, request: PendingRequest) -> None:
        """The same for a request with a deadline, or that its client can cancel alone."""
        with trio.CancelScope(deadline=request.deadline) as request.scope:
            await self._run(request)

    @trio.lowlevel.enable_ki_protection
    def _fail(self, request: PendingRequest, error: BaseException, baseline: Baseline) -> None:
        """The handler has raised, in this task."""
        if isinstance(error, GeneratorExit) and not baseline.is_running():
            raise error  # trio has crashed, and Python closes this coroutine
        baseline.restore(request.client)
        if ends_program(error):
            raise error  # the caller calls `crashed`
        if (
            is_cancelled(error)
            and trio.current_effective_deadline() == -math.inf  # cancelled from outside the server
            and not self._requests.has_ended(request)
        ):
            self._requests.cancel(request, SHUT_DOWN)
        self._requests.fail(request, error)

    @trio.lowlevel.enable_ki_protection
    def _release_slot(self) -> None:
        """A handler has returned: another request may run."""
        following = self._queue.release()
        if following is not None:
            self._requests.now = trio.current_time()
            self.start((following,))


@trio.lowlevel.disable_ki_protection
def _begin(handler: Handler, request: PendingRequest) -> tuple[Coro, object]:
    """Call a handler, and run it until it waits; raises StopIteration if it returns before."""
    current_request.set(request)
    try:
        steps = handler(request)
    except StopIteration as error:  # from a decorator; Python does this for a coroutine's
        raise RuntimeError("the handler raised StopIteration") from error
    if type(steps) is not CoroutineType:
        steps = _awaited(steps)
    return steps, steps.send(None)


class Begun:
    """A coroutine that has begun, or a step of an async generator, to be awaited to its end.

    `await` on the coroutine itself would send None, instead of the answer that it waits for.

    Args:
        steps: The coroutine.
        waits_for: The value that it has yielded last.

    Attributes:
        cr_frame, cr_await: Those of the coroutine. trio's dumps of tasks look for them.
    """

    __slots__ = ("_steps", "_waits_for")

    def __init__(self, steps: Coro, waits_for: object) -> None:
        self._steps = steps
        self._waits_for = waits_for

    def __await__(self) -> Any:  # noqa: ANN401  # mypy accepts only generators here
        return self

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> object:
        return self._waits_for

    @trio.lowlevel.disable_ki_protection
    def send(self, answer: object) -> object:
        return self._steps.send(answer)

    @trio.lowlevel.disable_ki_protection
    def throw(self, error: BaseException) -> object:
        return self._steps.throw(error)

    @property
    def cr_frame(self) -> FrameType | None:
        return self._steps.cr_frame

    @property
    def cr_await(self) -> object:
        return self._steps.cr_await


async def _awaited(result: Any) -> object:  # noqa: ANN401  # whatever a handler returns
    """The result of a handler that did not return a coroutine."""
    return await result if inspect.isawaitable(result) else result
