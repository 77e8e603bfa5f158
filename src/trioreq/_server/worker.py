"""The code of a worker process: `work`, one call of trio-parallel's until the server ends it.

A worker leads its own session, and so its own process group. The group is killed as a whole, and
Ctrl-C in the server's terminal does not reach it.
"""

from __future__ import annotations

import fcntl
import io
import math
import multiprocessing
import os
import pickle
import select
import signal
import socket
import struct
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import AbstractAsyncContextManager, contextmanager
from contextvars import copy_context
from dataclasses import dataclass
from multiprocessing.connection import wait
from multiprocessing.shared_memory import SharedMemory
from operator import attrgetter
from typing import Any, Final

import trio
from outcome import Error, Value
from tblib.pickling_support import install

from .._errors import CancelReason, RequestCancelled
from .._finishing import NOT_ASYNC, Place, current_place
from .._protocol.envelope import Frames
from .._request import (
    Peer,
    Request,
    check_cancelled,
    current_request,
    entered,
    is_finishing,
    without_session,
)
from .channel import WorkerEnd
from .from_thread import adapt_thread
from .handlers import Handler, reply_body
from .worker_log import Levels, log_as_server

REASONS: Final = tuple(CancelReason)
NUMBER: Final = struct.Struct("=Q")
SECONDS: Final = struct.Struct("=d")
CELL_SIZE: Final = 32  # the end of a request, its time, a finishing block, its limit

PeerFields = tuple[int, str, str, str, int | None, int | None, str]
"""The fields of a `Peer`, sent in its place because pickling a dataclass is slow."""
peer_fields: Callable[[Peer], PeerFields] = attrgetter(*Peer.__dataclass_fields__)
Call = tuple[PeerFields, Frames, float, int]
"""A request, as the server sends it: the client, the frames, the deadline, and its number."""
Answer = Frames | Error
"""The body of a reply, or the error of the handler."""


@dataclass(frozen=True, slots=True)
class Setup:
    """The settings with which a worker starts.

    Attributes:
        functions: The handler and the initializer, pickled.
        cell: The name of the memory that the server and the worker share.
        grace: As of `ProcessWorkers`.
        levels: Those of the server's loggers.
    """

    functions: bytes
    cell: str
    grace: float
    levels: Levels


class Cell:
    """Shared memory of one worker and the server.

    The server writes which request has ended, when and why. The worker writes which request is in a
    finishing block, and with which limit. Both write first, and then look. So if both do so at the
    same time, the server sees the block, or the worker sees that the request has ended, or both.

    Requests are numbered: a late write for one request is not read by the next.

    Args:
        memory: The shared memory.
    """

    _ended, _ended_at, _block, _limit = range(0, CELL_SIZE, 8)

    def __init__(self, memory: SharedMemory) -> None:
        self._memory = memory  # kept, since it is closed when it is collected
        self._buffer: Any = memory.buf

    def end(self, number: int, reason: CancelReason, now: float) -> None:
        """Write that a request has ended (in the server)."""
        SECONDS.pack_into(self._buffer, self._ended_at, now)
        ended = number * len(REASONS) + REASONS.index(reason)
        NUMBER.pack_into(self._buffer, self._ended, ended)
        _fence()

    def reason(self, number: int) -> CancelReason | None:
        """Why a request has ended; None if it has not."""
        (written,) = NUMBER.unpack_from(self._buffer, self._ended)
        ended, reason = divmod(written, len(REASONS))
        return REASONS[reason] if ended == number else None

    def ended_at(self) -> float:
        """When the request has ended that has, by `time.monotonic`."""
        (ended_at,) = SECONDS.unpack_from(self._buffer, self._ended_at)
        return float(ended_at)

    def begin_block(self, number: int, limit: float) -> None:
        """Write that a request is in a finishing block (in the worker)."""
        SECONDS.pack_into(self._buffer, self._limit, limit)
        NUMBER.pack_into(self._buffer, self._block, number)
        _fence()

    def end_block(self) -> None:
        """Write that none is (in the worker)."""
        NUMBER.pack_into(self._buffer, self._block, 0)
        _fence()

    def limit(self, number: int) -> float | None:
        """The limit of the finishing block that a request is in; None if it is in none."""
        (block,) = NUMBER.unpack_from(self._buffer, self._block)
        (limit,) = SECONDS.unpack_from(self._buffer, self._limit)
        return float(limit) if block == number else None


_lock = threading.Lock()


def _fence() -> None:
    """See that what was written is seen before what is read next: a lock is a memory barrier."""
    with _lock:
        pass


def call_of(request: Request, number: int) -> Call:
    """The message for a request (in the server)."""
    deadline = request.deadline
    if deadline != math.inf:
        deadline += time.monotonic() - trio.current_time()
    return peer_fields(request.client), request.frames, deadline, number


