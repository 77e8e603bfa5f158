"""One client: its requests in flight, and what ends them.

A request ends exactly once, in one of the ways that `Outcome` names: with its handler's reply,
or before it, when the client goes, gives it up, runs out of time, or the server stops. What
ends it decides in the same breath what is sent, so nothing is ever sent for it afterwards,
whatever its handler still does. The handler is told by its cancel scope, or by the request's
reason if it is a plain function.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import trio

from . import _wire
from ._deadlines import Deadlines, Timer
from ._errors import CancelReason, Code, ReplyError, RequestCancelled
from ._request import Request
from ._statistics import Outcome, Tally
from ._transport import Link, Sent
from ._turns import Turns

if TYPE_CHECKING:
    from ._wire import Frames

log = logging.getLogger("trioreq")

MESSAGES = {
    Code.MALFORMED: "a request is [envelope...] [empty frame] [body...]: no body was found",
    Code.OVERLOADED: "too many of your requests wait already; wait for replies before you send",
    Code.SHUTTING_DOWN: "the server is shutting down",
    Code.TIMED_OUT: "the request took longer than the server allows",
}


class Desk:
    """What all connections of a server share.

    Attributes:
        closing: True once nothing new is to be started.
        connections: Those with requests in flight.
        turns: Who may run.
        wake: Called when a turn was granted.
    """

    def __init__(self, turns: Turns[Connection, Call], timeout: float) -> None:
        self.turns = turns
        self.timeout = timeout
        self.tally: Tally = Tally()
        self.deadlines: Deadlines[Call] = Deadlines(_expire)
        self.connections: dict[Connection, None] = {}
        self.in_flight = 0
        self.closing = False
        self.idle: trio.Event = trio.Event()
        self.wake: Callable[[], None] = lambda: None


class Call(Request):
    """A request, as the server sees it."""

    __slots__ = ("connection", "ended", "envelope", "scope", "started", "timer")

    def __init__(
        self, connection: Connection, envelope: Frames, frames: Frames, deadline: float
    ) -> None:
        super().__init__(connection.link.client, frames, deadline)
        self.connection: Connection = connection
        self.envelope: Frames = envelope
        self.started: bool = False
        self.ended: bool = False
        self.scope: trio.CancelScope | None = None
        self.timer: Timer[Call] | None = None

    def begin(self, scope: trio.CancelScope | None) -> None:
        """Its handler starts now, in this scope if a scope can stop it."""
        self.started = True
        self.scope = scope

    def finish(self, result: object) -> None:
        """Its handler has returned."""
        if self.ended:
            self.connection.drop_late(self)
            return
        try:
            body = _wire.reply_body(result)
        except TypeError as error:
            self.fail(error)
        else:
            self.connection.end(self, "replied", body)

    def fail(self, error: BaseException) -> None:
        """Its handler has raised."""
        if self.ended:
            if not isinstance(error, RequestCancelled):
                log.error(
                    "client %d: the handler failed after its request had ended (%s)",
                    self.client.id,
                    self.cancel_reason,
                    exc_info=error,
                )
        elif isinstance(error, ReplyError):
            log.debug("client %d: answered with %s", self.client.id, error)
            self.connection.end(self, "failed", _wire.error_body(error.code, error.text))
        else:
            log.error("client %d: the handler failed", self.client.id, exc_info=error)
            text = f"the handler failed with {type(error).__name__}; the server's log has more"
            self.connection.end(self, "failed", _wire.error_body(Code.HANDLER_FAILED, text))

    def cancel(self, reason: CancelReason) -> None:
        """End it now, for this reason."""
        if self.ended:
            return
        self._cancel_reason = reason
        outcome, code = _ENDS[reason]
        if reason is CancelReason.DISCONNECTED and not self.started:
            outcome = "never_started"
        log.debug("client %d: %s, %s", self.client.id, outcome, reason)
        scope = self.scope
        self.connection.end(self, outcome, _wire.error_body(code, MESSAGES[code]) if code else None)
        if scope is not None:
            scope.cancel(reason=reason)


class Connection:
    """One connection of one client."""

    __slots__ = ("calls", "desk", "gone", "link", "told")

    def __init__(self, link: Link, desk: Desk) -> None:
        self.link: Link = link
        self.desk: Desk = desk
        self.calls: dict[Call, None] = {}  # in flight, the oldest first
        self.gone: bool = False
        self.told: set[str] = set()  # what the log has of it already

    def arrived(self, frames: Sequence[bytes]) -> None:
        """Make a request of what came, and let it run, or wait, or answer at once."""
        desk = self.desk
        desk.tally.requests += 1
        if self.gone:
            desk.tally.ended["never_started"] += 1
            return
        if self.calls and self.link.client.socket_type == "REQ":
            self.cancel_all(CancelReason.SUPERSEDED)  # REQ is lock-step: it waits no more
        parts = _wire.split_untrusted(frames)
        if parts is None:
            self._log_once("malformed", "sent what is no request; it is told so each time")
            self._refuse(_wire.BARE_ENVELOPE, "malformed", Code.MALFORMED)
            return
        envelope, body = parts
        if desk.closing:
            self._refuse(envelope, "shut_down", Code.SHUTTING_DOWN)
            return
        deadline = math.inf if desk.timeout == math.inf else trio.current_time() + desk.timeout
        call = Call(self, envelope, body, deadline)
        if not desk.turns.enter(self, call):
            self._log_once("overloaded", "has too many requests waiting; more are refused")
            self._refuse(envelope, "overloaded", Code.OVERLOADED)
            return
        if not self.calls:
            desk.connections[self] = None
        self.calls[call] = None
        desk.in_flight += 1
        if deadline != math.inf:
            call.timer = desk.deadlines.add(deadline, call)
        desk.wake()

    def left(self) -> None:
        """The connection is gone: so is all that was in flight for it."""
        self.gone = True
        self.cancel_all(CancelReason.DISCONNECTED)

    def cancel_all(self, reason: CancelReason) -> None:
        """End all that is in flight."""
        for call in tuple(self.calls):
            call.cancel(reason)

    def end(self, call: Call, outcome: Outcome, body: Frames | None) -> None:
        """The one place where a request ends: count it, let go of it, send its answer."""
        desk = self.desk
        call.ended = True
        call.scope = None
        desk.tally.ended[outcome] += 1
        desk.in_flight -= 1
        del self.calls[call]
        if not self.calls:
            del desk.connections[self]
        if call.timer is not None:
            desk.deadlines.forget(call.timer)
        if not call.started:
            desk.turns.withdraw(self, call)
        if body is not None:
            self._send(call.envelope + body)
        if desk.closing and not desk.in_flight:
            desk.idle.set()

    def drop_late(self, call: Call) -> None:
        """A handler has returned for a request that had ended."""
        if call.cancel_reason is CancelReason.DISCONNECTED:
            self.desk.tally.dropped_gone += 1

    def _refuse(self, envelope: Frames, outcome: Outcome, code: Code) -> None:
        self.desk.tally.ended[outcome] += 1
        self._send(envelope + _wire.error_body(code, MESSAGES[code]))

    def _send(self, frames: Frames) -> None:
        tally = self.desk.tally
        match self.link.send(frames):
            case Sent.OUT:
                tally.sent += 1
            case Sent.GONE:
                tally.dropped_gone += 1
            case Sent.FULL:
                tally.dropped_full += 1
                self._log_once(
                    "stalled", "does not read its replies; what it has no room for is dropped"
                )

    def _log_once(self, topic: str, text: str) -> None:
        if topic not in self.told:
            self.told.add(topic)
            client = self.link.client
            log.warning(
                "client %d (%s at %s) %s", client.id, client.socket_type, client.address, text
            )


_ENDS: dict[CancelReason, tuple[Outcome, Code | None]] = {
    CancelReason.DISCONNECTED: ("cancelled_by_disconnect", None),
    CancelReason.SUPERSEDED: ("superseded", None),
    CancelReason.DEADLINE: ("timed_out", Code.TIMED_OUT),
    CancelReason.CANCELLED: ("cancelled_by_client", None),
    CancelReason.SHUTDOWN: ("shut_down", Code.SHUTTING_DOWN),
}


def _expire(call: Call) -> None:
    call.cancel(CancelReason.DEADLINE)
