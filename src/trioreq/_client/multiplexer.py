"""Many requests on one connection: a client's pending requests, and the state of its connection.

Each request has a correlation; replies come in any order. A request ends with its reply, with the
loss of the connection, or when its caller times out or is cancelled. In the last case a cancel is
sent, if the server speaks the header: a plain REP server would take it for a request. A server says
whether it does in its hello, and in every reply; until then, cancels wait.

All state changes in synchronous code, never across a checkpoint.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NoReturn, Protocol

import trio
from trio_util import AsyncValue

from .._protocol import envelope as wire
from .._protocol import packs
from .._protocol.envelope import Frames
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
        correlation: The one that `Multiplexer.send` returned last; 0 before the first attempt.
    """

    body: Frames
    deadline: float
    seconds: float
    correlation: int

    def replied(self, body: Frames) -> None:
        """The server has replied."""

    def failed(self, error: Exception) -> None:
        """There is no reply to this attempt."""


class Multiplexer:
    """The pending requests of one client, and the state of its connection.

    Args:
        line: Carries the messages.
        endpoint: The server's name in errors.
        connect_timeout: Seconds that a request waits for a connection; infinity for no limit.
    """

    def __init__(self, line: Line, endpoint: str, connect_timeout: float) -> None:
        self.line = line
        self._endpoint = endpoint
        self._connect_timeout = connect_timeout
        self._state: AsyncValue[State] = AsyncValue(Connecting(trio.current_time()))
        self._buffer = SendBuffer(line)
        self._pending: dict[int, PendingRequest] = {}  # by correlation
        self._correlation = 0  # the last
        self._counts = dict.fromkeys(ClientStatistics.__dataclass_fields__, 0)
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

    def statistics(self) -> ClientStatistics:
        """A snapshot of what the client has done."""
        return ClientStatistics(**self._counts | {"in_flight": len(self._pending)})

    async def run(self) -> None:
        """Handle the events and messages of the connection, until cancelled."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._buffer.keep_flushing)
            nursery.start_soon(self._keep_receiving)
            nursery.start_soon(self._follow_connection)

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

    def send(self, request: PendingRequest) -> int:
        """Send a request.

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
        header = wire.HEADER.pack(wire.MAGIC, wire.REQUEST, on_wire, left)
        self._buffer.append((header, wire.DELIMITER, *request.body), negotiation.max_pack_size)
        self._counts["requests"] += 1
        if request.correlation:
            self._counts["retried"] += 1
        self._pending[correlation] = request
        return correlation

    def give_up(self, request: PendingRequest) -> None:
        """End a request whose caller is cancelled, or out of time; a later reply is stale."""
        del self._pending[request.correlation]
        late = trio.current_time() >= request.deadline
        self._counts["timed_out" if late else "cancelled"] += 1
        state = self._state.value
        if type(state) is Connected:  # as always while a request is pending
            self._cancel(request.correlation, state.negotiation)

    def _cancel(self, correlation: int, negotiation: Negotiation) -> None:
        """Send a cancel now, or when it is known that the server speaks the header."""
        if negotiation.speaks_header:
            header = wire.HEADER.pack(wire.MAGIC, wire.CANCEL, correlation, 0)
            self._buffer.append((header, wire.DELIMITER, b""), negotiation.max_pack_size)
        elif negotiation.speaks_header is None:
            negotiation.cancels.append(correlation)

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

    async def wait_changed(self, state: State) -> State:
        """Wait until the state of the connection is another one; returns it."""
        changed: State = await self._state.wait_value(lambda value: value is not state)
        return changed

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

    # What the line returns.

    def take_event(self, event: Event) -> None:
        """Handle an event of the connection."""
        if isinstance(event, Lost):
            for frames in event.unread:
                self.take_message(frames)
        state = next_state(self._state.value, event, trio.current_time())
        self._state.value = state
        match event, state:
            case HandshakeSucceeded(), Connected(timings=timings):
                self._timings = timings
                self._counts["connections"] += 1
            case Lost(), _:
                self._buffer.clear()
                self._fail_all(lambda: errors.connection_lost(self._endpoint))

    def take_message(self, frames: list[bytes]) -> None:
        """Handle a message: a reply, a hello, or a pack of them."""
        if len(frames) == 1 and (pack := packs.unpack_untrusted(frames[0])) is not None:
            max_pack_size, messages = pack
            self._use_packs(max_pack_size)
            for message in messages:
                self.take_message(message)
            return
        _, header, body = wire.request_untrusted(frames)
        if header is None:
            self._counts["stale"] += 1
            return
        state = self._state.value
        if type(state) is Connected and state.negotiation.speaks_header is None:
            self._learn(state.negotiation, speaks_header=header.left == wire.SPEAKS)
        if header.left == wire.SPEAKS and header.correlation == wire.WANTS_HELLO:
            self._use_packs(packs.max_size_untrusted(body))
            return  # it is the hello
        request = self._pending.pop(header.correlation & wire.CORRELATION, None)
        if request is None:
            self._counts["stale"] += 1
        elif (
            header.kind == wire.OK or header.left != wire.SPEAKS
        ):  # a plain echo server sends the header back
            self._counts["replied"] += 1
            request.replied(body)
        else:
            self._counts["failed"] += 1
            request.failed(errors.reported_error(self._endpoint, header, body))

    def _learn(self, negotiation: Negotiation, *, speaks_header: bool) -> None:
        negotiation.speaks_header = speaks_header
        cancels, negotiation.cancels = negotiation.cancels, []
        for correlation in cancels:
            self._cancel(correlation, negotiation)

    def _use_packs(self, max_pack_size: int) -> None:
        state = self._state.value
        if type(state) is Connected and self.line.max_pack_size:
            state.negotiation.max_pack_size = max_pack_size

    # The end.

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
        self._counts["lost"] += len(pending)
        for request in pending.values():
            request.failed(error())


def _ends_wait(state: State, _: State) -> bool:
    """Whether a state wakes the tasks that wait for a connection.

    It is one function, since AsyncValue calls each predicate once for all tasks that wait with it.
    """
    return isinstance(state, Connected | Refused | Closed)
