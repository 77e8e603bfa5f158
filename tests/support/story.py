"""What clients do on a watched network, what handlers do for them, and what must be true of it.

The story knows of each request when the server has read it, when its handler was started and
reported, and what was handed over for it. It knows this from the sockets and the handlers, and not
from the server. What must never happen is noted as a fault when it happens; `check` compares the
rest when all tasks wait.
"""

from __future__ import annotations

import math
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any

import trio

import trioreq
from trioreq import CancelReason
from trioreq._protocol import envelope as wire
from trioreq._protocol.envelope import Header
from trioreq._server.server import LAST_CALL, PARTING
from trioreq.testing import MemoryClient, sleep
from trioreq.testing._libzmq import Connection

from .watched import WatchedNetwork

LEFT_BEHIND: ContextVar[int | None] = ContextVar("left_behind", default=None)


@dataclass(eq=False)
class Asked:
    """A request, and what has become of it. Times are trio's; None for not yet, or never."""

    number: int
    guest: Guest
    program: str
    bare: bool
    header: Header | None
    direct: bool = False
    """Whether nothing stands before its header, as if there was no proxy."""
    read: float | None = None
    started: float | None = None
    told: float | None = None
    returned: float | None = None
    over: tuple[float, CancelReason] | None = None
    deadline: float = math.inf
    silent: bool = False
    came_dead: bool = False
    refused: bool = False
    deaf: bool = False
    answers: int = 0
    request: trioreq.Request | None = None
    release: trio.Event = field(default_factory=trio.Event)

    def frames(self) -> list[bytes]:
        """The message."""
        body = f"{self.number} {self.program}".encode()
        if self.bare:
            return [b"", body]
        return [*self.envelope(self.header), b"", body]

    def envelope(self, header: Header | None) -> list[bytes]:
        """What stands before the delimiter."""
        name = [] if self.direct else [b"#%d" % self.number]
        return name if header is None else [*name, header.pack()]


@dataclass(eq=False)
class Guest:
    """A client."""

    client: MemoryClient
    explicit: bool
    slow: bool = False
    """Whether it may not have taken a reply in time."""
    cut: bool = False
    stalled: bool = False
    greeted: bool = False
    """Whether it was sent a hello, with nothing before its header."""
    go_aways: int = 0
    asked: list[Asked] = field(default_factory=list)

    @property
    def connection(self) -> Connection:
        return self.client.connection

    @property
    def lock_step(self) -> bool:
        return self.client.socket_type == "REQ"


def _number(envelope: wire.Frames, header: Header | None) -> int:
    """Of a request, by its envelope: its name, or what `ask_with_header` made of it."""
    if envelope[0].startswith(b"#"):
        return int(envelope[0][1:])
    assert header is not None
    return (header.correlation & wire.CORRELATION) - 1


def clients_of(server: trioreq.Server) -> list[Any]:
    """What a server keeps of its clients."""
    return [c.client for c in server._router.connections if c.client is not None]


