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
    from ._wire import Frames, Header

log = logging.getLogger("trioreq")

Name = tuple["Frames", int]

MESSAGES = {
    Code.MALFORMED: "a request is [envelope...] [empty frame] [body...]; a header in the envelope "
    "has a kind that is known and a correlation that is not in use",
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

    __slots__ = ("connection", "ended", "envelope", "header", "scope", "started", "timer")

    def __init__(
        self,
        connection: Connection,
        envelope: Frames,
        header: Header | None,
        frames: Frames,
        deadline: float,
    ) -> None:
        super().__init__(connection.link.client, frames, deadline)
        self.connection: Connection = connection
        self.envelope: Frames = envelope
        self.header: Header | None = header
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
            body = _wire.body("the handler returned", result)
        except TypeError as error:
            self.fail(error)
        else:
            self.connection.end(self, "replied", _wire.OK, body)

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
            self._end_with_error("failed", error.code, error.text)
        else:
            log.error("client %d: the handler failed", self.client.id, exc_info=error)
            text = f"the handler failed with {type(error).__name__}; the server's log has more"
            self._end_with_error("failed", Code.HANDLER_FAILED, text)

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
        if code is None or (code is Code.TIMED_OUT and self._client_knows_the_time()):
            self.connection.end(self, outcome)
        else:
            self._end_with_error(outcome, code, MESSAGES[code])
        if scope is not None:
            scope.cancel(reason=reason)

    def _client_knows_the_time(self) -> bool:
        """Whether it was the client's own deadline that has passed: it waits no more."""
        if self.header is None or not self.header.left:
            return False
        return self.header.left / 1000 <= self.connection.desk.timeout

    def _end_with_error(self, outcome: Outcome, code: str, text: str) -> None:
        body = _wire.error_body(code, text)
        self.connection.end(self, outcome, _wire.status_of(code), body)


class Connection:
    """One connection of one client."""

    __slots__ = ("calls", "desk", "gone", "link", "named", "told")

    def __init__(self, link: Link, desk: Desk) -> None:
        self.link: Link = link
        self.desk: Desk = desk
        self.calls: dict[Call, None] = {}  # in flight, the oldest first
        self.named: dict[Name, Call] = {}  # those of them that their client can name
        self.gone: bool = False
        self.told: set[str] = set()  # what the log has of it already

    def arrived(self, frames: Sequence[bytes]) -> None:
        """Make a request of what came, and let it run, or wait, or answer at once."""
        desk = self.desk
        parts = _wire.split_untrusted(frames)
        header = _wire.header_untrusted(parts[0]) if parts else None
        if parts and header and header.kind == _wire.CANCEL:
            self._cancel_named(_name(parts[0], header))
            return
        desk.tally.requests += 1
        if self.gone:
            desk.tally.ended["never_started"] += 1
            return
        if self.calls and self.link.client.socket_type == "REQ":
            self.cancel_all(CancelReason.SUPERSEDED)  # REQ is lock-step: it waits no more
        if parts is None:
            self._refuse_malformed(_wire.BARE_ENVELOPE, None)
            return
        envelope, body = parts
        if header is not None and (
            header.kind != _wire.REQUEST
            or header.correlation in (0, _wire.WANTS_HELLO)  # whose reply would be a hello
            or _name(envelope, header) in self.named
        ):
            self._refuse_malformed(envelope, header)
            return
        if desk.closing:
            self._refuse(envelope, header, "shut_down", Code.SHUTTING_DOWN)
            return
        call = Call(self, envelope, header, body, self._deadline(header))
        if not desk.turns.enter(self, call):
            self._log_once("overloaded", "has too many requests waiting; more are refused")
            self._refuse(envelope, header, "overloaded", Code.OVERLOADED)
            return
        if not self.calls:
            desk.connections[self] = None
        self.calls[call] = None
        desk.in_flight += 1
        if call.deadline != math.inf:
            call.timer = desk.deadlines.add(call.deadline, call)
        if header is not None:
            self.named[_name(envelope, header)] = call
            if header.correlation & _wire.WANTS_HELLO:
                self._say_hello(envelope)
        desk.wake()

    def left(self) -> None:
        """The connection is gone: so is all that was in flight for it."""
        self.gone = True
        self.cancel_all(CancelReason.DISCONNECTED)

    def cancel_all(self, reason: CancelReason) -> None:
        """End all that is in flight."""
        for call in tuple(self.calls):
            call.cancel(reason)

    def end(
        self, call: Call, outcome: Outcome, status: int = _wire.OK, body: Frames | None = None
    ) -> None:
        """The one place where a request ends: count it, let go of it, send its answer."""
        desk = self.desk
        call.ended = True
        call.scope = None
        desk.tally.ended[outcome] += 1
        desk.in_flight -= 1
        del self.calls[call]
        if not self.calls:
            del desk.connections[self]
        if call.header is not None:
            del self.named[_name(call.envelope, call.header)]
        if call.timer is not None:
            desk.deadlines.forget(call.timer)
        if not call.started:
            desk.turns.withdraw(self, call)
        if body is not None:
            self._send(_wire.answer(call.envelope, call.header, status, body))
        if desk.closing and not desk.in_flight:
            desk.idle.set()

    def drop_late(self, call: Call) -> None:
        """A handler has returned for a request that had ended."""
        if call.cancel_reason is CancelReason.DISCONNECTED:
            self.desk.tally.dropped_gone += 1

    def _deadline(self, header: Header | None) -> float:
        """When the time is up: the server's ceiling, or the client's deadline if that is first."""
        left = self.desk.timeout
        if header is not None and header.left:
            left = min(left, header.left / 1000)
        return math.inf if left == math.inf else trio.current_time() + left

    def _cancel_named(self, name: Name) -> None:
        """The client takes a request back. If it has ended meanwhile, that is no fault."""
        call = self.named.get(name)
        if call is not None:
            call.cancel(CancelReason.CANCELLED)

    def _say_hello(self, envelope: Frames) -> None:
        """Let the client know, before its first reply, that it may cancel."""
        hello = _wire.Header(_wire.REQUEST, _wire.WANTS_HELLO)
        self.link.send(_wire.answer(envelope, hello, _wire.OK, (b"",)))

    def _refuse_malformed(self, envelope: Frames, header: Header | None) -> None:
        self._log_once("malformed", "sent what is no request; it is told so each time")
        self._refuse(envelope, header, "malformed", Code.MALFORMED)

    def _refuse(
        self, envelope: Frames, header: Header | None, outcome: Outcome, code: Code
    ) -> None:
        self.desk.tally.ended[outcome] += 1
        body = _wire.error_body(code, MESSAGES[code])
        self._send(_wire.answer(envelope, header, _wire.status_of(code), body))

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


def _name(envelope: Frames, header: Header) -> Name:
    """What names a request on its connection, which many clients may share behind a proxy."""
    return envelope[:-2], header.correlation & ~_wire.WANTS_HELLO


_ENDS: dict[CancelReason, tuple[Outcome, Code | None]] = {
    CancelReason.DISCONNECTED: ("cancelled_by_disconnect", None),
    CancelReason.SUPERSEDED: ("superseded", None),
    CancelReason.DEADLINE: ("timed_out", Code.TIMED_OUT),
    CancelReason.CANCELLED: ("cancelled_by_client", None),
    CancelReason.SHUTDOWN: ("shut_down", Code.SHUTTING_DOWN),
}


def _expire(call: Call) -> None:
    call.cancel(CancelReason.DEADLINE)
