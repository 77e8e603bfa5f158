"""Many requests on one connection: a client's pending requests, and the state of its connection.

Each request has a correlation; replies come in any order. A request ends with its reply, with the
loss of the connection, or when its caller times out or is cancelled. In the last case a cancel is
sent, if the server speaks the header: a plain REP server would take it for a request. A server says
whether it does in its hello, and in every reply; until then, cancels wait.

All state changes in synchronous code, never across a checkpoint.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import NoReturn, Protocol

import trio
from trio_util import AsyncValue

from .._log import log
from .._protocol import envelope as wire
from .._protocol import packs
from .._protocol.envelope import Frames
from .._protocol.hello import unpack_untrusted
from .._statistics import ClientStatistics, Timings
from .._transport.line import Event, HandshakeSucceeded, Line, Lost
from . import errors
from .send_buffer import SendBuffer
from .states import Closed, Connected, Connecting, Negotiation, Refused, State, next_state


class PendingRequest(Protocol):
    """A request, through all its attempts. Each attempt ends with one call of a method.

    Attributes:
        body: The frames to send.
        deadline: When its caller stops waiting for it, in trio's time; infinity for never.
        seconds: The time between its creation and the deadline.
        correlation: The one that `Multiplexer.send` returned last; 0 before the first attempt, and
            while it is certain that the handler was never called.
    """

    body: Frames
    deadline: float
    seconds: float
    correlation: int

    def replied(self, body: Frames) -> None:
        """The server has replied."""

    def failed(self, error: Exception) -> None:
        """There is no reply to this attempt."""

    def not_started(self) -> None:
        """The server has not started it: it is to be sent again, on another connection."""


class PendingStream(ABC):
    """A request that may have any number of replies; a `PendingRequest`.

    The one call that ends it may also be `ended`.
    """

    @abstractmethod
    def more(self, body: Frames) -> None:
        """The server has sent a reply, and more messages follow."""

    @abstractmethod
    def ended(self) -> None:
        """The server has sent all replies."""


class Multiplexer:
    """The pending requests of one client, and the state of its connection.

    Args:
        line: Carries the messages.
        endpoint: The server's name in errors.
        connect_timeout: Seconds that a request waits for a connection; infinity for no limit.
        replace: Called when another connection is to take new requests. This is a call upwards: it
            takes effect in the step in which the go-away is read.

    Attributes:
        counts: What the client and those before have done, by the fields of `ClientStatistics`.
    """

    def __init__(
        self, line: Line, endpoint: str, connect_timeout: float, replace: Callable[[], None]
    ) -> None:
        self.line = line
        self._replace = replace
        self._retired = False
        self._ended = trio.Event()  # it is retired, and no request is pending any more
        self._endpoint = endpoint
        self._connect_timeout = connect_timeout
        self._state: AsyncValue[State] = AsyncValue(Connecting(trio.current_time()))
        self._buffer = SendBuffer(line)
        self._pending: dict[int, PendingRequest] = {}  # by correlation
        self._correlation = 0  # the last
        self.counts: dict[str, int] = dict.fromkeys(ClientStatistics.__dataclass_fields__, 0)
        self._timings: Timings | None = None

    @property
    def state(self) -> State:
        """The state of the connection."""
        state: State = self._state.value
        return state

    @property
    def timings(self) -> Timings | None:
        """How long the newest connection took to make, and when; None while there was none."""
        return self._timings

    @property
    def in_flight(self) -> int:
        """Requests that were sent and have not ended."""
        return len(self._pending)

    async def run(self) -> None:
        """Handle the events and messages of the connection, until it is retired and has ended."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._buffer.keep_flushing)
            nursery.start_soon(self._keep_receiving)
            nursery.start_soon(self._follow_connection)
            await self._ended.wait()
            nursery.cancel_scope.cancel()

    def successor(self) -> Multiplexer:
        """The multiplexer for new requests, when this one is retired."""
        other = Multiplexer(
            self.line.successor(), self._endpoint, self._connect_timeout, self._replace
        )
        other.counts, other._timings = self.counts, self._timings
        other._correlation = self._correlation
        return other

    @trio.lowlevel.enable_ki_protection  # a message that was received must be handled
    async def _keep_receiving(self) -> NoReturn:
        while True:
            for frames in await self.line.receive():
                self.take_message(frames)

    @trio.lowlevel.enable_ki_protection  # an event must be handled too
    async def _follow_connection(self) -> NoReturn:
        while True:
            for event in await self.line.events():
                self.take_event(event)

    # Requests.

    def send(self, request: PendingRequest, kind: int = wire.REQUEST) -> int:
        """Send a request, or a stream request, by its kind.

        Returns:
            The correlation of this attempt; 0 if there is no connection, and nothing was sent.

        Raises:
            trio.ClosedResourceError: The client is closed.
        """
        state = self._state.value
        if type(state) is not Connected:
            self.check_open()
            return 0
        negotiation = state.negotiation
        self._correlation += 1
        correlation = on_wire = self._correlation
        # One request at a time asks for a hello: a REP server answers, and does not send one.
        if negotiation.speaks_header is None and negotiation.asked_by not in self._pending:
            negotiation.asked_by = correlation
            on_wire |= wire.WANTS_HELLO
        deadline = request.deadline
        left = 0 if deadline == math.inf else wire.milliseconds(deadline - trio.current_time())
        header = wire.HEADER.pack(wire.MAGIC, kind, on_wire, left)
        self._buffer.append((header, wire.DELIMITER, *request.body), negotiation.max_pack_size)
        self.counts["requests"] += 1
        if request.correlation:
            self.counts["retried"] += 1
        self._pending[correlation] = request
        return correlation

    def give_credit(self, request: PendingRequest, credit: bytes) -> None:
        """Send credit for a stream, of which the server has sent a reply."""
        state = self._state.value
        if type(state) is Connected:  # as always while a request is pending
            header = wire.HEADER.pack(wire.MAGIC, wire.CREDIT, request.correlation, 0)
            self._buffer.append((header, wire.DELIMITER, credit), state.negotiation.max_pack_size)

    def give_up(self, request: PendingRequest) -> None:
        """End a request whose caller is cancelled, or out of time; a later reply is stale."""
        del self._pending[request.correlation]
        late = trio.current_time() >= request.deadline
        self.counts["timed_out" if late else "cancelled"] += 1
        state = self._state.value
        # Always connected while a request is pending. If it is unknown yet, `_learn` cancels it.
        if type(state) is Connected and state.negotiation.speaks_header:
            self._cancel(request.correlation, state.negotiation)
        self._end_if_retired()

    def _cancel(self, correlation: int, negotiation: Negotiation) -> None:
        """Send a cancel."""
        header = wire.HEADER.pack(wire.MAGIC, wire.CANCEL, correlation, 0)
        self._buffer.append((header, wire.DELIMITER, b""), negotiation.max_pack_size)

    @trio.lowlevel.enable_ki_protection  # an interrupted task would stay in AsyncValue's queue
    async def wait_connected(self) -> State | None:
        """Wait until a request may be sent, until the client is refused, or `connect_timeout`.

        A wait that begins while the client is refused lasts until the next attempt has ended.

        Returns:
            None if a request may be sent; else the state of the connection.
        """
        with trio.move_on_after(self._connect_timeout):
            state, _ = await self._state.wait_transition(_ends_wait)
            return state if isinstance(state, Refused) else None
        return self.state

    async def wait_changed(self, state: State) -> None:
        """Wait until the state of the connection is another one."""
        await self._state.wait_value(lambda value: value is not state)

    def not_connected(self, request: PendingRequest, state: State) -> Exception:
        """The error of a request for which `wait_connected` has returned a state."""
        if request.correlation:
            return errors.connection_lost(self._endpoint)
        return errors.not_connected(self._endpoint, state, self._connect_timeout)

    def out_of_time(self, request: PendingRequest) -> Exception:
        """The error of a request that has timed out."""
        if request.correlation:
            return errors.timed_out(self._endpoint, request.seconds)
        return errors.not_connected(self._endpoint, self.state, request.seconds)

    def idle_too_long(self, seconds: float) -> Exception:
        """The error of a stream that has had no reply for so many seconds."""
        return errors.idle_too_long(self._endpoint, seconds)

    # What the line returns.

    def take_event(self, event: Event) -> None:
        """Handle an event of the connection."""
        if isinstance(event, Lost):
            for frames in event.unread:
                self.take_message(frames)
        state = next_state(self._state.value, event, trio.current_time())
        self._state.value = state
        match event, state:
            case HandshakeSucceeded(), Connected(timings=timings, negotiation=negotiation):
                negotiation.first = self._correlation + 1
                self._timings = timings
                self.counts["connections"] += 1
            case Lost(), _:
                self._buffer.clear()
                self._fail_all(lambda: errors.connection_lost(self._endpoint))
                self._end_if_retired()

    def take_message(self, frames: list[bytes]) -> None:
        """Handle a message: a reply, a hello, a go-away, or a pack of them."""
        if len(frames) == 1 and (pack := packs.unpack_untrusted(frames[0])) is not None:
            max_pack_size, messages = pack
            self._use_packs(max_pack_size)
            for message in messages:
                self.take_message(message)
            return
        _, header, body = wire.request_untrusted(frames)
        if header is None:
            self.counts["stale"] += 1
            return
        state = self._state.value
        if type(state) is Connected and state.negotiation.speaks_header is None:
            self._learn(state.negotiation, speaks_header=header.left == wire.SPEAKS)
        if header.left == wire.SPEAKS and header.correlation == wire.WANTS_HELLO:
            if header.kind == wire.OK:  # the hello
                max_pack_size, _ = unpack_untrusted(body)
                self._use_packs(max_pack_size)
            elif header.kind == wire.GO_AWAY:
                self._retire(wire.reason_untrusted(body))
            return
        correlation = header.correlation & wire.CORRELATION
        status = header.kind if header.left == wire.SPEAKS else wire.OK  # or an echo
        if status == wire.MORE:
            stream = self._pending.get(correlation)
            if isinstance(stream, PendingStream):
                stream.more(body)
                return
        request = self._pending.pop(correlation, None)
        if request is None:
            self.counts["stale"] += 1
        elif status == wire.OK:
            self.counts["replied"] += 1
            request.replied(body)
        elif status == wire.END and isinstance(request, PendingStream):
            self.counts["replied"] += 1
            request.ended()
        elif status == wire.NOT_STARTED:
            self.counts["not_started"] += 1
            request.not_started()
            self._retire("it has not started a request")
        else:
            self.counts["failed"] += 1
            request.failed(errors.reported_error(self._endpoint, header, body))
        if self._retired:
            self._end_if_retired()

    def _learn(self, negotiation: Negotiation, *, speaks_header: bool) -> None:
        """The first message shows whether the server speaks the header: send the cancels if so."""
        negotiation.speaks_header = speaks_header
        if speaks_header:
            # No request has ended by a message yet, so all that are not pending were given up.
            for correlation in range(negotiation.first, self._correlation + 1):
                if correlation not in self._pending:
                    self._cancel(correlation, negotiation)

    def _use_packs(self, max_pack_size: int) -> None:
        state = self._state.value
        if type(state) is Connected and self.line.max_pack_size:
            state.negotiation.max_pack_size = max_pack_size

    # The end.

    def _retire(self, reason: str) -> None:
        """Send no more requests on this connection, which ends when those that were sent have."""
        if not self._retired and type(self._state.value) is Connected:
            log.debug("%s asks for another connection: %s", self._endpoint, reason)
            self._retired = True
            self._replace()
            self._end_if_retired()

    def _end_if_retired(self) -> None:
        if self._retired and not self._pending:
            self._ended.set()

    def check_open(self) -> None:
        """Raise `trio.ClosedResourceError` if the client is closed."""
        if isinstance(self._state.value, Closed):
            raise trio.ClosedResourceError("the client is closed")

    @trio.lowlevel.enable_ki_protection  # an interrupt must not leave a request pending
    def close(self) -> None:
        """Accept no more requests; fail those that are pending or wait for a connection."""
        self._state.value = Closed()
        self._fail_all(lambda: trio.ClosedResourceError("the client was closed"))

    def _fail_all(self, error: Callable[[], Exception]) -> None:
        pending, self._pending = self._pending, {}
        self.counts["lost"] += len(pending)
        for request in pending.values():
            request.failed(error())


def _ends_wait(state: State, _: State) -> bool:
    """Whether a state wakes the tasks that wait for a connection.

    It is one function, since AsyncValue calls each predicate once for all tasks that wait with it.
    """
    return isinstance(state, Connected | Refused | Closed)
