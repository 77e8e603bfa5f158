"""Standard input, output and error as descriptors: all is read and written, or an error is raised.

`sys.stdin`, `sys.stdout` and `sys.stderr` are not enough. Each is None if its descriptor is closed.
A thread that waits in `sys.stdin` holds its lock, and an interpreter that ends meanwhile aborts.
What `sys.stdout` has in its buffer when a write fails is written again at the end. None of them
waits if another process has put the descriptor into non-blocking mode. That mode belongs to all
processes that share the descriptor, so it is left as it is.
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
CHUNK = 2**20  # bytes that are read at once
MAX_REQUEST = 2**28  # bytes; without a limit, /dev/zero would fill the memory


class CannotRead(Exception):
    """The request cannot be read; nothing was sent."""


class CannotWrite(Exception):
    """Standard output does not take what is written.

    Attributes:
        reader_gone: Whether it is a pipe or a socket that nobody reads any more.
    """

    def __init__(self, text: str, *, reader_gone: bool) -> None:
        super().__init__(text)
        self.reader_gone = reader_gone


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
                reader_gone=error.errno == errno.EPIPE,
            ) from error
        return size


class ErrorOutput(Output):
    """Standard error, without a buffer. What it does not take is dropped: there is no other place.

    The exit code still tells.
    """

    def write(self, data: ReadableBuffer, /) -> int:
        """Write all of it, if it can be written."""
        try:
            return super().write(data)
        except CannotWrite:
            return memoryview(data).nbytes


def open_streams() -> None:
    """Put unbuffered streams in the place of `sys.stdout` and `sys.stderr`.

    A closed descriptor is opened, so that no socket gets its number, and a reply is not written
    into it. It is opened for the wrong direction: what uses it fails as before.
    """
    for descriptor in (INPUT, OUTPUT, ERRORS):
        try:
            os.fstat(descriptor)
        except OSError:
            wrong = os.O_WRONLY if descriptor == INPUT else os.O_RDONLY
            os.open(os.devnull, wrong)  # gets the lowest number that is free
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
            raise CannotRead(f"a request may have {limit} bytes, and there are more")
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
    """Whether a line can be written at once, and there is somebody to read it."""
    poll = select.poll()
    poll.register(descriptor, select.POLLOUT)
    return poll.poll(0) == [(descriptor, select.POLLOUT)]


async def in_thread(wait: Callable[[Unpack[Args]], Result], *args: *Args) -> Result:
    """Call what may have to wait for a stream's other end. Ctrl-C and the event loop do not."""
    return await trio.to_thread.run_sync(wait, *args, abandon_on_cancel=True)


def run_while_read(main: Callable[[], Awaitable[None]]) -> None:
    """Run an async function, but no longer than somebody reads standard output, if it is a pipe.

    It must not block. Ctrl-C comes at its checkpoints, and interrupts no task half-way.

    Raises:
        CannotWrite: Nobody reads it any more; `main` was cancelled.
    """
    trio.run(_while_read, main, restrict_keyboard_interrupt_to_checkpoints=True)


async def _while_read(main: Callable[[], Awaitable[None]]) -> None:
    done = False
    try:
        async with trio.open_nursery() as nursery:

            async def watch() -> None:
                await trio.lowlevel.wait_readable(OUTPUT)  # of a writing end: its reader is gone
                nursery.cancel_scope.cancel()

            if _is_writing_end(OUTPUT):
                nursery.start_soon(watch)
            await main()
            done = True
            nursery.cancel_scope.cancel()
    except* KeyboardInterrupt:
        # While trio ends, Python would print an error about a second one: trio closes the
        # descriptor to which Python writes a signal's number before it takes it back.
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        raise
    if not done:
        raise CannotWrite("standard output is not read any more", reader_gone=True)


def _is_writing_end(descriptor: int) -> bool:
    """Whether it is the writing end of a pipe; a FIFO can be open for both directions."""
    mode = fcntl.fcntl(descriptor, fcntl.F_GETFL) & os.O_ACCMODE
    return stat.S_ISFIFO(os.fstat(descriptor).st_mode) and mode == os.O_WRONLY
