"""The client on a line without a kernel.

Deterministic: an autojump clock, and a line that does what the test says.
"""

from __future__ import annotations

import math
import signal
from collections.abc import Sized
from dataclasses import astuple
from typing import Any, NoReturn

import pytest
import trio
from support.line import FakeLine, asking
from trio.testing import MockClock, wait_all_tasks_blocked
from trio_util import AsyncValue

import trioreq
from trioreq._client.multiplexer import PendingRequest
from trioreq._client.states import Connected
from trioreq._protocol import envelope as wire
from trioreq._protocol.envelope import Frames, Header
from trioreq._transport.line import Accepted, Event, HandshakeFailed
from trioreq.testing import open_memory_network, open_memory_server
from trioreq.testing._client import MemoryLine


class Caller:
    """A task that asks, and what became of it."""

    def __init__(self, client: trioreq.Client, body: bytes, timeout: float | None = None) -> None:
        self.client = client
        self.body = body
        self.timeout = timeout
        self.scope = trio.CancelScope()
        self.reply: bytes | None = None
        self.error: Exception | None = None

    async def __call__(self) -> None:
        with self.scope:
            try:
                self.reply = await self.client.request(self.body, timeout=self.timeout)
            except Exception as error:  # noqa: BLE001  # it is what the test asks for
                self.error = error


async def test_replies_come_in_any_order(autojump_clock: MockClock) -> None:
    line = FakeLine()
    async with asking(line) as nursery:
        line.connect()
        callers = [Caller(line.client, b"%d" % number) for number in range(3)]
        for caller in callers:
            nursery.start_soon(caller)
            await wait_all_tasks_blocked()
        for number in (2, 0, 1):
            line.answer(number, b"re:%d" % number)
    assert [caller.reply for caller in callers] == [b"re:0", b"re:1", b"re:2"]
    assert line.client.statistics().replied == 3


async def test_a_request_waits_for_the_connection(autojump_clock: MockClock) -> None:
    line = FakeLine()
    async with asking(line, timeout=10) as nursery:
        opened = trio.current_time()
        caller = Caller(line.client, b"x")
        nursery.start_soon(caller)
        await trio.sleep(4)
        assert not line.sent
        line.connect()
        assert line.client.timings == trioreq.Timings(connect=4, handshake=0, since=opened + 4)
        await wait_all_tasks_blocked()
        assert line.sent[0][0].left == 6000  # what it has left, not what it had
        line.answer(0, b"y")
    assert caller.reply == b"y"


async def test_no_connection_in_time_says_that_nothing_was_sent(autojump_clock: MockClock) -> None:
    line = FakeLine()
    async with asking(line, connect_timeout=3) as nursery:
        patient, hasty = Caller(line.client, b"x"), Caller(line.client, b"x", timeout=1)
        nursery.start_soon(patient)
        nursery.start_soon(hasty)
    for caller in (patient, hasty):
        assert isinstance(caller.error, trioreq.NotConnected)
        assert isinstance(caller.error, trio.TooSlowError)
    assert line.client.statistics().requests == 0


async def test_the_time_is_up(autojump_clock: MockClock) -> None:
    line = FakeLine()
    async with asking(line, timeout=30) as nursery:
        line.connect()
        line.hello()
        caller = Caller(line.client, b"x")
        before = trio.current_time()
        nursery.start_soon(caller)
    assert trio.current_time() == before + 30
    assert isinstance(caller.error, trioreq.RequestTimeout)
    assert isinstance(caller.error, trio.TooSlowError)
    assert line.cancels() == 1
    line.answer(0, b"late")
    stats = line.client.statistics()
    assert (stats.timed_out, stats.stale, stats.in_flight) == (1, 1, 0)


@pytest.mark.parametrize("many", [False, True])
async def test_a_deadline_that_is_put_off_meanwhile_is_still_the_requests(
    autojump_clock: MockClock, many: bool
) -> None:
    """The server cancels at the deadline that was sent, without a reply that would end the wait."""
    line = FakeLine()
    async with asking(line) as nursery:
        line.connect()
        results: list[Any] = []
        scope = trio.CancelScope(deadline=trio.current_time() + 10)

        async def ask() -> None:
            with scope:
                if many:
                    results.extend(await line.client.request_many([b"x"]))
                else:
                    with pytest.raises(trioreq.RequestTimeout) as caught:
                        await line.client.request(b"x")
                    results.append(caught.value)

        nursery.start_soon(ask)
        await trio.sleep(5)
        assert line.sent[0][0].left == 10_000
        scope.deadline = math.inf
        await trio.sleep(6)
        assert type(results[0]) is trioreq.RequestTimeout
        assert str(results[0]) == "memory has not answered within 10 s"
    assert not scope.cancelled_caught


