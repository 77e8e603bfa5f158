"""The values of `serve(workers=...)`: plain functions run in threads, in processes or on Ray."""

from __future__ import annotations

import math
import pickle
import sys
from collections.abc import Callable, Mapping
from dataclasses import KW_ONLY, dataclass
from typing import Final

from ._checks import check_count, check_duration, check_instance, check_limit, shown, wrong
from ._functions import check_function, is_async, yields

DEF: Final = "define it with def at the top of a module, or use threads: workers=40"
ASYNC: Final = "an async function runs in the event loop: leave workers out"
YIELDS: Final = "it yields a stream of replies, which threads can send: use workers=40"


@dataclass(frozen=True, slots=True)
class ThreadWorkers:
    """Run plain functions in threads of the server's process.

    For functions that wait, or that call C code which releases the GIL. A thread cannot be stopped:
    a function must call `check_cancelled` to detect that its request has ended. ``workers=40`` is
    short for ``workers=ThreadWorkers(40)``.

    Raises:
        TypeError: An argument is of the wrong type.
        ValueError: An argument is out of its range.
    """

    n: int
    """Functions that run at once, each in a thread."""

    def __post_init__(self) -> None:
        check_count("n", self.n, 1)


@dataclass(frozen=True, slots=True)
class ProcessWorkers:
    """Run plain functions in processes, which are killed when their request ends early.

    For functions that compute. It needs ``pip install 'trioreq[processes]'``. The handler and the
    initializer are pickled: each must be importable by its name, and a program starts its
    server under ``if __name__ == "__main__":``.

    When a client disconnects, when a request is cancelled or times out, and when the server shuts
    down, the process of the request is killed (SIGKILL), together with the processes that it has
    started. No other request is affected.

    Raises:
        TypeError: An argument is of the wrong type.
        ValueError: An argument is out of its range.

    Example:
        >>> if __name__ == "__main__":  # doctest: +SKIP
        ...     workers = trioreq.ProcessWorkers(4)
        ...     trio.run(partial(trioreq.serve, compute, "tcp://*:5555", workers=workers))
    """

    n: int
    """Functions that run at once, each in a process."""
    _: KW_ONLY
    spares: int = 1
    """Processes beyond `n` that are kept idle, so that a killed one is replaced at once."""
    grace: float = 0.0
    """Seconds between the end of a request and the kill. In the meantime `check_cancelled` raises
    in the function. With 0 it is killed at once."""
    retire_after: int | None = None
    """Requests after which a process is replaced; None for no limit."""
    retire_above: int | None = None
    """Bytes of resident memory above which a process is replaced after a request; None for no
    limit. On Linux."""
    initializer: Callable[[], object] | None = None
    """Called once in each process before its first request, for example to load a model."""

    def __post_init__(self) -> None:
        check_count("n", self.n, 1)
        check_count("spares", self.spares, 0)
        check_duration("grace", self.grace)
        check_limit("retire_after", self.retire_after)
        if self.retire_above is not None:
            check_instance("retire_above", self.retire_above, int, "an int or None")
            if self.retire_above < 1:
                raise ValueError(f"retire_above must be above 0, got {shown(self.retire_above)}")
            if not sys.platform.startswith("linux"):
                raise ValueError("retire_above needs Linux, which reports the memory of a process")
        if self.initializer is not None:
            check_function("initializer", self.initializer)
            if is_async(self.initializer):
                raise wrong("initializer", "a plain function", self.initializer)


@dataclass(frozen=True, slots=True)
class RayWorkers:
    """Run plain functions as tasks of a Ray cluster, which are cancelled when their request ends.

    For functions that compute, and need more than one machine. It needs
    ``pip install 'trioreq[ray]'`` here, and trioreq on each machine of the cluster.

    When a client disconnects, when a request is cancelled or times out, and when the server shuts
    down, its task is cancelled. No task is retried. If the program is connected to Ray already,
    that connection is used, and stays open; else the server connects, and disconnects as it ends.

    Raises:
        TypeError: An argument is of the wrong type.
        ValueError: An argument is out of its range.
    """

    n: int
    """Functions that run at once, each in a task."""
    _: KW_ONLY
    address: str | None = None
    """The cluster's address, as for ``ray.init``; None for the environment's ``RAY_ADDRESS``, or
    else a local Ray with room for `n` tasks, which ends with the server."""
    force: bool = True
    """Whether the process of a task is killed when its request ends. Otherwise
    ``KeyboardInterrupt`` is raised in the function."""
    resources: Mapping[str, float] | None = None
    """What a task needs, such as ``{"CPU": 2, "GPU": 1}``; None for one CPU."""

    def __post_init__(self) -> None:
        check_count("n", self.n, 1)
        if self.address is not None:
            check_instance("address", self.address, str, "a str or None")
        check_instance("force", self.force, bool, "a bool")
        if self.resources is not None:
            check_instance("resources", self.resources, Mapping, "a mapping or None")
            for name, amount in self.resources.items():
                check_instance("each name of resources", name, str, "a str")
                check_instance(f"resources[{name!r}]", amount, (int, float), "a number")
                if not 0 <= amount < math.inf:
                    raise ValueError(f"resources[{name!r}] must be at least 0, got {amount}")


KillableWorkers = ProcessWorkers | RayWorkers
Workers = ThreadWorkers | KillableWorkers


def check_plain(handler: Callable[..., object], workers: KillableWorkers) -> None:
    """Refuse a handler that cannot run elsewhere than in the event loop.

    Raises:
        TypeError: It is async, yields, or cannot be pickled.
    """
    kind = type(workers).__name__
    if is_async(handler):
        raise wrong("handler", f"a plain function with {kind}", handler, ASYNC)
    if yields(handler):
        raise wrong("handler", f"a function that returns with {kind}", handler, YIELDS)
    if isinstance(workers, ProcessWorkers):
        pickled(handler, workers)


def pickled(handler: Callable[..., object], workers: ProcessWorkers) -> bytes:
    """Pickle the functions of a worker process.

    Raises:
        TypeError: One of them cannot run in a process.
    """
    for name, function in (("handler", handler), ("initializer", workers.initializer)):
        try:
            pickle.dumps(function)
        except Exception as error:  # a callable object may raise anything
            raise cannot_be_pickled(name, function, error) from error
    return pickle.dumps((handler, workers.initializer))


def cannot_be_pickled(name: str, function: object, error: Exception) -> TypeError:
    """The error for a function that cannot be sent to another process."""
    return wrong(name, "a function that can be pickled", function, f"{error}; {DEF}")
