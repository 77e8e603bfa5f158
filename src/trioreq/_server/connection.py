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
from collections.abc import Callable
from typing import TYPE_CHECKING, Protocol

import trio

from .._errors import CancelReason, Code, ReplyError, RequestCancelled
from .._protocol import envelope as wire
from .._protocol import packs
from .._protocol.fair_queue import Turns
from .._request import Peer, Request
from .._transport.interfaces import Carrier, Link, Unsent
from .deadlines import Deadlines, Timer
from .tally import Outcome, Tally

if TYPE_CHECKING:
    from .._protocol.envelope import Frames, Header

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
        turns: Who may run.
        timeout: Seconds that a request may take; infinity if it is not `timed`.
        connections: Those that have spoken and are not gone, the oldest first.
        closing: True once nothing new is to be started.
        idle: Set when nothing is in flight any more, once it is closing.
        carrier: What brings requests, and takes replies.
        stop: Ends the server.
    """

    def __init__(
        self,
        turns: Turns[Connection, Call],
        timeout: float,
        carrier: Carrier,
        stop: Callable[[], None],
    ) -> None:
        self.turns = turns
        self.timeout = timeout
        self.timed: bool = timeout != math.inf
        self.carrier = carrier
        self.stop = stop
        self.tally: Tally = Tally()
        self.deadlines: Deadlines[Call] = Deadlines(_expire)
        self.connections: dict[Connection, None] = {}
        self.closing = False
        self.idle: trio.Event = trio.Event()

    @property
    def in_flight(self) -> int:
        """Requests that have not ended."""
        return self.tally.requests - sum(self.tally.ended.values())

    def see_if_idle(self) -> None:
        """A request has ended, or was refused: it may have been the last one."""
        if self.closing and not self.in_flight:
            self.idle.set()

    def deadline(self, header: Header | None) -> float:
        """When the time of a request is up: its own, or the server's ceiling if that is first."""
        left = self.timeout
        if header is not None and header.left:
            left = min(left, header.left / 1000)
        return math.inf if left == math.inf else trio.current_time() + left


class Scope(Protocol):
    """What stops a handler, as `trio.CancelScope` does; see `UNSTOPPABLE`."""

    def cancel(self, reason: str | None = None) -> None:
        """Stop it."""


class Unstoppable:
    """What stops a plain function in its thread: nothing does."""

    def cancel(self, reason: str | None = None) -> None:
        """Do nothing."""


UNSTOPPABLE = Unstoppable()


class Call(Request):
    """A request, as the server sees it.

    Attributes:
        scope: What its handler is stopped with; None before it is started.
        ended: Whether it has ended, which it does exactly once.
        name: What its client names it by; unset where it has no header.
    """

    __slots__ = ("connection", "ended", "envelope", "header", "name", "scope", "timer")

    name: Name

    def __init__(
        self,
        connection: Connection,
        envelope: Frames,
        header: Header | None,
        frames: Frames,
        deadline: float,
    ) -> None:
        # What `Request` has is set here too: a call of its own costs as much as all of this.
        self._client = connection.client
        self._frames = frames
        self._deadline = deadline
        self._cancel_reason = None
        self.connection: Connection = connection
        self.envelope: Frames = envelope
        self.header: Header | None = header
        self.scope: Scope | None = None
        self.ended: bool = False
        self.timer: Timer[Call] | None = None

    def finish(self, result: object) -> bool:
        """Its handler has returned; returns False if the request had ended before."""
        if self.ended:
            self.connection.drop_late(self)
            return False
        if type(result) is bytes:  # what most return
            self.connection.end(self, "replied", (result,))
            return True
        try:
            body = wire.body("the handler returned", result)
        except TypeError as error:
            self.fail(error)
        else:
            self.connection.end(self, "replied", body)
        return True

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
        scope = self.scope  # after the reason is there to be read: threads do it the other way
        if reason is CancelReason.DISCONNECTED and scope is None:
            outcome = "never_started"
        log.debug("client %d: %s, %s", self.client.id, outcome, reason)
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
        body = wire.error_body(code, text)
        self.connection.end(self, outcome, body, wire.status_of(code))


