"""Streams, as a state machine: credit that comes late, cancels, clients that die or do not read.

It drives the whole server on the network in memory, as `test_guarantees` does, and is as
deterministic. Credit is small here, so that most streams run out of it, and libzmq holds one
message for each client.
"""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import pytest
import trio
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    precondition,
    rule,
    run_state_machine_as_test,
)
from support.stepped import Stepped
from support.watched import WatchedNetwork

import trioreq
from trioreq._protocol import credit
from trioreq._protocol import envelope as wire
from trioreq._protocol.envelope import Header
from trioreq._server import streams
from trioreq.testing import MemoryClient, _network, sleep
from trioreq.testing._libzmq import Connection
from trioreq.testing._schedule import scheduled

REPLIES, BYTES = 3, 30
LONG = 1000  # seconds in which everything ends that has an end
MOST = 4  # clients
WHICH = st.integers(0, 7)
ENDS = ["end", "end", "wait", "fail", "swallow"]
CALM = ("end", "fail")  # those that end by themselves


@dataclass(eq=False)
class Stream:
    """A stream, as its client and its generator see it."""

    number: int
    guest: Guest
    has_header: bool
    pace: str
    size: int
    end: str
    replies: int
    started: bool = False
    closed: bool = False
    told: bool = False
    yielded: int = 0
    """How often the generator has come to a `yield`."""
    at_yield: bool = False
    handed_over: int = 0
    spent: int = 0
    ended: str = ""
    taken_back: bool = False
    silent: bool = False
    credit_replies: int = 0
    credit_bytes: int = 0
    release: trio.Event = field(default_factory=trio.Event)

    def frames(self) -> list[bytes]:
        header = [Header(wire.STREAM, self.number).pack()] if self.has_header else []
        return [b"#%d" % self.number, *header, b"", b"%d" % self.number]

    @property
    def has_credit(self) -> bool:
        return not self.has_header or (
            self.credit_replies > self.handed_over and self.credit_bytes > self.spent
        )


@dataclass(eq=False)
class Guest:
    """A client."""

    client: MemoryClient
    streams: list[Stream] = field(default_factory=list)
    stalled: bool = False


