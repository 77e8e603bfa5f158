"""The values of `serve(workers=...)`: plain functions run in threads or in processes."""

from __future__ import annotations

import pickle
import sys
from collections.abc import Callable
from dataclasses import KW_ONLY, dataclass
from typing import Final

from ._checks import check_count, check_duration, check_instance, check_limit, shown, wrong
from ._functions import check_function, is_async

DEF: Final = "define it with def at the top of a module, or use threads: workers=40"
ASYNC: Final = "an async function runs in the event loop: leave workers out"


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


Workers = ThreadWorkers | ProcessWorkers


def pickled(handler: Callable[..., object], workers: ProcessWorkers) -> bytes:
    """Pickle the functions of a worker process.

    Raises:
        TypeError: One of them cannot run in a process.
    """
    if is_async(handler):
        raise wrong("handler", "a plain function with ProcessWorkers", handler, ASYNC)
    for name, function in (("handler", handler), ("initializer", workers.initializer)):
        try:
            pickle.dumps(function)
        except Exception as error:  # a callable object may raise anything
            raise wrong(
                name, "a function that can be pickled", function, f"{error}; {DEF}"
            ) from error
    return pickle.dumps((handler, workers.initializer))