class WorkerRequest(Request):
    """A request, as a handler in a worker process sees it.

    Args:
        number: Unique among the requests of the server.
        cell: Where the server writes that it has ended; None on Ray.
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
        if reason is not None and not is_finishing():
            raise RequestCancelled(reason)


class WorkerPlace:
    """Finishing blocks in this process: a `Place`.

    Args:
        cell: Where it is written that there is one.
        grace: As of `ProcessWorkers`.
        number: The number of the request.
    """

    def __init__(self, cell: Cell, grace: float, number: int) -> None:
        self._cell = cell
        self._grace = grace
        self._number = number
        self._limit: float | None = None

    def async_block(self, limit: float) -> AbstractAsyncContextManager[None]:
        """Refuse."""
        raise RuntimeError(NOT_ASYNC)

    @contextmanager
    def plain_block(self, limit: float) -> Iterator[None]:
        """As in `Place`."""
        if self._limit is not None:  # inside another one
            yield
            return
        self._cell.begin_block(self._number, limit)
        try:
            check_cancelled()
            self._limit = limit
            with entered(self):
                yield
        finally:
            self._limit = None
            if current_place.get() is self:  # else it is a later request that has the cell now
                self._cell.end_block()
                self._end_late()

    def is_quiet(self) -> bool:
        """As in `CurrentBlock`."""
        limit = self._limit
        if limit is None:
            return False
        # Without a longer grace the server kills this process when the limit is over.
        return self._grace <= limit or time.monotonic() < self._cell.ended_at() + limit

    def _end_late(self) -> None:
        """Be killed now, if it was put off because of the block."""
        has_ended = self._cell.reason(self._number) is not None
        if has_ended and time.monotonic() >= self._cell.ended_at() + self._grace:
            os.killpg(0, signal.SIGKILL)


def work(path: str) -> None:
    """Be a worker: answer requests until the server closes its end.

    Args:
        path: The socket that the server listens on.
    """
    os.setsid()
    _end_with_server()
    _leave_signals_to_server()
    _write_whole_lines()
    with socket.socket(socket.AF_UNIX) as connection:
        connection.connect(path)
        _work(WorkerEnd(connection))


def _work(channel: WorkerEnd) -> None:
    started = pickle.dumps(Value(os.getpid()))
    channel.send(started)
    message = channel.receive()
    if message is None:
        return
    try:
        setup: Setup = pickle.loads(message)  # noqa: S301  # by our own server
        forwarder = log_as_server(setup.levels, channel)
        handler, initializer = pickle.loads(setup.functions)  # noqa: S301
        if initializer is not None:
            initializer()
        adapt_thread()
        cell = Cell(SharedMemory(setup.cell))
    except BaseException as error:  # noqa: BLE001  # raised in the server
        channel.send(pickle.dumps(Error(portable(error))))
        return
    channel.send(started)
    while (message := channel.receive()) is not None:
        peer, frames, deadline, number = pickle.loads(message)  # noqa: S301
        client = without_session(Peer(*peer))
        request = WorkerRequest(client, frames, deadline, number, cell)
        answer = answer_to(request, handler, WorkerPlace(cell, setup.grace, number))
        forwarder.tell_dropped()
        channel.send(pickle.dumps(answer))


def answer_to(
    request: Request,
    handler: Handler,
    place: Place,
    dumps: Callable[[object], bytes] = pickle.dumps,
) -> Answer:
    """Call the handler.

    Args:
        request: What it is called with.
        handler: The handler.
        place: Where it runs.
        dumps: How the answer will be pickled.
    """
    try:
        return copy_context().run(_call, handler, request, place)
    except BaseException as error:  # noqa: BLE001  # raised in the server
        return Error(portable(error, dumps))


def read_message(message: bytes) -> Answer | bytes | int:
    """An answer, a log record, or the number of records that were dropped (in the server)."""
    try:
        read: Answer | bytes | int = pickle.loads(message)  # noqa: S301  # by our own worker
    except Exception as error:  # noqa: BLE001  # what the user's own classes raise
        return Error(RuntimeError(f"what a worker has sent cannot be read: {error!r}"))
    return read


def _call(handler: Handler, request: Request, place: Place) -> Frames:
    current_request.set(request)
    current_place.set(place)
    return reply_body(handler(request))


def portable(
    error: BaseException, dumps: Callable[[object], bytes] = pickle.dumps
) -> BaseException:
    """The exception with its traceback, or a stand-in if it cannot be pickled.

    Pickle rebuilds an exception from its `args`, which fails for many that have an `__init__`.
    """
    try:
        install(error)
        pickle.loads(dumps(error))  # noqa: S301  # it is our own
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
