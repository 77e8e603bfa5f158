"""Requests and clients, as handlers see them, and `check_cancelled`."""

from __future__ import annotations

import math
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from dataclasses import dataclass, replace
from threading import Lock
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, Final, Never, Protocol

from ._checks import check_instance
from ._errors import CancelReason, RequestCancelled
from ._functions import check_async_call

if TYPE_CHECKING:
    from ._protocol.envelope import Frames

current_request: ContextVar[Request | None] = ContextVar("trioreq.current_request", default=None)
"""The request whose handler runs here. Threads that trio starts inherit it."""


class CurrentBlock(Protocol):
    """A block of `finishing`, in whose context this runs."""

    def is_quiet(self) -> bool:
        """Whether `check_cancelled` does not raise yet."""


current_block: ContextVar[CurrentBlock | None] = ContextVar("trioreq.current_block", default=None)
"""The innermost block of `finishing` here. Threads that trio starts inherit it."""


@contextmanager
def entered(block: CurrentBlock) -> Iterator[None]:
    """Be in a block of `finishing`."""
    token = current_block.set(block)
    try:
        yield
    finally:
        with suppress(ValueError):  # an abandoned generator is closed in another context
            current_block.reset(token)


AsyncFunction = Callable[..., Awaitable[object]]

_making_state = Lock()  # two threads never make two for the same


class Session(Protocol):
    """Where the tasks of a client run."""

    def start_soon(self, async_fn: AsyncFunction, args: tuple[object, ...]) -> None:
        """Start a task, or do nothing if the client has disconnected."""


class _EndedSession:
    """That of a client that has disconnected."""

    def start_soon(self, async_fn: AsyncFunction, args: tuple[object, ...]) -> None:
        """Do nothing."""


class _DistantSession:
    """That of a client whose connection is in another process, and its state."""

    __slots__ = ()

    def start_soon(self, async_fn: AsyncFunction, args: tuple[object, ...]) -> None:
        """Refuse."""
        raise _distant("start_soon")

    def __getattr__(self, name: str) -> Never:
        if name.startswith("__"):  # what copy and pickle look for
            raise AttributeError(name)
        raise _distant("state")

    def __setattr__(self, name: str, value: object) -> Never:
        raise _distant("state")


def _distant(name: str) -> RuntimeError:
    return RuntimeError(
        f"request.client.{name} cannot be used in a worker process, since the connection is the "
        "server's: use threads, or an async handler"
    )


ENDED_SESSION: Final = _EndedSession()
DISTANT_SESSION: Final = _DistantSession()


class _HasSession:
    """What a `Peer` has beside its fields: it is neither compared, nor shown, nor pickled."""

    __slots__ = ("_session", "_state")


@dataclass(frozen=True, slots=True)
class Peer(_HasSession):
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

    @property
    def state(self) -> SimpleNamespace:
        """Attributes of your own, such as ``request.client.state.user = user``.

        They live as long as the connection, and all requests of the client share them; so do the
        threads that plain functions run in. Not in worker processes.
        """
        return _state_of(self)

    def start_soon(self, async_fn: AsyncFunction, *args: object) -> None:
        """Start a task that lives until the client disconnects, and is cancelled then.

        No end of a request cancels it. If it raises, the error is logged and the client's
        connection is closed; no other client is affected. If the client has disconnected by now,
        the task is not started.

        It runs in a copy of the context in which `serve` was called, where no request is being
        processed. Plain functions in threads may call this too; worker processes may not.

        Args:
            async_fn: Called with `args`.
            args: What it is called with.

        Raises:
            TypeError: `async_fn` is not an async function of these arguments.
            RuntimeError: The client is not that of a running server, or this is a worker process.

        Example:
            >>> async def handler(request):
            ...     if not hasattr(request.client.state, "prices"):
            ...         request.client.state.prices = {}
            ...         request.client.start_soon(keep_up_to_date, request.client.state.prices)
            ...     return request.client.state.prices.get(request.body, b"")
        """
        check_async_call("async_fn", async_fn, args)
        session: Session | None = getattr(self, "_session", None)
        if session is None:
            raise RuntimeError(
                "start_soon needs the client of a running server; in a test of a handler use "
                "make_request(..., nursery=nursery)"
            )
        session.start_soon(async_fn, args)

    def __str__(self) -> str:
        return f"client {self.id} ({self.socket_type or 'unknown socket type'} at {self.address})"