@pytest.mark.parametrize("many", [False, True])
@pytest.mark.parametrize("noticed", [False, True])
async def test_a_deadline_that_is_over_is_the_callers_cancel_and_nothing_is_sent(
    autojump_clock: MockClock, noticed: bool, many: bool
) -> None:
    """Also if trio has had no time to look at its deadlines since."""
    line = FakeLine()
    async with asking(line):
        line.connect()
        with trio.move_on_after(10) as scope:
            if noticed:
                scope.cancel()
            else:
                autojump_clock.jump(11)
            if many:
                await line.client.request_many([b"x"])
            else:
                await line.client.request(b"x")
        assert scope.cancelled_caught
    assert not line.sent


async def test_a_deadline_that_is_moved_forward_is_the_callers_cancel(
    autojump_clock: MockClock,
) -> None:
    """And no later request of the same call is out of order."""
    line = FakeLine()
    async with asking(line) as nursery:
        line.connect()
        before = trio.current_time()
        scope = trio.CancelScope(deadline=before + 10)

        async def ask() -> None:
            with scope:
                await line.client.request_many([b"x"] * 3, in_flight=2)

        nursery.start_soon(ask)
        await wait_all_tasks_blocked()
        scope.deadline = before + 5
        line.answer(0, b"y")
        await wait_all_tasks_blocked()
        assert [header.left for header, _ in line.sent] == [10_000] * 3
    assert trio.current_time() == before + 5
    assert scope.cancelled_caught
    stats = line.client.statistics()
    assert stats.cancelled == 2


async def test_a_cancelled_caller_takes_its_request_back(autojump_clock: MockClock) -> None:
    line = FakeLine()
    async with asking(line) as nursery:
        line.connect()
        line.hello()
        caller = Caller(line.client, b"x")
        nursery.start_soon(caller)
        await wait_all_tasks_blocked()
        caller.scope.cancel()
    assert [header.kind for header, _ in line.sent] == [wire.REQUEST, wire.CANCEL]
    assert line.sent[0][0].correlation == line.sent[1][0].correlation
    assert line.client.statistics().cancelled == 1


async def test_a_reply_in_the_same_breath_as_the_cancel_is_late(autojump_clock: MockClock) -> None:
    """The caller has been woken with its Cancelled, and has not run yet."""
    line = FakeLine()
    async with asking(line) as nursery:
        line.connect()
        line.hello()
        caller = Caller(line.client, b"x")
        nursery.start_soon(caller)
        await wait_all_tasks_blocked()
        caller.scope.cancel()
        line.answer(0, b"y")
        line.cut()
    assert caller.reply is None
    assert caller.error is None
    stats = line.client.statistics()
    assert (stats.cancelled, stats.stale, stats.lost) == (1, 1, 0)


async def test_of_a_burst_one_asks_whether_the_server_understands(
    autojump_clock: MockClock,
) -> None:
    """Each hello takes room in the server's send queue."""
    line = FakeLine()
    async with asking(line) as nursery:
        line.connect()
        callers = [Caller(line.client, b"x") for _ in range(3)]
        for caller in callers:
            nursery.start_soon(caller)
        await wait_all_tasks_blocked()
        ask = [bool(header.correlation & wire.WANTS_HELLO) for header, _ in line.sent]
        assert ask == [True, False, False]
        for caller in callers:  # the caller may have ended
            caller.scope.cancel()
        nursery.start_soon(Caller(line.client, b"y"))
        await wait_all_tasks_blocked()
        assert line.sent[-1][0].correlation & wire.WANTS_HELLO
        nursery.cancel_scope.cancel()


