"""`request_many` on a line without a kernel. Deterministic: an autojump clock."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
import trio
from support.line import FakeLine, asking
from support.serving import until
from trio.testing import MockClock, assert_checkpoints, wait_all_tasks_blocked

import trioreq
from trioreq._client.pipeline import Pipeline
from trioreq._protocol import envelope as wire
from trioreq._transport.line import HandshakeFailed


class Many:
    """A task that asks many, and what became of it."""

    def __init__(self, line: FakeLine, bodies: Any, **options: Any) -> None:
        self.line = line
        self.bodies = bodies
        self.options = options
        self.scope = trio.CancelScope()
        self.replies: list[bytes | Exception] | None = None
        self.error: Exception | None = None
        self.task: trio.lowlevel.Task

    async def __call__(self) -> None:
        self.task = trio.lowlevel.current_task()
        with self.scope:
            try:
                self.replies = await self.line.client.request_many(self.bodies, **self.options)
            except Exception as error:  # noqa: BLE001  # it is what the test asks for
                self.error = error

    def kinds(self) -> list[object]:
        """What came: replies, and the types of errors."""
        assert self.replies is not None
        return [one if isinstance(one, bytes) else type(one) for one in self.replies]


@asynccontextmanager
async def asking_many(
    bodies: Any, *, in_flight: int = 256, connected: bool = True, **options: Any
) -> Any:
    """A line, and a task that has sent as much as it may."""
    line = FakeLine()
    async with asking(line, **options) as nursery:
        if connected:
            line.connect()
            line.hello()
        many = Many(line, bodies, in_flight=in_flight)
        nursery.start_soon(many)
        await wait_all_tasks_blocked()
        yield line, many


async def test_replies_are_in_the_order_of_their_bodies(autojump_clock: MockClock) -> None:
    async with asking_many([b"0", b"1", b"2"]) as (line, many):
        for number in (2, 0, 1):
            line.answer(number, b"re:%d" % number)
    assert many.replies == [b"re:0", b"re:1", b"re:2"]


async def test_no_more_are_in_flight_than_may_be(autojump_clock: MockClock) -> None:
    taken = []

    def bodies() -> Iterator[bytes]:
        for number in range(5):
            taken.append(number)
            yield b"%d" % number

    async with asking_many(bodies(), in_flight=2) as (line, many):
        assert line.requests() == [b"0", b"1"]
        assert taken == [0, 1]  # none before there is room for it
        line.answer(1, b"y")
        await wait_all_tasks_blocked()
        assert line.requests() == [b"0", b"1", b"2"]
        for number in (0, 2, 3, 4):
            line.answer(number, b"x")
            await wait_all_tasks_blocked()
    assert many.replies == [b"x", b"y", b"x", b"x", b"x"]


async def test_replies_that_come_together_wake_the_task_once(autojump_clock: MockClock) -> None:
    """It is what makes it fast."""

    class Steps(trio.abc.Instrument):
        count = 0

        def before_task_step(self, task: trio.lowlevel.Task) -> None:
            self.count += task is many.task

    async with asking_many([b"x"] * 100, in_flight=50) as (line, many):
        steps = Steps()
        trio.lowlevel.add_instrument(steps)
        for number in range(50):
            line.answer(number, b"y")
        await wait_all_tasks_blocked()
        assert (len(line.sent), steps.count) == (100, 1)
        for number in range(50, 100):
            line.answer(number, b"y")
    assert many.replies == [b"y"] * 100


async def test_an_error_is_in_its_place_and_the_others_go_on(autojump_clock: MockClock) -> None:
    async with asking_many([b"x"] * 4) as (line, many):
        line.answer(0, b"trioreq-error", b"not-found", b"no image 17", status=255)
        line.answer(1, b"one", b"two")
        line.answer(2, b"trioreq-error", b"timed-out", b"slow", status=2)
        line.answer(3, b"y")
    assert many.kinds() == [
        trioreq.ReplyError,
        trioreq.UnexpectedReply,
        trioreq.RequestTimeout,
        b"y",
    ]
    assert "no image 17" in str(many.replies[0])
    assert "request_multipart" in str(many.replies[1])


async def test_each_has_its_own_time(autojump_clock: MockClock) -> None:
    """From when it is taken; a request that times out is cancelled, and makes room."""
    async with asking_many([b"0", b"1", b"2"], in_flight=2, timeout=10) as (line, many):
        await trio.sleep(4)
        line.answer(1, b"y")
        await trio.sleep(5)
        assert line.requests() == [b"0", b"1", b"2"]
        assert (line.sent[2][0].left, line.cancels()) == (10_000, 0)
        await trio.sleep(2)
        assert line.cancels() == 1
        assert line.sent[-1][0].correlation == line.sent[0][0].correlation & wire.CORRELATION
        await trio.sleep(2)
        line.answer(2, b"z")
        line.answer(0, b"late")
    assert many.kinds() == [trioreq.RequestTimeout, b"y", b"z"]
    stats = line.client.statistics()
    assert (stats.timed_out, stats.replied, stats.stale) == (1, 2, 1)


async def test_each_is_sent_when_it_is_taken(autojump_clock: MockClock) -> None:
    """Though it takes its time to make them."""

    def bodies() -> Iterator[bytes]:
        for number in range(3):
            sent.append(len(line.sent))
            autojump_clock.jump(1)
            yield b"%d" % number

    sent: list[int] = []
    line = FakeLine()
    async with asking(line, timeout=2) as nursery:
        line.connect()
        nursery.start_soon(Many(line, bodies()))
        await wait_all_tasks_blocked()
        assert sent == [0, 1, 2]
        assert [header.left for header, _ in line.sent] == [2000] * 3


async def test_its_own_timeout_is_before_the_clients(autojump_clock: MockClock) -> None:
    line = FakeLine()
    async with asking(line, timeout=1000):
        line.connect()
        before = trio.current_time()
        (reply,) = await line.client.request_many([b"x"], timeout=3)
        assert trio.current_time() == before + 3
        assert isinstance(reply, trioreq.RequestTimeout)
        assert "3 s" in str(reply)


async def test_a_cancel_takes_all_back(autojump_clock: MockClock) -> None:
    async with asking_many([b"x"] * 5, in_flight=3) as (line, many):
        many.scope.cancel()
        line.answer(0, b"late")  # it has been woken with its Cancelled, and has not run yet
        await wait_all_tasks_blocked()
        # This one has been answered, though its result is not used.
        assert (line.cancels(), len(line.requests())) == (2, 3)
        line.answer(1, b"late")
        line.cut()
    assert many.replies is None
    stats = line.client.statistics()
    assert (stats.cancelled, stats.replied, stats.stale, stats.lost) == (2, 1, 1, 0)
    assert stats.in_flight == 0


async def test_requests_in_flight_are_lost_with_the_connection_and_unsent_ones_are_not(
    autojump_clock: MockClock,
) -> None:
    async with asking_many([b"0", b"1", b"2"], in_flight=2) as (line, many):
        line.cut()
        await trio.sleep(100)
        assert len(line.sent) == 2
        line.connect()
        await wait_all_tasks_blocked()
        line.answer(2, b"y")
    assert many.kinds() == [trioreq.ConnectionLost, trioreq.ConnectionLost, b"y"]


async def test_with_retries_it_is_sent_again_and_first(autojump_clock: MockClock) -> None:
    async with asking_many([b"0", b"1", b"2"], in_flight=2, retries=1) as (line, many):
        line.answer(0, b"x")
        line.cut()
        line.connect()
        await wait_all_tasks_blocked()
        assert line.requests() == [b"0", b"1"]  # there is a pause
        await trio.sleep(10)
        assert line.requests() == [b"0", b"1", b"1", b"2"]
        line.cut()
        line.connect()
        await trio.sleep(10)
        assert line.requests() == [b"0", b"1", b"1", b"2", b"2"]
        line.answer(4, b"z")
    assert many.kinds() == [b"x", trioreq.ConnectionLost, b"z"]
    stats = line.client.statistics()
    assert (stats.requests, stats.retried, stats.lost, stats.replied) == (5, 2, 3, 2)


async def test_a_retry_has_the_time_that_is_left(autojump_clock: MockClock) -> None:
    async with asking_many([b"0", b"1"], in_flight=1, timeout=10, retries=1) as (line, many):
        await trio.sleep(4)
        line.cut()
        before = trio.current_time()
        line.connect()
        await trio.sleep(3)
        assert 5000 < line.sent[1][0].left < 6000
        await trio.sleep(3.5)
        line.answer(2, b"y")
        assert trio.current_time() == before + 6.5
    assert many.kinds() == [trioreq.RequestTimeout, b"y"]


async def test_a_retry_that_finds_no_connection_in_time_is_one(autojump_clock: MockClock) -> None:
    async with asking_many([b"x"], retries=2, connect_timeout=3) as (line, many):
        before = trio.current_time()
        line.cut()
        await trio.sleep(4)
        line.connect()
        await trio.sleep(3)
        line.answer(1, b"y")
        assert trio.current_time() == before + 7
    assert many.replies == [b"y"]


async def test_retries_that_find_no_connection_have_an_end(autojump_clock: MockClock) -> None:
    async with asking_many([b"x"], retries=2, connect_timeout=3) as (line, many):
        line.cut()
    assert many.kinds() == [trioreq.ConnectionLost]
    assert line.client.statistics().retried == 0


async def test_the_pauses_before_retries_grow(autojump_clock: MockClock) -> None:
    """And are cut short when the time is up."""
    async with asking_many([b"x"], retries=10, timeout=4) as (line, many):
        before = trio.current_time()
        pauses = []
        while many.replies is None:
            lost = trio.current_time()
            line.sent.clear()
            line.cut()
            line.connect()
            await until(lambda: bool(many.replies or line.sent))
            pauses.append(trio.current_time() - lost)
        assert pauses[3] > 2 * pauses[0]
        assert 4 <= trio.current_time() - before < 4.01
    assert many.kinds() == [trioreq.RequestTimeout]


async def test_no_more_are_taken_than_may_be_in_flight(autojump_clock: MockClock) -> None:
    """Where they wait for a connection, and one comes and goes."""
    taken = []

    def bodies() -> Iterator[bytes]:
        for number in range(5):
            taken.append(number)
            yield b"x"

    async with asking_many(bodies(), in_flight=2, connected=False) as (line, many):
        line.connect()
        line.cut()
        await wait_all_tasks_blocked()
        assert taken == [0, 1]
        many.scope.cancel()


@pytest.mark.parametrize(("options", "seconds"), [({"connect_timeout": 3}, 6), ({"timeout": 4}, 8)])
async def test_as_many_as_may_be_in_flight_wait_for_a_connection_together(
    autojump_clock: MockClock, options: dict[str, float], seconds: float
) -> None:
    before = trio.current_time()
    async with asking_many([b"x"] * 4, in_flight=2, connected=False, **options) as (line, many):
        pass
    assert trio.current_time() == before + seconds
    assert many.kinds() == [trioreq.NotConnected] * 4
    assert line.client.statistics().requests == 0


async def test_they_wait_for_a_connection_and_then_go_out(autojump_clock: MockClock) -> None:
    async with asking_many([b"x"] * 3, connected=False) as (line, many):
        await trio.sleep(1000)
        line.connect()
        await wait_all_tasks_blocked()
        for number in range(3):
            line.answer(number, b"y")
    assert many.replies == [b"y"] * 3


async def test_a_client_that_is_refused(autojump_clock: MockClock) -> None:
    async with asking_many([b"x"] * 2, connected=False) as (line, many):
        line.multiplexer.take_event(HandshakeFailed("no such key"))
    assert many.kinds() == [trioreq.Refused] * 2


@pytest.mark.parametrize("left", [0, 1])
@pytest.mark.parametrize("connected", [True, False])
async def test_closing_ends_it(autojump_clock: MockClock, connected: bool, left: int) -> None:
    async with asking_many([b"x"] * (2 + left), in_flight=2, connected=connected) as (line, many):
        line.multiplexer.close()
    assert isinstance(many.error, trio.ClosedResourceError)
    assert line.client.statistics().in_flight == 0


async def test_an_invalid_body_cancels_the_requests_in_flight(autojump_clock: MockClock) -> None:
    async with asking_many([b"1", b"2", "text"], in_flight=2) as (line, many):
        line.answer(0, b"y")
    assert isinstance(many.error, TypeError)
    assert "encode it first" in str(many.error)
    assert (line.requests(), line.cancels()) == ([b"1", b"2"], 1)
    assert line.client.statistics().in_flight == 0


async def test_bodies_may_be_any_bytes_like(autojump_clock: MockClock) -> None:
    changing = bytearray(b"a")
    async with asking_many([changing, memoryview(b"b")]) as (line, many):
        changing[0] = 0
        line.answer(0, b"y")
        line.answer(1, b"y")
    assert line.requests() == [b"a", b"b"]
    assert many.replies == [b"y"] * 2


async def test_ctrl_c_does_not_come_between_its_parking_and_its_wait(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A reply would wake a task that runs."""
    current_task = trio.lowlevel.current_task
    protected = []

    def watched() -> trio.lowlevel.Task:
        if sys._getframe(1).f_code is Pipeline._wait_for_reply.__code__:
            protected.append(trio.lowlevel.currently_ki_protected())
        return current_task()

    monkeypatch.setattr(trio.lowlevel, "current_task", watched)
    async with asking_many([b"x"]) as (line, _):
        line.answer(0, b"y")
    assert protected == [True]


async def test_none_are_none_and_a_checkpoint(autojump_clock: MockClock) -> None:
    line = FakeLine()
    async with asking(line):
        with assert_checkpoints():
            assert await line.client.request_many([]) == []


async def test_invalid_requests_are_refused(autojump_clock: MockClock) -> None:
    line = FakeLine()
    async with asking(line):
        with pytest.raises(ValueError, match="in_flight"):
            await line.client.request_many([b"x"], in_flight=0)
        with pytest.raises(ValueError, match="timeout"):
            await line.client.request_many([b"x"], timeout=0)
        for bodies in (b"bytes", "text"):
            with pytest.raises(TypeError, match="for one use request"):
                await line.client.request_many(bodies)  # type: ignore[arg-type]