class Machine(RuleBasedStateMachine):
    """Clients with streams, and the end of the server."""

    run: Stepped | None = None

    @initialize(
        seed=st.integers(0, 2**16),
        plain=st.booleans(),
        slots=st.sampled_from([1, 2, 5, 5]),
        send_queue=st.integers(1, 3),
        heartbeat=st.sampled_from([None, 4]),
    )
    def start(
        self, seed: int, plain: bool, slots: int, send_queue: int, heartbeat: float | None
    ) -> None:
        self.faults: list[str] = []
        self.guests: list[Guest] = []
        self.streams: list[Stream] = []
        self.of: dict[Connection, Guest] = {}
        self.plain = plain
        self.stopping = self.over = False
        options = {
            "max_in_flight": slots,
            "workers": slots,
            "max_queued_per_client": 3,
            "send_queue": send_queue,
            "heartbeat": heartbeat,
        }
        self.run = Stepped(partial(self._main, seed, options))

    async def _main(
        self, seed: int, options: dict[str, Any], do_steps: Callable[[], Awaitable[None]]
    ) -> None:
        with scheduled(seed), pytest.MonkeyPatch.context() as patch:
            patch.setattr(_network, "IN_LIBZMQ", 1)
            patch.setattr(credit, "REPLIES", REPLIES)
            patch.setattr(credit, "BYTES", BYTES)
            patch.setattr(streams, "BURST", 2 * streams.EACH)
            async with trio.open_nursery() as nursery:
                self.net = WatchedNetwork(nursery, self)
                self.scope = trio.CancelScope()
                self.server = await nursery.start(self._serve, options)
                await do_steps()
                nursery.cancel_scope.cancel()

    async def _serve(
        self, options: dict[str, Any], task_status: trio.TaskStatus[trioreq.Server]
    ) -> None:
        handler = self._generate_plainly if self.plain else self._generate
        with self.scope:
            await trioreq.serve(handler, self.net, task_status=task_status, **options)
        self.over = True

    def teardown(self) -> None:
        if self.run is None:
            return
        try:
            if not self.stopping:
                for stream in self.streams:
                    stream.release.set()
                for guest in self._present():
                    if guest.stalled:
                        self._resume(guest)
                for guest in self._present():
                    for stream in guest.streams:
                        if stream.has_header:
                            self._give(stream, 100, 10_000)
                self._pass(LONG)
                self._check()
                assert not self.server.statistics().in_flight, "not all streams have ended"
                self.scope.cancel()
            self._pass(LONG)
            assert self.over
            assert self.faults == []
            assert all(s.closed for s in self.streams if s.started), "a generator is not closed"
        finally:
            self.run.end()

    # What the server does, as its sockets see it.

    def fault(self, text: str) -> None:
        self.faults.append(text)

    def was_read(self, connection: Connection, frames: list[bytes]) -> None:
        envelope, header, body = wire.request_untrusted(frames)
        stream = self.streams[int(envelope[0][1:]) - 1]
        if header is not None and header.kind == wire.CREDIT:
            replies, size = credit.CREDIT.unpack(body[0])
            stream.credit_replies += replies
            stream.credit_bytes += size
        elif header is not None and header.kind == wire.CANCEL:
            stream.taken_back = True
            # Otherwise the end, or a reply, may wait in the outbox already.
            stream.silent = not stream.closed and not self._unsent(stream.guest)
        else:
            stream.credit_replies, stream.credit_bytes = REPLIES, BYTES

    def was_handed_over(self, connection: Connection, frames: list[bytes]) -> None:
        parts = wire.split_untrusted(frames)
        assert parts is not None
        envelope, body = parts
        stream = self.streams[int(envelope[0][1:]) - 1]
        name = f"stream {stream.number}"
        if stream.guest is not self.of[connection]:
            self.fault(f"G2: {name} was answered at another connection")
        header = wire.header_untrusted(envelope)
        error = wire.error_untrusted(body)
        # A stream that is refused in the batch of its cancel has its error after that.
        if stream.silent and (error is None or stream.started):
            self.fault(f"G7: {name} was answered with {body!r}, and was cancelled")
        if stream.ended:
            self.fault(f"{name} had {body!r} after its end by {stream.ended}")
        if error is not None:
            stream.ended = error[0]
        elif header.kind == wire.END if header is not None else body == (wire.END_MARK,):
            stream.ended = "end"
            if stream.handed_over != stream.replies:
                self.fault(f"{name} had its end after {stream.handed_over} replies")
        else:
            if not stream.has_credit:
                self.fault(f"{name} had a reply without credit")
            if body[0].split(b".")[0] != b"%d" % stream.handed_over:
                self.fault(f"{name} had {body[0]!r} as reply {stream.handed_over}")
            stream.handed_over += 1
            stream.spent += len(body[0])

    # What handlers do.

    async def _generate(self, request: trioreq.Request) -> AsyncIterator[bytes]:
        stream = self._begin(request)
        try:
            for reply in self._replies(stream):
                if stream.pace == "checkpoint":
                    await trio.lowlevel.checkpoint()
                elif stream.pace == "sleep":
                    await trio.sleep(1)
                stream.at_yield = True
                yield reply
                stream.at_yield = False
            match stream.end:
                case "wait":
                    await stream.release.wait()
                case "swallow":
                    try:
                        await stream.release.wait()
                    except trio.Cancelled:
                        self._note_told(stream)
                        yield b"too late"
                case "fail":
                    raise LookupError
        except (trio.Cancelled, GeneratorExit):
            self._note_told(stream)
            raise
        finally:
            stream.closed = True

    def _generate_plainly(self, request: trioreq.Request) -> Iterator[bytes]:
        stream = self._begin(request)
        try:
            for reply in self._replies(stream):
                if stream.pace == "sleep":
                    sleep(1)
                stream.at_yield = True
                yield reply
                stream.at_yield = False
            match stream.end:
                case "wait" | "swallow":
                    while not stream.release.is_set():
                        trioreq.check_cancelled()
                        sleep(1)
                case "fail":
                    raise LookupError
        except (trioreq.RequestCancelled, GeneratorExit):
            self._note_told(stream)
            raise
        finally:
            stream.closed = True

    def _begin(self, request: trioreq.Request) -> Stream:
        stream = self.streams[int(request.body) - 1]
        if stream.started:
            self.fault(f"stream {stream.number} was started twice")
        if stream.guest.client.connection in self.net.seen_disconnected:
            self.fault(f"G3: stream {stream.number} was started for one seen gone")
        stream.started = True
        return stream

    def _replies(self, stream: Stream) -> Iterator[bytes]:
        for number in range(stream.replies):
            stream.yielded += 1
            if stream.yielded > stream.handed_over + self._unsent(stream.guest) + 3:
                self.fault(f"stream {stream.number} runs ahead")
            yield b"%d." % number + stream.size * b"x"

    def _unsent(self, guest: Guest) -> int:
        for known, unsent in self.server._router.outbox.unsent.items():
            if known.descriptor == guest.client.connection.descriptor:
                return len(unsent.messages)
        return 0

    def _note_told(self, stream: Stream) -> None:
        stream.told = True

    # What clients do.

    def _present(self) -> list[Guest]:
        return [guest for guest in self.guests if guest.client.connected]

    def _able(self, which: int) -> Guest | None:
        able = [guest for guest in self._present() if not guest.stalled]
        return able[which % len(able)] if able else None

    @precondition(lambda self: not self.stopping)
    @rule(
        which=WHICH,
        new=st.booleans(),
        has_header=st.booleans(),
        pace=st.sampled_from(["", "", "checkpoint", "sleep"]),
        size=st.sampled_from([0, 0, 10, 100]),
        end=st.sampled_from(ENDS),
        replies=st.sampled_from([0, 1, 2, 5, 9]),
        together=st.integers(1, 3),
    )
    def ask(
        self,
        which: int,
        new: bool,
        has_header: bool,
        pace: str,
        size: int,
        end: str,
        replies: int,
        together: int,
    ) -> None:
        guest = self._able(which)
        if guest is None or (new and len(self._present()) < MOST):
            guest = Guest(self.net.connect(socket_type="DEALER"))
            self.guests.append(guest)
            self.of[guest.client.connection] = guest
        for _ in range(together):
            number = len(self.streams) + 1
            stream = Stream(number, guest, has_header, pace, size, end, replies)
            self.streams.append(stream)
            guest.streams.append(stream)
            guest.client.send_raw(*stream.frames())

    def _give(self, stream: Stream, replies: int, size: int) -> None:
        frame = Header(wire.CREDIT, stream.number).pack()
        body = credit.CREDIT.pack(replies, size)
        stream.guest.client.send_raw(b"#%d" % stream.number, frame, b"", body)

    def _chosen(self, which: int) -> Stream | None:
        """A stream with a header; one that has not ended, if there is one."""
        able = [
            stream
            for guest in self._present()
            for stream in guest.streams
            if stream.has_header and not guest.stalled
        ]
        able = [stream for stream in able if not stream.ended] or able
        return able[which % len(able)] if able else None

    @precondition(lambda self: not self.stopping)
    @rule(
        which=WHICH, replies=st.sampled_from([0, 1, 2, 10]), size=st.sampled_from([0, 1, 20, 1000])
    )
    def give_credit(self, which: int, replies: int, size: int) -> None:
        """Give credit, also when the stream has ended."""
        stream = self._chosen(which)
        if stream is not None:
            self._give(stream, replies, size)

    @precondition(lambda self: not self.stopping)
    @rule(which=WHICH, late_credit=st.booleans())
    def take_back(self, which: int, late_credit: bool) -> None:
        stream = self._chosen(which)
        if stream is not None:
            frame = Header(wire.CANCEL, stream.number).pack()
            stream.guest.client.send_raw(b"#%d" % stream.number, frame, b"", b"")
            if late_credit:
                self._give(stream, 10, 1000)

    @precondition(lambda self: not self.stopping)
    @rule(which=WHICH, credit_first=st.booleans())
    def crash(self, which: int, credit_first: bool) -> None:
        """Die, perhaps with credit just given."""
        guest = self._able(which)
        if guest is not None:
            for stream in guest.streams:
                if stream.has_header and credit_first:
                    self._give(stream, 2, 1000)
            guest.client.crash()

    @precondition(lambda self: not self.stopping)
    @rule(which=WHICH)
    def stall_or_resume(self, which: int) -> None:
        present = self._present()
        if present:
            guest = present[which % len(present)]
            if guest.stalled:
                self._resume(guest)
            else:
                guest.stalled = True
                guest.client.stall()

    def _resume(self, guest: Guest) -> None:
        guest.stalled = False
        guest.client.resume()

    # What passes.

    @rule(which=WHICH)
    def release(self, which: int) -> None:
        waiting = [stream for stream in self.streams if stream.started and not stream.closed]
        if waiting:
            waiting[which % len(waiting)].release.set()

    @rule(passes=st.integers(1, 4))
    def go_on(self, passes: int) -> None:
        async def step() -> None:
            for _ in range(passes):
                await trio.lowlevel.checkpoint()

        self._do(step)

    @rule()
    def settle(self) -> None:
        self._do(trio.testing.wait_all_tasks_blocked)
        self._check()

    @rule(seconds=st.sampled_from([1, 3, 20]))
    def pass_time(self, seconds: float) -> None:
        self._pass(seconds)
        self._check()

    def _pass(self, seconds: float) -> None:
        async def step() -> None:
            await trio.sleep(seconds)
            await trio.testing.wait_all_tasks_blocked()

        self._do(step)

    def _do(self, step: Callable[[], Awaitable[object]]) -> None:
        assert self.run is not None
        self.run.do(step)
        assert self.faults == []

    @precondition(lambda self: not self.stopping and len(self.streams) > 4)
    @rule()
    def stop(self) -> None:
        self.stopping = True
        self.scope.cancel()

    # What must be true when all tasks wait.

    def _check(self) -> None:
        assert self.faults == []
        if self.stopping:
            return
        stats = self.server.statistics()
        open_now = [stream for stream in self.streams if stream.started and not stream.closed]
        ending = [  # their generators have returned, and their ends wait for slow clients
            stream
            for stream in self.streams
            if stream.closed and not stream.ended and self._unsent(stream.guest)
        ]
        most = len(open_now) + len(ending)
        assert len(open_now) <= stats.running <= most, "slots taken, and generators that are open"
        in_flight = {
            int(request.body)
            for connection in self.server._router.connections
            if connection.client is not None
            for request in connection.client.requests
        }
        assert stats.in_flight == len(in_flight)
        for stream in open_now:
            name = f"stream {stream.number}"
            dead = stream.guest.client.connection in self.net.seen_disconnected
            sleeps = self.plain and stream.pace == "sleep" and not stream.at_yield
            sleeps = sleeps or (self.plain and stream.end in ("wait", "swallow"))
            if dead or stream.taken_back:
                assert sleeps, f"G4: {name} is not closed"
                continue
            assert stream.number in in_flight, f"{name} is open, and not in flight"
            waits = stream.at_yield and stream.has_credit and not self._unsent(stream.guest)
            assert not waits, f"{name} waits at its yield, and its reply could be sent"
        for guest in self._present():
            if guest.stalled or self._unsent(guest):
                continue
            for stream in guest.streams:
                if stream.closed and not stream.taken_back:
                    assert stream.ended, f"stream {stream.number} has no end"
        handed_over = sum(stream.handed_over for stream in self.streams)
        assert (
            handed_over
            <= stats.streamed
            <= handed_over + stats.replies_waiting + (stats.replies_dropped)
        )


@pytest.fixture
def _quiet() -> Iterator[None]:
    """What handlers raise goes to the log, with its traceback, and that takes its time."""
    log = logging.getLogger("trioreq")
    before = log.level
    log.setLevel(logging.CRITICAL)
    yield
    log.setLevel(before)


PROFILE = settings(
    max_examples=300,
    derandomize=True,
    database=None,
    deadline=None,
    phases=[Phase.generate, Phase.shrink],
    report_multiple_bugs=False,
    stateful_step_count=30,
    suppress_health_check=list(HealthCheck),
)


@pytest.mark.slow
@pytest.mark.usefixtures("_quiet")
def test_streams() -> None:
    run_state_machine_as_test(Machine, settings=PROFILE)
