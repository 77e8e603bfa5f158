"""Plain functions as tasks of Ray: an async handler for each.

What a task returns arrives in one of Ray's threads, and from there through trio's token. Ray is
started and stopped in a thread that lives as long as the server: the processes of a local Ray are
killed by the kernel when the thread that has started them ends (PR_SET_PDEATHSIG).
"""

from __future__ import annotations

import math
import os
import pickle
import threading
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from typing import Any, Final

import trio
from outcome import Error

from .._errors import WorkersFailed
from .._nursery import open_own_nursery
from .._protocol.envelope import Frames
from .._request import Peer, Request, without_session
from .._statistics import WorkerStatistics
from .._workers import RayWorkers, cannot_be_pickled
from .from_thread import adapt_thread
from .handlers import Handler, name_of
from .open_workers import OpenWorkers, RayPlace
from .worker import PeerFields, WorkerRequest, answer_to, peer_fields, read_message
from .worker_log import Levels, collect_log, log_of_worker

try:
    import ray
except ModuleNotFoundError:  # pragma: no cover  # what is needed for Ray alone
    raise ModuleNotFoundError("RayWorkers needs Ray: pip install 'trioreq[ray]'") from None

LARGE: Final = 64 * 1024  # bytes of a request, above which Ray copies it in a thread

Call = tuple[PeerFields, Frames, float]
"""A request: its client, its body, and its deadline on the clock that machines share, `time.time`.

It goes to Ray as one bytes object, and so does the result: Ray takes long for anything else.
"""
Result = tuple[bytes, list[bytes | int]]
"""What a task returns: the answer, pickled, and what it has logged."""


def run_task(handler: Handler, levels: Levels, call: Call) -> Result:
    """Handle a request (in Ray's worker).

    Args:
        handler: The function.
        levels: Those of the server's loggers.
        call: The request.
    """
    adapt_thread()
    peer, frames, deadline = call
    if deadline != math.inf:
        deadline += time.monotonic() - time.time()
    client = without_session(Peer(*peer))
    request = WorkerRequest(client, frames, deadline, number=0, cell=None)
    dumps: Callable[[object], bytes] = ray.cloudpickle.dumps  # also errors that `__main__` defines
    with collect_log(levels) as logged:
        answer = answer_to(request, handler, RayPlace(), dumps)
    return (dumps if isinstance(answer, Error) else pickle.dumps)(answer), logged


class RayTasks(OpenWorkers):
    """The tasks of a server, while Ray runs; `open_ray_tasks` makes them.

    Args:
        handler: A plain function.
        workers: How they are to be.
    """

    def __init__(self, handler: Handler, workers: RayWorkers) -> None:
        super().__init__(handler)
        levels = Levels()

        def task(call: bytes) -> bytes:
            return pickle.dumps(run_task(handler, levels, pickle.loads(call)))  # noqa: S301

        task.__name__ = task.__qualname__ = name_of(handler)
        try:
            ray.cloudpickle.dumps(task)
        except Exception as error:  # what the user's own code raises
            raise cannot_be_pickled("handler", handler, error) from error
        resources = {"CPU": 1.0, "GPU": 0.0, **(workers.resources or {})}
        self._remote = ray.remote(
            num_cpus=resources.pop("CPU"),
            num_gpus=resources.pop("GPU"),
            resources=resources,
            max_retries=0,
            retry_exceptions=False,
        )(task).remote
        self._workers = workers
        self._token = trio.lowlevel.current_trio_token()
        self._busy = 0

    def statistics(self) -> WorkerStatistics:
        """As of `Processes`; a worker is a slot for a task."""
        n, busy = self._workers.n, self._busy
        return WorkerStatistics(alive=n, spare=max(n - busy, 0), busy=busy)

    async def _run(self, request: Request) -> Frames:
        deadline = request.deadline
        if deadline != math.inf:
            deadline += time.time() - trio.current_time()
        call: Call = peer_fields(request.client), request.frames, deadline
        task: Any = None
        self._busy += 1
        try:
            if sum(map(len, request.frames)) > LARGE:
                task = await trio.to_thread.run_sync(self._submit, call)
            else:
                task = self._submit(call)
            pickled, logged = await self._result(task)
        except trio.Cancelled:
            if task is not None:
                self._count_kill()
                ray.cancel(task, force=self._workers.force)
            raise
        except ray.exceptions.RayTaskError:  # as where the handler cannot be imported
            raise
        except ray.exceptions.RayError as error:
            cause = f"{type(error).__name__}: {error}".strip().partition("\n")[0]
            raise self._count_death(cause) from error
        finally:
            self._busy -= 1
        for record in logged:
            log_of_worker(record)
        answer: Any = read_message(pickled)
        if isinstance(answer, Error):
            answer.unwrap()
        body: Frames = answer
        return body

    def _submit(self, call: Call) -> Any:  # noqa: ANN401
        return self._remote(pickle.dumps(call))

    async def _result(self, task: Any) -> Result:  # noqa: ANN401
        """Wait for what a task returns."""
        done = trio.Event()
        future = task.future()

        def wake(_: object) -> None:
            with suppress(trio.RunFinishedError):
                self._token.run_sync_soon(done.set)

        future.add_done_callback(wake)
        await done.wait()
        result: Result = pickle.loads(future.result())  # noqa: S301  # by our own task
        return result


@asynccontextmanager
async def open_ray_tasks(handler: Handler, workers: RayWorkers) -> AsyncIterator[RayTasks]:
    """Connect to Ray, unless the program has.

    Raises:
        WorkersFailed: That is not possible.
    """
    if ray.is_initialized():
        yield RayTasks(handler, workers)
        return
    stopping, started = threading.Event(), trio.Event()
    token = trio.lowlevel.current_trio_token()

    def live() -> None:
        try:
            ray.init(**_options(workers))
        except Exception as error:
            raise WorkersFailed(
                f"Ray cannot be started: {type(error).__name__}: {error}"
            ) from error
        token.run_sync_soon(started.set)
        stopping.wait()
        ray.shutdown()

    async with open_own_nursery() as nursery:
        nursery.start_soon(trio.to_thread.run_sync, live)
        try:
            await started.wait()
            yield RayTasks(handler, workers)
        finally:
            stopping.set()


def _options(workers: RayWorkers) -> dict[str, Any]:
    """The arguments of `ray.init`."""
    if workers.address is not None or "RAY_ADDRESS" in os.environ:
        return {"address": workers.address}
    cpus = (workers.resources or {}).get("CPU", 1)
    return {"num_cpus": math.ceil(workers.n * cpus), "include_dashboard": False}