@pytest.mark.parametrize("many", [False, True])
def test_ctrl_c_does_not_come_between_a_request_and_the_wait_for_its_reply(many: bool) -> None:
    """It would leave a caller that does not wait, and is to be woken."""

    async def main() -> None:
        async with asking(line):
            line.connect()
            send = line.multiplexer.send

            def interrupted(request: PendingRequest, kind: int = wire.REQUEST) -> int:
                correlation = send(request, kind)
                signal.raise_signal(signal.SIGINT)
                return correlation

            line.multiplexer.send = interrupted  # type: ignore[method-assign]
            try:
                if many:
                    await line.client.request_many([b"x"])
                else:
                    await line.client.request(b"x")
            finally:
                in_flight.append(line.client.statistics().in_flight)
                line.multiplexer.close()

    line = FakeLine()
    in_flight: list[int] = []
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(BaseExceptionGroup) as caught:
            trio.run(main)
    finally:
        signal.signal(signal.SIGINT, before)
    assert caught.group_contains(KeyboardInterrupt)
    assert in_flight == [0]


async def test_a_cancel_is_sent_as_soon_as_the_server_is_known_to_speak_the_header(
    autojump_clock: MockClock,
) -> None:
    line = FakeLine()
    async with asking(line) as nursery:
        line.connect()
        caller = Caller(line.client, b"x")
        nursery.start_soon(caller)
        await wait_all_tasks_blocked()
        assert line.sent[0][0].correlation & wire.WANTS_HELLO
        caller.scope.cancel()
        await wait_all_tasks_blocked()
        assert line.cancels() == 0
        line.hello()
        assert line.cancels() == 1


async def test_cancels_that_wait_are_not_kept(autojump_clock: MockClock) -> None:
    """A server may never answer. All requests on its connection that do not wait are cancelled."""
    line = FakeLine()
    async with asking(line) as nursery:
        line.connect()
        await Caller(line.client, b"lost", timeout=1)()
        line.cut()
        line.connect()
        for number in range(3):
            await Caller(line.client, b"%d" % number, timeout=1)()
        caller = Caller(line.client, b"waits")
        nursery.start_soon(caller)
        await wait_all_tasks_blocked()
        await Caller(line.client, b"3", timeout=1)()
        assert isinstance(line.multiplexer.state, Connected)
        kept = astuple(line.multiplexer.state.negotiation)
        assert not any(isinstance(value, Sized) for value in kept)
        assert line.cancels() == 0
        line.answer(4, b"reply")
        sent = [header for header, _ in line.sent]
        cancelled = [header.correlation for header in sent if header.kind == wire.CANCEL]
        given_up = [sent[number].correlation & wire.CORRELATION for number in (1, 2, 3, 5)]
        assert cancelled == given_up
    assert caller.reply == b"reply"


async def test_a_plain_server_is_never_sent_a_cancel(autojump_clock: MockClock) -> None:
    line = FakeLine()
    async with asking(line) as nursery:
        line.connect()
        first, second = Caller(line.client, b"1"), Caller(line.client, b"2")
        for caller in (first, second):
            nursery.start_soon(caller)
            await wait_all_tasks_blocked()
        first.scope.cancel()
        await wait_all_tasks_blocked()
        line.answer(1, b"trioreq-error", left=0)  # the header as it came, and any body
        third = Caller(line.client, b"3")
        nursery.start_soon(third)
        await wait_all_tasks_blocked()
        third.scope.cancel()
    assert second.reply == b"trioreq-error"
    assert line.cancels() == 0


async def test_the_loss_of_the_connection_fails_requests_in_flight_at_once(
    autojump_clock: MockClock,
) -> None:
    line = FakeLine()
    async with asking(line, timeout=1000) as nursery:
        line.connect()
        caller = Caller(line.client, b"x")
        nursery.start_soon(caller)
        await wait_all_tasks_blocked()
        before = trio.current_time()
        line.cut()
    assert trio.current_time() == before
    assert isinstance(caller.error, trioreq.ConnectionLost)
    assert isinstance(caller.error, trio.BrokenResourceError)
    assert "unknown" in str(caller.error)


async def test_a_reply_that_was_unread_at_the_end_of_the_connection_counts(
    autojump_clock: MockClock,
) -> None:
    line = FakeLine()
    async with asking(line) as nursery:
        line.connect()
        answered, lost = Caller(line.client, b"x"), Caller(line.client, b"y")
        for caller in (answered, lost):
            nursery.start_soon(caller)
            await wait_all_tasks_blocked()
        line.cut(line.reply(0, b"reply"))
    assert answered.reply == b"reply"
    assert isinstance(lost.error, trioreq.ConnectionLost)