def set_session(peer: Peer, session: Session) -> None:
    """Say where the tasks of a client run."""
    object.__setattr__(peer, "_session", session)


def without_session(peer: Peer) -> Peer:
    """A copy of a client for another process than the server's."""
    copy = replace(peer)
    set_session(copy, DISTANT_SESSION)
    object.__setattr__(copy, "_state", DISTANT_SESSION)
    return copy


def _state_of(holder: Any) -> SimpleNamespace:  # noqa: ANN401  # what has a slot for it
    """The attributes that the user's code keeps there; made when first used."""
    try:
        state: SimpleNamespace = holder._state  # noqa: SLF001  # our own classes
    except AttributeError:
        with _making_state:
            if not hasattr(holder, "_state"):
                object.__setattr__(holder, "_state", SimpleNamespace())
            state = holder._state  # noqa: SLF001
    return state


class Request:
    """One request of one client, as a handler sees it. It cannot be changed, but for its `state`.

    The server makes it. A test of a handler can make one too.

    Args:
        client: The client that sent it.
        frames: The frames of the body, at least one.
        deadline: When it times out, on trio's clock in seconds; `math.inf` for never.

    Raises:
        TypeError: An argument is of the wrong type.
        ValueError: There are no frames.
    """

    __slots__ = ("_cancel_reason", "_client", "_deadline", "_frames", "_state")

    def __init__(self, client: Peer, frames: Frames, deadline: float = math.inf) -> None:
        check_instance("client", client, Peer, "a Peer")
        _check_frames(frames)
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
    def state(self) -> SimpleNamespace:
        """Attributes of your own, for this request alone."""
        return _state_of(self)

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
        if self._cancel_reason is not None and not is_finishing():
            raise RequestCancelled(self._cancel_reason)

    def replace(self, *, frames: Frames) -> Request:
        """The same request with another body, for what wraps a handler.

        It has the same client, deadline and state, and ends with this one.

        Args:
            frames: The frames of the body, at least one.

        Raises:
            TypeError: `frames` is not a tuple of bytes.
            ValueError: There are no frames.

        Example:
            >>> def unzipped(handler):
            ...     async def wrapper(request):
            ...         body = zlib.decompress(request.body)
            ...         return await handler(request.replace(frames=(body,)))
            ...     return wrapper
        """
        _check_frames(frames)
        return _ReplacedRequest(self, frames)

    def __repr__(self) -> str:
        reason = self.cancel_reason
        state = f", {reason}" if reason else ""
        return f"<Request of client {self._client.id}, {len(self._frames)} frames{state}>"


class _ReplacedRequest(Request):
    """A request with another body."""

    __slots__ = ("_original",)

    def __init__(self, original: Request, frames: Frames) -> None:
        self._original = original
        self._client = original.client
        self._frames = frames

    @property
    def state(self) -> SimpleNamespace:
        """As in `Request`."""
        return self._original.state

    @property
    def deadline(self) -> float:
        """As in `Request`."""
        return self._original.deadline

    @property
    def cancel_reason(self) -> CancelReason | None:
        """As in `Request`."""
        return self._original.cancel_reason

    def check_cancelled(self) -> None:
        """As in `Request`."""
        self._original.check_cancelled()


def is_finishing() -> bool:
    """Whether a block of `finishing` keeps `check_cancelled` quiet here."""
    block = current_block.get()
    return block is not None and block.is_quiet()


def _check_frames(frames: Frames) -> None:
    expected = "a tuple of bytes, one for each frame"
    check_instance("frames", frames, tuple, expected)
    if not frames:
        raise ValueError(f"frames must be {expected}, got (): there is at least one")
    for frame in frames:
        check_instance("each of frames", frame, bytes, "bytes")


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
