"""The code of a worker process: `start` once, and then `call` for each request.

A worker leads its own session, and so its own process group. The group is killed as a whole, and
Ctrl-C in the server's terminal does not reach it.
"""

from __future__ import annotations

import fcntl
import io
import logging
import multiprocessing
import os
import pickle
import select
import signal
import struct
import sys
import threading
import traceback
from contextvars import copy_context
from dataclasses import dataclass
from multiprocessing.connection import wait
from multiprocessing.shared_memory import SharedMemory
from typing import Any, Final

from outcome import Error, Outcome, Value
from tblib.pickling_support import install

from .._errors import CancelReason, RequestCancelled
from .._protocol.envelope import Frames
from .._request import Peer, Request, current_request
from .from_thread import adapt_thread
from .handlers import Handler, reply_body

REASONS: Final = tuple(CancelReason)
CELL: Final = struct.Struct("=Q")

PeerFields = tuple[int, str, str, str, int | None, int | None, str]
"""The fields of a `Peer`, sent in its place because pickling a dataclass is slow."""
Answer = Frames | Error | None
"""The body of a reply, or the error of the handler. None if this process was not started as a
worker: trio-parallel has replaced a worker that had died, and no handler was called."""


@dataclass(frozen=True, slots=True)
class Setup:
    """The settings with which a worker starts.

    Attributes:
        functions: The handler and the initializer, pickled.
        cell: The shared memory, and the place in it, where the server writes that its request has
            ended; None without a grace.
        log_level: The level of the server's root logger; None if nothing is configured there.
        log_format: The formatter of the server's root logger.
    """

    functions: bytes
    cell: tuple[str, int] | None
    log_level: int | None
    log_format: logging.Formatter | None


class Cell:
    """Eight bytes of shared memory, in which the server writes which request has ended, and why.

    A worker keeps its cell, and requests are numbered: a late write for one request is not read by
    the next.

    Args:
        name: The name of the shared memory.
        index: The index of the cell.
    """

    def __init__(self, name: str, index: int) -> None:
        self._memory = SharedMemory(name)  # kept, since it is closed when it is collected
        self._buffer: Any = self._memory.buf
        self._offset = CELL.size * index

    def reason(self, number: int) -> CancelReason | None:
        """Why a request has ended; None if it has not."""
        (written,) = CELL.unpack_from(self._buffer, self._offset)
        ended, reason = divmod(written, len(REASONS))
        return REASONS[reason] if ended == number else None


def write_cell(memory: SharedMemory, index: int, number: int, reason: CancelReason) -> None:
    """Write that a request has ended (in the server)."""
    buffer: Any = memory.buf
    CELL.pack_into(buffer, CELL.size * index, number * len(REASONS) + REASONS.index(reason))


class WorkerRequest(Request):
    """A request, as a handler in a worker process sees it.

    Args:
        number: Unique among the requests of the server.
        cell: Where the server writes that it has ended; None without a grace.
    """

    __slots__ = ("_cell", "_number")

    def __init__(
        self, client: Peer, frames: Frames, deadline: float, number: int, cell: Cell | None
    ) -> None:
        super().__init__(client, frames, deadline)
        self._number = number
        self._cell = cell

    @property
    def cancel_reason(self) -> CancelReason | None:
        """As in `Request`."""
        return None if self._cell is None else self._cell.reason(self._number)

    def check_cancelled(self) -> None:
        """As in `Request`."""
        reason = self.cancel_reason
        if reason is not None:
            raise RequestCancelled(reason)


@dataclass(frozen=True, slots=True)
class _Worker:
    """What this process keeps between two requests."""

    handler: Handler
    cell: Cell | None


_worker: _Worker | None = None  # of this process


def start(setup: Setup) -> Outcome[int]:
    """Make this process a worker.

    Returns:
        Its process id; or the error of the initializer, or of the import of the handler's module.
    """
    global _worker  # a process is one worker
    try:
        os.setsid()
        _end_with_server()
        _leave_signals_to_server()
        _write_whole_lines()
        handler, initializer = pickle.loads(setup.functions)  # noqa: S301  # by our own server
        if initializer is not None:
            initializer()
        _log_as_server(setup)
        adapt_thread()
        cell = None if setup.cell is None else Cell(*setup.cell)
    except BaseException as error:  # noqa: BLE001  # raised in the server
        return Error(_portable(error))
    _worker = _Worker(handler, cell)
    return Value(os.getpid())


def call(peer: PeerFields, frames: Frames, deadline: float, number: int) -> Answer:
    """Call the handler."""
    if _worker is None:
        return None
    request = WorkerRequest(Peer(*peer), frames, deadline, number, _worker.cell)
    try:
        return copy_context().run(_call, _worker.handler, request)
    except BaseException as error:  # noqa: BLE001  # raised in the server
        return Error(_portable(error))


def _call(handler: Handler, request: Request) -> Frames:
    current_request.set(request)
    return reply_body(handler(request))


def _portable(error: BaseException) -> BaseException:
    """The exception with its traceback, or a stand-in if it cannot be pickled.

    Pickle rebuilds an exception from its `args`, which fails for many that have an `__init__`.
    """
    try:
        install(error)
        pickle.loads(pickle.dumps(error))  # noqa: S301  # it is our own
    except Exception:  # noqa: BLE001  # whatever the exception's own code raises
        name = type(error).__qualname__
        stand_in = RuntimeError(f"the handler raised {name}, which cannot be pickled")
        stand_in.add_note("".join(traceback.format_exception(error)))
        return stand_in
    return error


def _end_with_server() -> None:
    """Make the kernel kill this process group when the server ends.

    `multiprocessing` gives each child the reading end of a pipe whose writing end is the server's
    alone. On Linux the kernel sends SIGKILL when it closes, also while a call into C keeps the GIL.
    PR_SET_PDEATHSIG cannot be used: it fires when the thread that started this process ends.
    """
    server: Any = multiprocessing.parent_process()
    pipe: int = server.sentinel
    if hasattr(fcntl, "F_SETSIG"):
        fcntl.fcntl(pipe, fcntl.F_SETOWN, -os.getpgrp())
        fcntl.fcntl(pipe, fcntl.F_SETSIG, signal.SIGKILL)
        fcntl.fcntl(pipe, fcntl.F_SETFL, fcntl.fcntl(pipe, fcntl.F_GETFL) | fcntl.FASYNC)
        if select.select([pipe], [], [], 0)[0]:  # it was closed before
            os.killpg(0, signal.SIGKILL)
    else:
        threading.Thread(target=_die_after, args=(pipe,), name="server", daemon=True).start()


def _die_after(pipe: int) -> None:
    wait([pipe])
    os.killpg(0, signal.SIGKILL)


def _leave_signals_to_server() -> None:
    """Do nothing at SIGINT and SIGTERM, which systemd sends to each process of a service.

    They are not set to SIG_IGN, which programs that the handler starts would inherit.
    """
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: None)
        signal.siginterrupt(number, False)


def _write_whole_lines() -> None:
    """Flush stdout at each line: a kill would lose buffered output, or cut it anywhere."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(line_buffering=True, write_through=False)


def _log_as_server(setup: Setup) -> None:
    """Log to stderr as the server does, unless the initializer or a module has configured this."""
    if setup.log_level is not None and not logging.root.handlers:
        handler = logging.StreamHandler()
        handler.setFormatter(setup.log_format)
        logging.root.addHandler(handler)
        logging.root.setLevel(setup.log_level)
