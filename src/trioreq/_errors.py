"""Every exception of trioreq, and every error code on the wire.

Exception
  TrioreqError
    EndpointError       the caller's mistake: an address that cannot be served or connected to
    KeyFileError        the caller's mistake: a key file that cannot be used
    WorkersFailed       the caller's mistake: worker processes, or Ray, cannot be started
    ReplyError          the server's reply: an error, with a code and a text
    RequestTimeout      the request timed out (also a trio.TooSlowError)
    NotConnected        no connection in time: nothing was sent (also a trio.TooSlowError)
    Refused             the server refuses this client: nothing was sent
    ConnectionLost      the outcome is unknown (also a trio.BrokenResourceError)
    UnexpectedReply     a reply that does not fit the request
BaseException
  RequestCancelled      the request of this plain function has ended
"""

from __future__ import annotations

import copyreg
from enum import StrEnum

import trio

from ._checks import check_instance, shown


class Code(StrEnum):
    """Why a request was answered with an error instead of a reply."""

    HANDLER_FAILED = "handler-failed"
    TIMED_OUT = "timed-out"
    OVERLOADED = "overloaded"
    MALFORMED = "malformed"
    SHUTTING_DOWN = "shutting-down"
    STREAMING = "streaming"


class CancelReason(StrEnum):
    """Why a request ended before its handler did."""

    DISCONNECTED = "disconnected"
    """Its client closed its connection, was killed or evicted, or was silent past the heartbeat."""
    SUPERSEDED = "superseded"
    """Its client, a REQ socket, has sent another request."""
    DEADLINE = "deadline"
    """It has timed out."""
    CANCELLED = "cancelled"
    """Its client has cancelled it."""
    SHUTDOWN = "shutdown"
    """The server is shutting down."""


class TrioreqError(Exception):
    """The base of trioreq's exceptions."""

    def __reduce__(self) -> tuple[object, ...]:
        """Copy and pickle it unchanged.

        Python would call the class with `args`, which fails for many classes with an `__init__`,
        such as a user's subclass of `ReplyError`.
        """
        return copyreg.__newobj__, (type(self), *self.args), self.__dict__  # type: ignore[attr-defined]


class EndpointError(TrioreqError):
    """An address that cannot be served or connected to; the message says why and what to do."""


class KeyFileError(TrioreqError):
    """A file of keys that cannot be used; the message says why and what to do."""


class WorkersFailed(TrioreqError):
    """Worker processes, or Ray, cannot be started: for example because an initializer fails."""


class ReplyError(TrioreqError):
    """An error reply.

    A handler raises it to answer its client with a code and a text of its own, and without
    a traceback in the server's log. It may be raised in a nursery: the exception groups of
    nurseries are unwrapped if it is the only exception in them.

    Args:
        code: A short word for programs, such as ``not-found``: ASCII, printable, no spaces.
        text: A sentence for humans.

    Raises:
        TypeError: One of them is not a str.
        ValueError: The code is empty, or has an invalid character.

    Example:
        >>> raise ReplyError("not-found", "there is no image 17")
        Traceback (most recent call last):
        ...
        trioreq.ReplyError: not-found: there is no image 17
    """

    def __init__(self, code: str, text: str = "") -> None:
        expected = "one word of printable ASCII, such as 'not-found'"
        check_instance("code", code, str, expected)
        if not code or not all("!" <= letter <= "~" for letter in code):
            raise ValueError(f"code must be {expected}, got {shown(code)}")
        check_instance("text", text, str, "a str", "use str() for an exception")
        super().__init__(code, text)
        self.code: str = str(code)
        self.text = text

    def __str__(self) -> str:
        return f"{self.code}: {self.text}" if self.text else self.code


class RequestTimeout(TrioreqError, trio.TooSlowError):
    """There was no reply in time. The server cancels the request."""


class NotConnected(TrioreqError, trio.TooSlowError):
    """There was no connection in time. Nothing was sent, so it is safe to retry."""


class Refused(TrioreqError):
    """The server refuses this client. Nothing was sent; the message has the known reason.

    The client still retries every few seconds, since the server's allow-list may change.
    """


class ConnectionLost(TrioreqError, trio.BrokenResourceError):
    """The connection was lost while the request was in flight; its outcome is unknown.

    The server may have finished it, may be cancelling it, or may never have received it.
    """


class UnexpectedReply(TrioreqError):
    """The reply does not fit the request; `frames` has it."""

    def __init__(self, text: str, frames: tuple[bytes, ...]) -> None:
        super().__init__(text)
        self.frames = frames


class RequestCancelled(BaseException):
    """The request of this plain function has ended, and its result is not needed.

    Raised by `check_cancelled`. Like `trio.Cancelled` it is not an `Exception`, so that
    ``except Exception`` does not swallow it. Do not catch it.

    Attributes:
        reason: Why the request ended.
    """

    def __init__(self, reason: CancelReason) -> None:
        super().__init__(reason)
        self.reason = reason

    def __str__(self) -> str:
        return self.reason.value