class Pending:
    """A request without a caller that waits."""

    def __init__(self, body: bytes) -> None:
        self.body: Frames = (body,)
        self.deadline = self.seconds = math.inf
        self.correlation = 0
        self.error: Exception | None = None
        self.protected: bool | None = None

    def replied(self, body: Frames) -> None:
        raise AssertionError(body)

    def not_started(self) -> None:
        raise AssertionError

    def failed(self, error: Exception) -> None:
        self.error = error
        self.protected = trio.lowlevel.currently_ki_protected()


async def test_messages_held_for_a_lost_connection_are_not_sent_on_the_next(
    autojump_clock: MockClock,
) -> None:
    """Its caller gets ConnectionLost, and may have sent it again."""
    line = FakeLine()
    async with asking(line) as nursery:
        nursery.start_soon(line.multiplexer._buffer.keep_flushing)
        await wait_all_tasks_blocked()
        line.connect()
        requests = [Pending(body) for body in (b"goes out", b"is held", b"is held too")]
        for request in requests:
            assert line.multiplexer.send(request)
        assert line.requests() == [b"goes out"]
        line.cut()
        line.connect()
        await wait_all_tasks_blocked()
        assert line.requests() == [b"goes out"]
        assert all(isinstance(request.error, trioreq.ConnectionLost) for request in requests)
        assert line.multiplexer.send(Pending(b"new"))
        assert line.requests() == [b"goes out", b"new"]
        nursery.cancel_scope.cancel()


async def test_each_refusal_fails_the_requests_that_wait_then(autojump_clock: MockClock) -> None:
    """And not at once for a later request: the next attempt may succeed."""
    line = FakeLine()
    async with asking(line) as nursery:
        for _ in range(2):
            caller = Caller(line.client, b"x")
            nursery.start_soon(caller)
            await trio.sleep(1)
            assert caller.error is None
            line.multiplexer.take_event(HandshakeFailed("no such key"))
            await wait_all_tasks_blocked()
            assert isinstance(caller.error, trioreq.Refused)
            assert str(caller.error) == "memory: no such key"


@pytest.mark.parametrize(
    ("event", "kind", "says"),
    [
        (HandshakeFailed("no such key"), trioreq.Refused, "no such key"),
        (HandshakeFailed(), trioreq.NotConnected, "is it full"),
        (Accepted(), trioreq.NotConnected, "does a server listen there"),
    ],
)
@pytest.mark.parametrize("options", [{"timeout": 1}, {"connect_timeout": 1}])
async def test_a_request_that_times_out_has_the_hint_about_the_connection(
    autojump_clock: MockClock,
    event: Event,
    kind: type[Exception],
    says: str,
    options: dict[str, float],
) -> None:
    line = FakeLine()
    async with asking(line, **options) as nursery:
        line.multiplexer.take_event(event)
        caller = Caller(line.client, b"x")
        nursery.start_soon(caller)
    assert type(caller.error) is kind
    assert says in str(caller.error)


@pytest.mark.parametrize("many", [False, True])
async def test_ctrl_c_does_not_come_while_a_request_begins_to_wait_for_a_connection(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch, many: bool
) -> None:
    """The connection would wake a task that does not wait."""
    wait = AsyncValue.wait_transition
    protected = []

    async def watched(*args: Any) -> Any:
        protected.append(trio.lowlevel.currently_ki_protected())
        return await wait(*args)

    monkeypatch.setattr(AsyncValue, "wait_transition", watched)
    line = FakeLine()
    async with asking(line) as nursery:
        if many:
            nursery.start_soon(line.client.request_many, [b"x"])
        else:
            nursery.start_soon(Caller(line.client, b"x"))
        await wait_all_tasks_blocked()
        line.connect()
        await wait_all_tasks_blocked()
        line.answer(0, b"y")
    assert protected == [True]


async def test_a_request_waits_10_seconds_for_a_connection_also_after_one_was_lost(
    autojump_clock: MockClock,
) -> None:
    """It waited forever, and a mistake in the address looked like a slow server."""
    async with open_memory_network() as net, trioreq.open_client(net) as client:
        for connections in range(2):
            before = trio.current_time()
            with pytest.raises(trioreq.NotConnected) as caught:
                await client.request(b"x")
            assert trio.current_time() == before + 10
            assert str(caught.value) == (
                "no connection to memory in 10 s: does a server listen there? "
                "Check the address, and that the server runs"
            )
            async with trio.open_nursery() as nursery:
                await nursery.start(trioreq.serve, echo, net)
                assert await client.request(b"x") == b"x"
                assert client.statistics().connections == connections + 1
                nursery.cancel_scope.cancel()


