"""The exceptions of requests that fail. Pure."""

from __future__ import annotations

from .._errors import (
    Code,
    ConnectionLost,
    NotConnected,
    Refused,
    ReplyError,
    RequestTimeout,
    UnexpectedReply,
)
from .._protocol import envelope as wire
from .._protocol.envelope import Frames, Header
from . import states


def not_connected(endpoint: str, state: states.State, seconds: float) -> NotConnected | Refused:
    """There was no connection within some seconds. The state says why."""
    match state:
        case states.Refused(reason=reason):
            return Refused(f"{endpoint}: {reason}")
        case states.Connecting(hint=hint) | states.Handshaking(hint=hint):
            return NotConnected(f"no connection to {endpoint} in {round(seconds, 3):g} s: {hint}")
        case _:  # it has just connected
            return NotConnected(f"no connection to {endpoint} in {round(seconds, 3):g} s")


def connection_lost(endpoint: str) -> ConnectionLost:
    """The connection was lost while a request was in flight."""
    return ConnectionLost(
        f"the connection to {endpoint} broke; whether the request was done is unknown"
    )


def timed_out(endpoint: str, seconds: float) -> RequestTimeout:
    """There was no reply in time."""
    return RequestTimeout(f"{endpoint} has not answered within {round(seconds, 3):g} s")


def reported_error(
    endpoint: str, header: Header, body: Frames
) -> ReplyError | RequestTimeout | UnexpectedReply:
    """The server has answered with an error."""
    error = wire.error_untrusted(body)
    if error is None or not error[0]:
        return UnexpectedReply(f"an error of status {header.kind} without a code", body)
    code, text = error
    if code == Code.TIMED_OUT:
        return RequestTimeout(f"{endpoint} answered: {text}")
    try:
        return ReplyError(code, text)
    except ValueError:
        return UnexpectedReply(f"an error with the code {code!r}", body)


def only_frame(reply: Frames) -> bytes:
    """The frame of a reply that has one.

    Raises:
        UnexpectedReply: It has several.
    """
    if len(reply) != 1:
        raise UnexpectedReply(
            f"the reply has {len(reply)} frames, not one: use request_multipart", reply
        )
    return reply[0]
