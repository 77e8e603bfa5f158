"""Standard input, output and error as descriptors, read and written completely or with an error.

`sys.stdin`, `sys.stdout` and `sys.stderr` are not sufficient. Each is None if its descriptor is
closed. A thread that waits in `sys.stdin` holds its lock, and an interpreter that exits meanwhile
aborts. When a write fails, `sys.stdout` writes its buffer again at the exit. None of them waits if
another process has set the descriptor to non-blocking mode. All processes that share the descriptor
share that mode, so it is not changed here.
"""

from __future__ import annotations

import errno
import fcntl
import io
import os
import select
import signal
import stat
import sys
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, TextIO, TypeVar, TypeVarTuple, Unpack

import trio

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer

Args = TypeVarTuple("Args")
Result = TypeVar("Result")

INPUT, OUTPUT, ERRORS = range(3)
CHUNK = 2**20  # bytes of one read
MAX_REQUEST = 2**28  # bytes; without a limit, /dev/zero would fill the memory


class CannotRead(Exception):
    """The request cannot be read; nothing was sent."""


class CannotWrite(Exception):
    """Standard output cannot be written.

    Attributes:
        reader_closed: Whether it is a pipe or a socket, closed by its reader.
    """

    def __init__(self, text: str, *, reader_closed: bool) -> None:
        super().__init__(text)
        self.reader_closed = reader_closed


class Output(io.FileIO):
    """Standard output, without a buffer."""

    def __init__(self, descriptor: int) -> None:
        super().__init__(descriptor, "w", closefd=False)

    def write(self, data: ReadableBuffer, /) -> int:
        """Write all of it, and wait for room if there is none."""
        left = memoryview(data).cast("B")
        size = len(left)
        try:
            while left:
                written: int | None = super().write(left)
                if written is None:  # full, and in non-blocking mode
                    wait_for(self.fileno(), select.POLLOUT)
                else:
                    left = left[written:]
        except OSError as error:
            raise CannotWrite(
                f"cannot write to standard output: {error.strerror}",
                reader_closed=error.errno == errno.EPIPE,
            ) from error
        return size


class ErrorOutput(Output):
    """Standard error, without a buffer. Text that cannot be written is dropped.

    The exit code still reports the error.
    """

    def write(self, data: ReadableBuffer, /) -> int:
        """Write all of it, if it can be written."""
        try:
            return super().write(data)
        except CannotWrite:
            return memoryview(data).nbytes


def open_streams() -> None:
    """Replace `sys.stdout` and `sys.stderr` by unbuffered streams.

    A closed descriptor is opened, so that no socket gets its number, and no reply is written to
    that socket. It is opened for the wrong direction, so that its use still fails.
    """
    for descriptor in (INPUT, OUTPUT, ERRORS):
        try:
            os.fstat(descriptor)
        except OSError:
            wrong = os.O_WRONLY if descriptor == INPUT else os.O_RDONLY
            os.open(os.devnull, wrong)  # it gets the lowest free number
    sys.stdout = _text(Output(OUTPUT), sys.stdout)
    sys.stderr = _text(ErrorOutput(ERRORS), sys.stderr)


def _text(output: Output, before: TextIO | None) -> io.TextIOWrapper:
    encoding = getattr(before, "encoding", None) or "utf-8"
    return io.TextIOWrapper(output, encoding, errors="backslashreplace", write_through=True)


def read_all(descriptor: int, *, limit: int = MAX_REQUEST) -> bytes:
    """Read to the end.

    Raises:
        CannotRead: There are more bytes than the limit.
        OSError: The descriptor cannot be read.
    """
    parts = []
    size = 0
    while part := _read(descriptor):
        parts.append(part)
        size += len(part)
        if size > limit:
            raise CannotRead(f"a request must have at most {limit} bytes, got more")
    return b"".join(parts)


def _read(descriptor: int) -> bytes:
    while True:
        try:
            return os.read(descriptor, CHUNK)
        except BlockingIOError:  # empty, and in non-blocking mode
            wait_for(descriptor, select.POLLIN)


def wait_for(descriptor: int, event: int) -> None:
    """Block until a descriptor can be read or written, or has failed."""
    poll = select.poll()
    poll.register(descriptor, event)
    poll.poll()


def has_room(descriptor: int) -> bool:
    """Whether a line can be written at once, and the reader is open."""
    poll = select.poll()
    poll.register(descriptor, select.POLLOUT)
    return poll.poll(0) == [(descriptor, select.POLLOUT)]


async def in_thread(wait: Callable[[Unpack[Args]], Result], *args: *Args) -> Result:
    """Call a function that may block on a stream, without blocking the event loop or Ctrl-C."""
    return await trio.to_thread.run_sync(wait, *args, abandon_on_cancel=True)


def run_while_read(main: Callable[[], Awaitable[None]]) -> None:
    """Run an async function, and cancel it if standard output is a pipe that its reader closes.

    It must not block. Ctrl-C is raised only at its checkpoints.

    Raises:
        CannotWrite: The reader has closed the pipe; `main` was cancelled.
    """
    trio.run(_while_read, main, restrict_keyboard_interrupt_to_checkpoints=True)


async def _while_read(main: Callable[[], Awaitable[None]]) -> None:
    done = False
    try:
        async with trio.open_nursery() as nursery:

            async def watch() -> None:
                # A writing end is readable when its reader is closed.
                await trio.lowlevel.wait_readable(OUTPUT)
                nursery.cancel_scope.cancel()

            if _is_writing_end(OUTPUT):
                nursery.start_soon(watch)
            await main()
            done = True
            nursery.cancel_scope.cancel()
    except* KeyboardInterrupt:
        # A second one would make Python print an error while trio ends: trio closes the descriptor
        # that Python writes signal numbers to before it unregisters it.
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        raise
    if not done:
        raise CannotWrite("standard output is closed by its reader", reader_closed=True)


def _is_writing_end(descriptor: int) -> bool:
    """Whether it is the writing end of a pipe; a FIFO can be open for both directions."""
    mode = fcntl.fcntl(descriptor, fcntl.F_GETFL) & os.O_ACCMODE
    return stat.S_ISFIFO(os.fstat(descriptor).st_mode) and mode == os.O_WRONLY
