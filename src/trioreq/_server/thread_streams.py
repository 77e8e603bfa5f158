"""Plain generators as handlers, in worker threads: the thread waits at each `yield`.

The thread passes each reply to the event loop, like the result of a function, and waits for a
permit, which the event loop grants when the reply is sent. The event loop alone decides when that
is: by the client's credit, the outbox, and whether the request has ended.
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


class Permit(Protocol):
    """Allows a thread to continue, once."""

    def wait(self) -> bool:
        """Wait until it is granted (in the thread); returns whether the reply was sent."""

    def grant(self, *, sent: bool) -> None:
        """Let the thread continue (in the event loop)."""


class ThreadPermit:
    """The permit of a thread; a `Permit`."""

    __slots__ = ("_lock", "_sent")

    def __init__(self) -> None:
        self._lock = Lock()
        self._lock.acquire()
        self._sent = False

    def wait(self) -> bool:
        """As in `Permit`."""
        self._lock.acquire()
        return self._sent

    def grant(self, *, sent: bool) -> None:
        """As in `Permit`."""
        self._sent = sent
        self._lock.release()


@dataclass(frozen=True, slots=True)
class Part:
    """A reply of a stream that is to be sent.

    Attributes:
        body: Its frames; None for the end of the stream.
        permit: Granted when it is sent.
    """

    body: Frames | None
    permit: Permit


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
    was_cancelled = False
    try:
        reply = next(replies)
        while True:
            body = reply_body(reply)
            try:
                send(request, body)
            except RequestCancelled as error:
                if was_cancelled:
                    raise
                was_cancelled = True
                reply = replies.throw(error)
            else:
                reply = next(replies)
    except StopIteration:  # it has returned
        send(request, None)
    finally:
        replies.close()