async def test_without_a_connect_timeout_a_request_waits_as_long_as_it_takes(
    autojump_clock: MockClock,
) -> None:
    async with (
        open_memory_network() as net,
        trioreq.open_client(net, connect_timeout=None) as client,
        trio.open_nursery() as nursery,
    ):

        async def serve_late() -> None:
            await trio.sleep(80_000)
            await trioreq.serve(echo, net)

        nursery.start_soon(serve_late)
        assert await client.request(b"x") == b"x"
        nursery.cancel_scope.cancel()


async def echo(request: trioreq.Request) -> bytes:
    return request.body


async def test_retries_send_it_again_on_the_next_connection(autojump_clock: MockClock) -> None:
    line = FakeLine()
    async with asking(line, retries=2) as nursery:
        line.connect()
        caller = Caller(line.client, b"x")
        nursery.start_soon(caller)
        for _ in range(2):
            await wait_all_tasks_blocked()
            line.cut()
            await trio.sleep(10)
            line.connect()
        await trio.sleep(10)
        assert line.requests() == [b"x"] * 3
        line.answer(2, b"y")
    assert caller.reply == b"y"
    stats = line.client.statistics()
    assert (stats.requests, stats.retried, stats.lost, stats.replied) == (3, 2, 2, 1)


async def test_retries_have_an_end(autojump_clock: MockClock) -> None:
    line = FakeLine()
    async with asking(line, retries=1) as nursery:
        line.connect()
        caller = Caller(line.client, b"x")
        nursery.start_soon(caller)
        for _ in range(2):
            await trio.sleep(10)
            line.cut()
            line.connect()
    assert isinstance(caller.error, trioreq.ConnectionLost)


async def test_a_request_is_sent_again_as_often_as_retries_says(autojump_clock: MockClock) -> None:
    line = FakeLine()
    async with asking(line, retries=1100) as nursery:
        line.connect()
        caller = Caller(line.client, b"x")
        nursery.start_soon(caller)
        for _ in range(1100):
            await trio.sleep(10)
            line.cut()
            line.connect()
        await trio.sleep(10)
        assert line.client.statistics().retried == 1100
        line.answer(-1, b"done")
    assert caller.reply == b"done"


async def test_a_retry_that_finds_no_connection_does_not_say_that_nothing_was_sent(
    autojump_clock: MockClock,
) -> None:
    line = FakeLine()
    async with asking(line, retries=1, timeout=10) as nursery:
        line.connect()
        caller = Caller(line.client, b"x")
        nursery.start_soon(caller)
        await wait_all_tasks_blocked()
        line.cut()
    assert isinstance(caller.error, trioreq.RequestTimeout)


async def test_a_retry_that_gives_up_on_the_connection_says_that_the_outcome_is_unknown(
    autojump_clock: MockClock,
) -> None:
    line = FakeLine()
    async with asking(line, retries=1, connect_timeout=3) as nursery:
        line.connect()
        caller = Caller(line.client, b"x")
        nursery.start_soon(caller)
        await wait_all_tasks_blocked()
        line.cut()
    assert isinstance(caller.error, trioreq.ConnectionLost)


@pytest.mark.parametrize(
    ("status", "body", "kind", "says"),
    [
        (1, (b"trioreq-error", b"handler-failed", b"why"), trioreq.ReplyError, "why"),
        (255, (b"trioreq-error", b"not-found", b""), trioreq.ReplyError, "not-found"),
        (2, (b"trioreq-error", b"timed-out", b"slow"), trioreq.RequestTimeout, "slow"),
        (77, (b"trioreq-error", b"from-the-future", b""), trioreq.ReplyError, "future"),
        (1, (b"what?",), trioreq.UnexpectedReply, "without a code"),
        (1, (b"trioreq-error", b"", b""), trioreq.UnexpectedReply, "without a code"),
        (1, (b"trioreq-error", b"a b", b""), trioreq.UnexpectedReply, "a b"),
        (0, (b"one", b"two"), trioreq.UnexpectedReply, "request_multipart"),
    ],
)
async def test_an_error_reply_is_raised_by_its_kind(
    autojump_clock: MockClock, status: int, body: Frames, kind: type[Exception], says: str
) -> None:
    line = FakeLine()
    async with asking(line) as nursery:
        line.connect()
        caller = Caller(line.client, b"x")
        nursery.start_soon(caller)
        await wait_all_tasks_blocked()
        line.answer(0, *body, status=status)
    assert type(caller.error) is kind
    assert says in str(caller.error)


