"""Requests and clients, as handlers see them, and `check_cancelled`."""

from __future__ import annotations

import math
from contextvars import ContextVar
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ._checks import check_instance
from ._errors import CancelReason, RequestCancelled

if TYPE_CHECKING:
    from ._protocol.envelope import Frames

current_request: ContextVar[Request | None] = ContextVar("trioreq.current_request", default=None)
"""The request whose handler runs here. Threads that trio starts inherit it."""


@dataclass(frozen=True, slots=True)
class Peer:
    """The client at the other end of a connection. A client that reconnects is another one."""

    id: int
    """Unique for the server's life."""
    address: str
    """Its IP address, or ``localhost:uid:gid:pid`` (ipc); in the same form as
    `Applicant.address`."""
    socket_type: str
    """The socket type that it announces, such as ``REQ`` or ``DEALER``."""
    user_id: str = ""
    """Its user id, from the allow-list or `admit`; empty without both."""
    uid: int | None = None
    """The user id of the client's process, on ipc where the system reports it."""
    pid: int | None = None
    """The process id of the client, on ipc where the system reports it."""
    public_key: str = ""
    """Its public key, authenticated by CURVE; empty without CURVE."""

    def __str__(self) -> str:
        return f"client {self.id} ({self.socket_type or 'unknown socket type'} at {self.address})"


class Request:
    """One request of one client, as a handler sees it. It cannot be changed.

    The server makes it. A test of a handler can make one too.

    Args:
        client: The client that sent it.
        frames: The frames of the body, at least one.
        deadline: When it times out, on trio's clock in seconds; `math.inf` for never.

    Raises:
        TypeError: An argument is of the wrong type.
        ValueError: There are no frames.
    """

    __slots__ = ("_cancel_reason", "_client", "_deadline", "_frames")

    def __init__(self, client: Peer, frames: Frames, deadline: float = math.inf) -> None:
        check_instance("client", client, Peer, "a Peer")
        expected = "a tuple of bytes, one for each frame"
        check_instance("frames", frames, tuple, expected)
        if not frames:
            raise ValueError(f"frames must be {expected}, got (): there is at least one")
        for frame in frames:
            check_instance("each of frames", frame, bytes, "bytes")
        check_instance("deadline", deadline, (int, float), "a time in seconds")
        self._client = client
        self._frames = frames
        self._deadline = deadline
        self._cancel_reason: CancelReason | None = None

    @property
    def body(self) -> bytes:
        """The first frame of the body, which is all of it for most clients."""
        return self._frames[0]

    @property
    def frames(self) -> Frames:
        """The frames of the body, at least one."""
        return self._frames

    @property
    def client(self) -> Peer:
        """The client that sent it."""
        return self._client

    @property
    def deadline(self) -> float:
        """When the request times out, on trio's clock in seconds; `math.inf` for never.

        In a worker process it is on the clock of `time.monotonic`.
        """
        return self._deadline

    @property
    def cancel_reason(self) -> CancelReason | None:
        """Why the request ended before its handler; None while it has not."""
        return self._cancel_reason

    def check_cancelled(self) -> None:
        """Raise `RequestCancelled` if the request has ended. Safe in any thread."""
        if self._cancel_reason is not None:
            raise RequestCancelled(self._cancel_reason)

    def __repr__(self) -> str:
        state = f", {self._cancel_reason}" if self._cancel_reason else ""
        return f"<Request of client {self._client.id}, {len(self._frames)} frames{state}>"


def check_cancelled() -> None:
    """Raise if the request that is being processed has ended; otherwise return at once.

    For plain functions, which cannot be cancelled from outside: call it between two steps of the
    work. It checks a flag, and is cheap enough for a tight loop. It works in the handler and
    in the threads that trio starts for it; elsewhere, pass the request on and call
    `Request.check_cancelled`.

    Raises:
        RequestCancelled: The client disconnected or cancelled the request, or it timed out, or the
            server is shutting down.
        RuntimeError: No request is being processed here.

    Example:
        >>> def count_words(request):
        ...     words = 0
        ...     for line in request.body.splitlines():
        ...         trioreq.check_cancelled()
        ...         words += len(line.split())
        ...     return b"%d" % words
    """
    request = current_request.get()
    if request is None:
        raise RuntimeError(
            "no request is being processed here: call check_cancelled in a handler, or pass the "
            "request to this thread and call request.check_cancelled()"
        )
    request.check_cancelled()