class Connection:
    """One connection of one client."""

    __slots__ = ("calls", "client", "desk", "gone", "link", "lock_step", "named", "told")

    def __init__(self, link: Link, desk: Desk) -> None:
        self.link: Link = link
        self.desk: Desk = desk
        self.client: Peer = link.client
        self.lock_step: bool = self.client.socket_type == "REQ"
        self.calls: dict[Call, None] = {}  # in flight, the oldest first
        self.named: dict[Name, Call] = {}  # those of them that their client can name
        self.gone: bool = False
        self.told: set[str] = set()  # what the log has of it already
        desk.connections[self] = None

    def arrived(self, frames: list[bytes]) -> None:
        """Make a request of what came, and let it run, or wait, or answer at once."""
        desk = self.desk
        envelope, header = wire.BARE_ENVELOPE, None
        name: Name = ((), 0)
        body: Frames
        if len(frames) == 2 and not frames[0]:  # what every REQ sends that has one frame
            body = (frames[1],)
        else:
            if len(frames) == 1 and (pack := packs.unpack_untrusted(frames[0])) is not None:
                self.link.max_pack_size, messages = pack
                for message in messages:
                    self.arrived(message)
                return
            envelope, header, body = wire.request_untrusted(frames)
            if header is not None:
                name = _name(envelope, header)
                if header.kind == wire.CANCEL:
                    self._cancel_named(name)
                    return
        desk.tally.requests += 1
        if self.gone:
            desk.tally.ended["never_started"] += 1
            return
        if self.calls and self.lock_step:
            self.cancel_all(CancelReason.SUPERSEDED)  # it waits no more
        if not body or (header is not None and self._is_malformed(header, name)):
            self._log_once("malformed", "sent what is no request; it is told so each time")
            self._refuse(envelope, header, "malformed", Code.MALFORMED)
            return
        if desk.closing:
            self._refuse(envelope, header, "shut_down", Code.SHUTTING_DOWN)
            return
        timed = desk.timed or (header is not None and header.left)
        deadline = desk.deadline(header) if timed else math.inf
        call = Call(self, envelope, header, body, deadline)
        if not desk.turns.enter(self, call):
            self._log_once("overloaded", "has too many requests waiting; more are refused")
            self._refuse(envelope, header, "overloaded", Code.OVERLOADED)
            return
        self.calls[call] = None
        if deadline != math.inf:
            call.timer = desk.deadlines.add(deadline, call)
        if header is not None:
            call.name = name
            self.named[name] = call
            if header.correlation & wire.WANTS_HELLO:
                self._say_hello(envelope)

    def left(self) -> None:
        """The connection is gone: so is all that was in flight for it."""
        self.gone = True
        self.desk.connections.pop(self, None)
        self.cancel_all(CancelReason.DISCONNECTED)

    def cancel_all(self, reason: CancelReason) -> None:
        """End all that is in flight."""
        for call in tuple(self.calls):
            call.cancel(reason)

    def unsent(self, why: Unsent) -> None:
        """A message for it was thrown away."""
        tally = self.desk.tally
        if why is Unsent.GONE:
            tally.dropped_gone += 1
        else:
            tally.dropped_full += 1
            self._log_once("stalled", "does not read its replies; what has no room is dropped")

    def end(
        self, call: Call, outcome: Outcome, body: Frames | None = None, status: int = wire.OK
    ) -> None:
        """The one place where a request ends: count it, let go of it, send its answer."""
        desk = self.desk
        call.ended = True
        desk.tally.ended[outcome] += 1
        del self.calls[call]
        if call.header is not None:
            del self.named[call.name]
        if call.timer is not None:
            desk.deadlines.forget(call.timer)
        if call.scope is None:
            desk.turns.withdraw(self, call)
        if body is not None:
            envelope, header = call.envelope, call.header
            self.link.send(
                envelope + body if header is None else wire.answer(envelope, header, status, body)
            )
        if desk.closing:
            desk.see_if_idle()

    def drop_late(self, call: Call) -> None:
        """A handler has returned for a request that had ended."""
        if call.cancel_reason is CancelReason.DISCONNECTED:
            self.desk.tally.dropped_gone += 1

    def _cancel_named(self, name: Name) -> None:
        """The client takes a request back. If it has ended meanwhile, that is no fault."""
        call = self.named.get(name)
        if call is not None:
            call.cancel(CancelReason.CANCELLED)

    def _say_hello(self, envelope: Frames) -> None:
        """Let the client know, before its first reply, that it may cancel and send packs."""
        hello = wire.Header(wire.REQUEST, wire.WANTS_HELLO)
        # A proxy between the two would put its frames before a pack, and not into it.
        told = packs.HELLO.pack(self.link.own_max_pack_size) if len(envelope) == 2 else b""
        self.link.send(wire.answer(envelope, hello, wire.OK, (told,)))

    def _is_malformed(self, header: Header, name: Name) -> bool:
        # The reply of a correlation of 0 would be a hello.
        return header.kind != wire.REQUEST or not name[1] or name in self.named

    def _refuse(
        self, envelope: Frames, header: Header | None, outcome: Outcome, code: Code
    ) -> None:
        self.desk.tally.ended[outcome] += 1
        body = wire.error_body(code, MESSAGES[code])
        self.link.send(wire.answer(envelope, header, wire.status_of(code), body))
        self.desk.see_if_idle()  # it counted as in flight when it gave up an older one

    def _log_once(self, topic: str, text: str) -> None:
        if topic not in self.told:
            self.told.add(topic)
            client = self.client
            log.warning(
                "client %d (%s at %s) %s", client.id, client.socket_type, client.address, text
            )


def _name(envelope: Frames, header: Header) -> Name:
    """What names a request on its connection, which many clients may share behind a proxy."""
    return envelope[:-2], header.correlation & wire.CORRELATION


_ENDS: dict[CancelReason, tuple[Outcome, Code | None]] = {
    CancelReason.DISCONNECTED: ("cancelled_by_disconnect", None),
    CancelReason.SUPERSEDED: ("superseded", None),
    CancelReason.DEADLINE: ("timed_out", Code.TIMED_OUT),
    CancelReason.CANCELLED: ("cancelled_by_client", None),
    CancelReason.SHUTDOWN: ("shut_down", Code.SHUTTING_DOWN),
}


def _expire(call: Call) -> None:
    call.cancel(CancelReason.DEADLINE)