class Story:
    """The story of one server.

    Attributes:
        faults: What the server has done and must not.
    """

    def __init__(
        self, slots: int, queued: int, timeout: float | None, *, plain: bool, admits: bool
    ) -> None:
        self.slots = slots
        self.queued = queued
        self.plain = plain
        self.admits = admits
        self.timeout = math.inf if timeout is None else timeout
        self.net: WatchedNetwork
        self.server: trioreq.Server
        self.guests: list[Guest] = []
        self.asked: list[Asked] = []
        self.faults: list[str] = []
        self.grace: float | None = None  # when a drain is over at the latest
        self.idle: float | None = None  # since when nothing was in flight while it drained
        self.late = 0
        self._running = 0
        self._of: dict[Connection, Guest] = {}
        self._starts: list[Guest] = []
        self._waits: dict[Guest, tuple[int, int]] = {}

    # What clients do.

    def join(self, client: MemoryClient, *, explicit: bool) -> Guest:
        guest = Guest(client, explicit)
        self.guests.append(guest)
        self._of[client.connection] = guest
        return guest

    def present(self) -> list[Guest]:
        """The clients that can still do something."""
        return [guest for guest in self.guests if guest.client.connected]

    def ask(
        self,
        guest: Guest,
        program: str,
        header: Header | None = None,
        *,
        bare: bool = False,
        direct: bool = False,
    ) -> None:
        """Send a request; a bare one has an envelope that names nothing."""
        bare = bare and guest.lock_step and header is None
        asked = Asked(len(self.asked), guest, program, bare, header, direct)
        self.asked.append(asked)
        guest.asked.append(asked)
        guest.client.send_raw(*asked.frames())

    def take_back(self, asked: Asked) -> None:
        assert asked.header is not None
        header = Header(wire.CANCEL, asked.header.correlation & ~wire.WANTS_HELLO)
        asked.guest.client.send_raw(*asked.envelope(header), b"", b"")

    # What the server does, as its sockets see it.

    def fault(self, text: str) -> None:
        self.faults.append(text)

    def was_read(self, connection: Connection, frames: list[bytes]) -> None:
        guest = self._of[connection]
        now = trio.current_time()
        envelope, header, body = wire.request_untrusted(frames)
        if header is not None and header.kind == wire.CANCEL:
            self._is_over(self.asked[_number(envelope, header)], CancelReason.CANCELLED)
            return
        if guest.lock_step:
            for older in guest.asked:
                if older.read is not None:
                    self._is_over(older, CancelReason.SUPERSEDED)
        if not body:
            return
        asked = self.asked[int(body[0].split()[0])]
        asked.read = now
        asked.came_dead = connection.ended
        left = header.left / 1000 if header is not None and header.left else math.inf
        asked.deadline = now + min(left, self.timeout)
        asked.silent = left <= self.timeout and left < math.inf
        asked.refused = self.server._requests.closing
        if guest not in self._waits or not any(self._may_start(a) for a in guest.asked):
            self._begins_to_wait(guest)

    def was_handed_over(self, connection: Connection, frames: list[bytes]) -> None:
        guest = self._of[connection]
        parts = wire.split_untrusted(frames)
        assert parts is not None
        envelope, body = parts
        header = wire.header_untrusted(envelope)
        error = wire.error_untrusted(body)
        if header is not None and header.correlation == wire.WANTS_HELLO:
            self._was_told_unasked(guest, header.kind, direct=len(envelope) == 2)
            return
        asked: Asked | None
        if envelope[0]:
            asked = self.asked[_number(envelope, header)]
        elif error is None:
            asked = self.asked[int(body[0].removeprefix(b"re:"))]
        else:  # one that names nothing: with lock-step it is for the newest
            asked = next((a for a in reversed(guest.asked) if a.bare and a.read is not None), None)
            if error[0] == "malformed":
                return
            assert asked is not None
        if asked.guest is not guest:
            self.fault(f"G2: {asked.number} was answered at another connection")
            return
        asked.answers += 1
        if asked.answers > 1 and not asked.bare:
            self.fault(f"{asked.number} was answered twice")
        if error is None:
            if asked.over is not None:
                self.fault(f"G7: {asked.number} was answered, and was {asked.over[1]}")
            if body[0] != b"re:%d" % asked.number:
                self.fault(f"G2: {asked.number} had the reply of another")
        if header is not None and (header.kind == 0) is not (error is None):
            self.fault(f"{asked.number} has a status that its body has not")
        if error is not None:
            self._check_error(asked, error[0])
            if header is not None and error[0] == "shutting-down":
                never = header.kind == wire.NOT_STARTED
                if never is (asked.started is not None):
                    self.fault(f"shutdown: whether {asked.number} was started is not what was told")

    def _was_told_unasked(self, guest: Guest, kind: int, *, direct: bool) -> None:
        """A hello, or a go-away, was handed over."""
        if kind == wire.OK:
            guest.greeted = guest.greeted or direct
            return
        guest.go_aways += 1
        if kind != wire.GO_AWAY or not guest.greeted:
            self.fault("a go-away was sent to who does not know it")
        if self.grace is None:
            self.fault("a go-away was sent, and the server does not drain")
        if guest.go_aways > 1:
            self.fault("a go-away was sent twice")

    def _check_error(self, asked: Asked, code: str) -> None:
        fits = {
            "handler-failed": asked.returned is not None,
            "no": asked.returned is not None,
            "timed-out": not asked.silent and trio.current_time() >= asked.deadline,
            "overloaded": asked.started is None,
            "shutting-down": self.server._requests.closing,
        }
        if not fits[code]:
            self.fault(f"{asked.number} was told {code}")

    def _is_over(self, asked: Asked, reason: CancelReason) -> None:
        """Its client does not wait for it any more, unless its reply was there before."""
        if asked.read is None or asked.returned is not None or asked.answers:
            return
        if reason is CancelReason.CANCELLED and asked.header is None:
            return
        if asked.over is None and trio.current_time() < asked.deadline:
            asked.over = trio.current_time(), reason

    # What handlers do.

    async def handle(self, request: trioreq.Request) -> object:
        asked = self._begin(request)
        late: bool | None = None
        try:
            result = await self._perform(asked)
            late = request.cancel_reason is CancelReason.DISCONNECTED
        finally:
            self._end(asked, late=late)
        return result

    def handle_plain(self, request: trioreq.Request) -> object:
        asked = self._begin(request)
        late: bool | None = None
        try:
            result = self._perform_plainly(asked)
            late = request.cancel_reason is CancelReason.DISCONNECTED
        finally:
            self._end(asked, late=late)
        return result

    def _begin(self, request: trioreq.Request) -> Asked:
        asked = self.asked[int(request.body.split()[0])]
        if asked.started is not None:
            self.fault(f"{asked.number} was started twice")
        if asked.came_dead:
            self.fault(f"G3: {asked.number} was started, and was read after its connection's end")
        if asked.guest.connection in self.net.seen_disconnected:
            self.fault(f"G3: {asked.number} was started for who was seen gone")
        if asked.over is not None:
            self.fault(f"G7: {asked.number} was started, and was {asked.over[1]}")
        if asked.refused:
            self.fault(f"shutdown: {asked.number} came after it had begun, and was started")
        if LEFT_BEHIND.get() is not None:
            self.fault(f"{asked.number} finds what another handler has left in the context")
        asked.started = trio.current_time()
        asked.request = request
        self._running += 1
        if self._running > self.slots:
            self.fault("G4: more handlers run than there are turns")
        self._take_turn(asked.guest)
        return asked

    def _take_turn(self, guest: Guest) -> None:
        """No waiting client is passed by another more often than the round allows."""
        self._starts.append(guest)
        self._begins_to_wait(guest)
        for other, (since, granted) in self._waits.items():
            # Requests that have a slot are started in any order.
            most = 1 + granted + self.slots
            passed_by = other is not guest and self._starts[since:].count(guest) > most
            if passed_by and any(self._may_start(asked) for asked in other.asked):
                self.fault("fairness: a client that waits was passed by")

    def _begins_to_wait(self, guest: Guest) -> None:
        """From now on others may start what had its turn already, and one more."""
        self._waits[guest] = len(self._starts), self.slots - self._running

    def _may_start(self, asked: Asked) -> bool:
        return (
            asked.read is not None
            and asked.started is None
            and asked.over is None
            and not asked.answers
            and not asked.came_dead
            and asked.guest.connection not in self.net.seen_disconnected
            and trio.current_time() < asked.deadline
            and asked.number in self._in_flight()
        )

    def _in_flight(self) -> dict[int, Any]:
        """What the server says it still has."""
        return {
            int(request.body.split()[0]): request
            for client in clients_of(self.server)
            for request in client.requests
        }

    def _end(self, asked: Asked, *, late: bool | None) -> None:
        self._running -= 1
        asked.returned = trio.current_time()
        self.late += bool(late)

    async def _perform(self, asked: Asked) -> object:
        program, _, amount = asked.program.partition(" ")
        seconds = float(amount or 0)
        match program:
            case "yield":
                await self._wait(asked, trio.lowlevel.checkpoint)
            case "wait":
                await self._wait(asked, asked.release.wait)
            case "sleep":
                await self._wait(asked, trio.sleep, seconds)
            case "fail":
                raise LookupError
            case "refuse":
                raise trioreq.ReplyError("no", "no")
            case "garbage":
                return "no bytes"
            case "deaf":
                await self._be_deaf(asked, seconds)
            case "slow":
                try:
                    await self._wait(asked, asked.release.wait)
                except trio.Cancelled:
                    await self._be_deaf(asked, seconds)
                    raise
            case "swallow":
                try:
                    await self._wait(asked, asked.release.wait)
                except trio.Cancelled:
                    return b"too late"
            case "group":
                await self._fail_in_a_group(asked)
            case "dirty":
                LEFT_BEHIND.set(asked.number)
            case "crash":
                self._crash_others(asked)
        return b"re:%d" % asked.number

    def _perform_plainly(self, asked: Asked) -> object:
        program, _, amount = asked.program.partition(" ")
        match program:
            case "sleep" | "wait" | "slow":
                for _ in range(int(amount or 2)):
                    trioreq.check_cancelled()
                    if (
                        asked.over is not None
                        or asked.guest.connection in self.net.seen_disconnected
                    ):
                        self.fault(f"G4: the plain function of {asked.number} was not told")
                    sleep(1)
            case "deaf":
                asked.deaf = True
                sleep(float(amount))
            case "fail":
                raise LookupError
            case "refuse":
                raise trioreq.ReplyError("no", "no")
            case "garbage":
                return "no bytes"
            case "crash":
                self._crash_others(asked)
        return b"re:%d" % asked.number

    async def _wait(self, asked: Asked, wait: Any, *args: object) -> None:
        try:
            await wait(*args)
        except trio.Cancelled:
            asked.told = trio.current_time()
            assert asked.request is not None
            if asked.request.cancel_reason is None:
                self.fault(f"{asked.number} was cancelled, and has no reason")
            raise

    async def _be_deaf(self, asked: Asked, seconds: float) -> None:
        asked.deaf = True
        with trio.CancelScope(shield=True):
            await trio.sleep(seconds)
        asked.deaf = False

    async def _fail_in_a_group(self, asked: Asked) -> None:
        async def fail_when_cancelled() -> None:
            try:
                await self._wait(asked, asked.release.wait)
            except trio.Cancelled:
                raise LookupError("while it was cancelled") from None

        async with trio.open_nursery() as nursery:
            nursery.start_soon(fail_when_cancelled)

    def _crash_others(self, asked: Asked) -> None:
        """The others crash while a handler runs: all that was granted before is for the dead."""
        for guest in self.present():
            if guest is not asked.guest:
                guest.client.crash()

    # What must be true when all tasks wait.

    def check(self) -> None:
        """While the server serves."""
        self._check_nothing_unread()
        self._check_nothing_held_for_the_dead()
        self._check_turns()
        self._check_statistics()
        for asked in self.asked:
            self._check_told(asked)
        self._check_answers()
        if self.grace is not None:
            unsent = self.server._router.outbox.unsent
            if self.idle is None and not self._in_flight():
                self.idle = trio.current_time()
            if self.idle is not None and not unsent:
                over = self.idle + PARTING + LAST_CALL
                assert trio.current_time() < over, "a drain goes on, and nothing is in flight"
            for guest in self.guests:
                if guest.greeted and not (guest.slow or guest.connection.ended):
                    assert guest.go_aways, "a drain has begun, and a client was not told"
            assert trio.current_time() < self.grace, "a drain goes on, and its time is up"

    def drain(self, grace: float) -> None:
        """A drain begins."""
        until = trio.current_time() + grace
        self.grace = until if self.grace is None else min(self.grace, until)

    def check_end(self, tasks: int) -> None:
        """After the server's end; `tasks` are those that it may have left in the run."""
        stats = self.server.statistics()
        assert stats.in_flight == stats.waiting == 0
        assert not any(client.requests for client in clients_of(self.server))
        assert tasks == 0, "the server has left tasks behind"
        self._check_sums(stats)
        missing = 0
        for asked in self._unanswered():
            guest = asked.guest
            if not (
                guest.client._closed or guest.slow or guest.connection in self.net.seen_disconnected
            ):
                missing += 1
        assert missing <= stats.replies_dropped, "shutdown: some were told nothing"

    def _check_nothing_unread(self) -> None:
        sockets = self.net.sockets
        assert not sockets.raw_monitor.waiting(), "G6: the monitor is not read"
        assert not sockets.raw_zap.waiting(), "G6: the ZAP handler's socket is not read"
        assert not sockets.raw_router.waiting(), "G6: the ROUTER is not read"
        assert not self.server._router.outbox._messages, "a reply is not handed over"

    def _check_nothing_held_for_the_dead(self) -> None:
        sockets, router = self.net.sockets, self.server._router
        assert len(router) == len(sockets._connections), "G5: the connection table"
        connections = list(router.connections)
        held = {connection.descriptor for connection in connections}
        assert held == set(sockets._connections), "G5: connections"
        automatic = {connection for connection in connections if connection.automatic}
        assert set(router._automatic.values()) == automatic, "G5: ids"
        assert set(router.handshakes._open) <= set(connections), "G5: handshakes"
        assert set(router.handshakes._closed) <= set(sockets._connections), "G5: handshakes"
        clients = clients_of(self.server)
        assert set(self.server._queue._queues) <= set(clients), "G5: queues"
        requests = self._in_flight().values()
        timed = sum(request.timer is not None for request in requests)
        assert self.server._requests.deadlines._live == timed, "G5: timers"
        for client in clients:
            named = [request for request in client.requests if request.header is not None]
            assert len(client.named) == len(named), "G5: names"
        for guest in self.guests:
            if guest.connection.ended:
                assert not guest.connection.held, "G5: what libzmq held"

    def _check_turns(self) -> None:
        turns: Any = self.server._queue
        if self.plain:
            assert not turns.granted, "a request that has a slot is not started"
        assert turns.slots - turns.free == self._running, "slots taken, and handlers that run"
        assert not (turns.waiting and turns.free), "a slot is free, and a request waits"
        queues = [len(queue) for queue in turns._queues.values()]
        assert turns.waiting == sum(queues)
        assert all(0 < waiting <= self.queued for waiting in queues), "G5: a queue has its bound"

    def _check_statistics(self) -> None:
        stats = self.server.statistics()
        in_flight = self._in_flight()
        assert stats.in_flight == len(in_flight)
        self._check_sums(stats)
        connections = [guest.connection for guest in self.guests]
        failed = sum(connection.ended and not connection.through for connection in connections)
        assert stats.handshakes_failed == failed, "handshakes that failed"
        gone = [
            asked
            for asked in self.asked
            if asked.request is not None
            and asked.request.cancel_reason is CancelReason.DISCONNECTED
        ]
        assert stats.cancelled_by_disconnect == len(gone)
        assert stats.abandoned_threads == (
            sum(
                asked.returned is None and asked.number not in in_flight
                for asked in self.asked
                if asked.started is not None
            )
            if self.plain
            else 0
        )

    def _check_sums(self, stats: trioreq.Statistics) -> None:
        told = stats.replied + stats.failed + stats.overloaded + stats.malformed + stats.shut_down
        others = (
            stats.timed_out
            + stats.superseded
            + stats.cancelled_by_disconnect
            + stats.cancelled_by_client
            + stats.never_started
        )
        assert stats.requests == told + others + stats.in_flight
        assert stats.replies_sent == self.net.handed_over
        answered = stats.replies_sent + stats.replies_waiting + stats.replies_dropped - self.late
        hellos = sum(
            asked.header is not None and asked.header.correlation >= wire.WANTS_HELLO
            for asked in self.asked
        )
        more = stats.timed_out + hellos + stats.go_aways
        assert told <= answered <= told + more, "sent and dropped"

    def _ends(self, asked: Asked) -> list[tuple[float, CancelReason]]:
        """What has ended a request before its handler, and when, the first first."""
        ends = [] if asked.over is None else [asked.over]
        if asked.guest.connection in self.net.seen_disconnected:
            ends.append(
                (self.net.seen_disconnected[asked.guest.connection], CancelReason.DISCONNECTED)
            )
        if trio.current_time() >= asked.deadline:
            ends.append((asked.deadline, CancelReason.DEADLINE))
        return sorted(ends)

    def _check_told(self, asked: Asked) -> None:
        """G4: a handler whose request has ended was cancelled at once, with the reason."""
        if asked.started is None or asked.returned is not None:
            return
        ends = self._ends(asked)
        assert asked.request is not None
        if not ends:
            assert asked.request.cancel_reason is None, f"{asked.number} was ended for no reason"
            assert asked.told is None, f"{asked.number} was cancelled for no reason"
            return
        first = {reason for at, reason in ends if at <= ends[0][0]}
        assert asked.request.cancel_reason in first, f"G4: {asked.number} has the wrong reason"
        if not asked.deaf and not self.plain:
            assert asked.told == ends[0][0], f"G4: {asked.number} was not cancelled at once"

    def _unanswered(self) -> list[Asked]:
        """What was read from the living, and is owed an answer."""
        return [
            asked
            for asked in self.asked
            if asked.read is not None
            and asked.over is None
            and not asked.answers
            and not (asked.silent and not (asked.returned or math.inf) < asked.deadline)
        ]

    def _number_unsent(self, connection: Connection) -> float:
        """Messages that wait, since the client does not read; any number if it is to be evicted."""
        for known, unsent in self.server._router.outbox.unsent.items():
            if known.descriptor == connection.descriptor:
                return math.inf if unsent.overflowed else len(unsent.messages)
        return 0

    def _check_answers(self) -> None:
        in_flight = self._in_flight()
        for number in in_flight:
            asked = self.asked[number]
            assert not self._ends(asked), f"{number} is kept, and has ended"
            assert asked.returned is None, f"{number} is kept, and its handler has returned"
        missing = [
            asked
            for asked in self._unanswered()
            if asked.number not in in_flight and not asked.guest.connection.ended
        ]
        for guest in {asked.guest for asked in missing}:
            owed = sum(asked.guest is guest for asked in missing)
            assert owed <= self._number_unsent(guest.connection), "some were answered nothing"
        assert all(asked.guest.slow for asked in missing), "one that reads was answered nothing"
        for guest in self.guests:
            obstacles = guest.connection.to_server._obstacles
            if not self.admits:  # they are accepted without a delay
                assert guest.connection.ended or "handshake" not in obstacles, "G6: not let in"