async def test_an_error_from_an_echo_server_is_a_reply(autojump_clock: MockClock) -> None:
    """The status says what it is, whatever the body looks like."""
    line = FakeLine()
    async with asking(line) as nursery:
        line.connect()
        nursery.start_soon(line.client.request_multipart, [b"x"])
        await wait_all_tasks_blocked()
        line.answer(0, b"trioreq-error", b"handler-failed", b"a quotation")
    assert line.client.statistics().replied == 1


@pytest.mark.parametrize(
    "frames", [[], [b"no delimiter"], [b"", b"no header"], [b"x" * 17, b"", b"y"]]
)
async def test_malformed_replies_are_counted(
    autojump_clock: MockClock, frames: list[bytes]
) -> None:
    line = FakeLine()
    async with asking(line):
        line.connect()
        line.multiplexer.take_message(frames)
    assert line.client.statistics().stale == 1


@pytest.mark.parametrize("connected", [True, False])
async def test_closing_fails_waiting_requests(autojump_clock: MockClock, connected: bool) -> None:
    line = FakeLine()
    async with asking(line) as nursery:
        if connected:
            line.connect()
        caller = Caller(line.client, b"x")
        nursery.start_soon(caller)
        await wait_all_tasks_blocked()
        line.multiplexer.close()
    assert isinstance(caller.error, trio.ClosedResourceError)
    with pytest.raises(trio.ClosedResourceError):
        await line.client.request(b"x")


async def test_ctrl_c_does_not_come_while_the_client_is_closed(autojump_clock: MockClock) -> None:
    """A request that is left out would wait forever."""
    line = FakeLine()
    async with asking(line):
        line.connect()
        request = Pending(b"x")
        assert line.multiplexer.send(request)
        line.multiplexer.close()
    assert request.protected


@pytest.mark.parametrize(
    ("frames", "error"),
    [([], TypeError), ("text", TypeError), (b"bytes", TypeError), (["text"], TypeError)],
)
async def test_invalid_requests_are_refused(
    autojump_clock: MockClock, frames: Any, error: type[Exception]
) -> None:
    line = FakeLine()
    async with asking(line):
        line.connect()
        with pytest.raises(error):
            await line.client.request_multipart(frames)
        with pytest.raises(ValueError, match="timeout"):
            await line.client.request(b"x", timeout=0)


async def test_everything_adds_up(autojump_clock: MockClock) -> None:
    line = FakeLine()
    async with asking(line, timeout=5) as nursery:
        line.connect()
        callers = [Caller(line.client, b"x") for _ in range(6)]
        for caller in callers:
            nursery.start_soon(caller)
        await wait_all_tasks_blocked()
        line.answer(0, b"y")
        line.answer(1, b"trioreq-error", b"overloaded", b"", status=3)
        callers[2].scope.cancel()
        callers[3].scope.cancel()
        await trio.sleep(5.5)
    stats = line.client.statistics()
    assert stats.requests == 6
    assert stats.requests == (
        stats.replied
        + stats.failed
        + stats.timed_out
        + stats.cancelled
        + stats.lost
        + stats.in_flight
    )


async def test_a_reply_on_the_memory_network_counts_that_comes_just_before_the_end(
    autojump_clock: MockClock,
) -> None:
    """Whichever task of the client is the first to wake."""

    async def ask() -> None:
        replies.append(await client.request(b"x"))

    async def hang(_: trioreq.Request) -> NoReturn:
        await trio.sleep_forever()
        raise AssertionError

    replies: list[bytes] = []
    for seed in range(10):
        async with (
            open_memory_server(hang, seed=seed) as net,
            trioreq.open_client(net) as client,
            trio.open_nursery() as nursery,
        ):
            nursery.start_soon(ask)
            await wait_all_tasks_blocked()
            line = client._connections.current.line
            assert isinstance(line, MemoryLine)
            line.connection.hand_over([Header(wire.OK, 1, wire.SPEAKS).pack(), b"", b"y"])
            line.connection.end_at_server()
    assert replies == [b"y"] * 10
