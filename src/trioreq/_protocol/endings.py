"""The ways in which a request ends: one table for statistics, log and wire.

Each request ends in exactly one of these ways.
"""

from __future__ import annotations

from dataclasses import dataclass

from .._errors import CancelReason, Code
from . import envelope

OTHER_STATUS = 255
"""The status of an error reply whose code is the handler's own."""


@dataclass(frozen=True, slots=True, eq=False)
class Ending:
    """One way in which a request ends.

    Attributes:
        outcome: The field of `Statistics` that counts it.
        log: Its text in the log.
        reason: The handler's `Request.cancel_reason`; None if it was not cancelled.
        code: The code of the error reply; None if no error is sent.
        status: The status of that reply, in the header of a client that has one.
        text: The text of that reply, for humans.
    """

    outcome: str
    log: str
    reason: CancelReason | None = None
    code: Code | None = None
    status: int = 0
    text: str = ""


REPLIED = Ending("replied", "replied")
FAILED = Ending(
    "failed",
    "handler failed",
    code=Code.HANDLER_FAILED,
    status=1,
    text="the handler failed with {error}; the server's log has more",
)
ERROR_REPLY = Ending("failed", "error reply")
TIMED_OUT = Ending(
    "timed_out",
    "request cancelled: timed out",
    CancelReason.DEADLINE,
    Code.TIMED_OUT,
    2,
    "the request took longer than the server allows",
)
EXPIRED = Ending("timed_out", "request cancelled: client's deadline passed", CancelReason.DEADLINE)
SUPERSEDED = Ending(
    "superseded", "request cancelled: REQ client sent another", CancelReason.SUPERSEDED
)
DISCONNECTED = Ending(
    "cancelled_by_disconnect",
    "request cancelled: client disconnected",
    CancelReason.DISCONNECTED,
)
NEVER_STARTED = Ending(
    "never_started", "request dropped: client disconnected", CancelReason.DISCONNECTED
)
CANCELLED = Ending(
    "cancelled_by_client", "request cancelled: client cancelled it", CancelReason.CANCELLED
)
OVERLOADED = Ending(
    "overloaded",
    "request refused: too many requests of this client are queued",
    code=Code.OVERLOADED,
    status=3,
    text="too many of your requests are queued; wait for replies before you send more",
)
MALFORMED = Ending(
    "malformed",
    "malformed request",
    code=Code.MALFORMED,
    status=4,
    text="a request is [envelope...] [empty frame] [body...]; the envelope has at most 64 frames "
    "and 4096 bytes; a header in it must have a known kind and a correlation that is not in use; "
    "the body of credit is one frame of 8 bytes",
)
# Status 5 is reserved for a request that is too large.
SHUT_OUT = Ending(
    "shut_down",
    "request refused: server is shutting down",
    CancelReason.SHUTDOWN,
    Code.SHUTTING_DOWN,
    envelope.NOT_STARTED,
    "the server is shutting down",
)
SHUT_DOWN = Ending(
    "shut_down",
    "request cancelled: server is shutting down",
    CancelReason.SHUTDOWN,
    Code.SHUTTING_DOWN,
    6,
    "the server is shutting down",
)

STREAMING = Ending(
    "malformed",
    "request refused: the handler makes streams",
    code=Code.STREAMING,
    status=7,
    text="this server answers with streams of replies: use client.stream of trioreq's client, "
    "trioreq-client --stream, a stream request by docs/protocol.md, or a DEALER socket",
)

ENDINGS = (
    REPLIED,
    FAILED,
    ERROR_REPLY,
    TIMED_OUT,
    EXPIRED,
    SUPERSEDED,
    DISCONNECTED,
    NEVER_STARTED,
    CANCELLED,
    OVERLOADED,
    MALFORMED,
    SHUT_OUT,
    SHUT_DOWN,
    STREAMING,
)

# What a handler answers may be half done, so `SHUT_DOWN` follows `SHUT_OUT`, which has its code.
_STATUS: dict[str, int] = {e.code: e.status for e in ENDINGS if e.code is not None}


def status_of(code: str) -> int:
    """The status of an error reply, by its code."""
    return _STATUS.get(code, OTHER_STATUS)
