"""Plain generators as handlers, in worker threads: the thread waits at each `yield` for its turn.

The thread hands each reply over to the event loop, as it does the result of a function, and gets
its turn back when the reply is sent. All else is decided in the event loop: how far the client lets
the stream run ahead, and whether it has ended.
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from dataclasses import dataclass
from threading import Lock
from typing import Protocol

from .._errors import RequestCancelled
from .._protocol.envelope import Frames
from .handlers import reply_body
from .pending_request import PendingRequest

Replies = Generator[object, None, object]


class Turn(Protocol):
    """What a thread waits for, once."""

    def wait(self) -> None:
        """Wait for it, in the thread."""

    def give(self) -> None:
        """Let the thread go on (in the event loop)."""


class ThreadTurn:
    """The turn of a thread; a `Turn`."""

    __slots__ = ("_lock",)

    def __init__(self) -> None:
        self._lock = Lock()
        self._lock.acquire()

    def wait(self) -> None:
        """As in `Turn`."""
        self._lock.acquire()

    def give(self) -> None:
        """As in `Turn`."""
        self._lock.release()


@dataclass(frozen=True, slots=True)
class Part:
    """A reply of a stream that is to be sent.

    Attributes:
        body: Its frames; None for the end of the stream.
        turn: What its thread waits for.
    """

    body: Frames | None
    turn: Turn


def run_generator(
    handler: Callable[[PendingRequest], Replies],
    send: Callable[[PendingRequest, Frames | None], None],
    request: PendingRequest,
) -> None:
    """Run a generator to its end, in the thread of its request.

    Args:
        handler: A generator function.
        send: Sends a reply, or the end, and waits until that is done.
        request: The request.

    Raises:
        RequestCancelled: The request has ended. It was raised at the `yield` too.
    """
    replies = handler(request)
    was_told = False
    try:
        reply = next(replies)
        while True:
            body = reply_body(reply)
            try:
                send(request, body)
            except RequestCancelled as error:
                if was_told:
                    raise
                was_told = True
                reply = replies.throw(error)
            else:
                reply = next(replies)
    except StopIteration:  # it has returned
        send(request, None)
    finally:
        replies.close()
