"""Streams where what matters is the order of things. Deterministic: an autojump clock."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable

import pytest
import trio
from support.line import FakeLine, asking
from support.memory import serving
from support.streamers import Streamer, ThreadStreamer
from trio.testing import MockClock, wait_all_tasks_blocked

import trioreq
from trioreq._protocol import credit, packs
from trioreq._protocol import envelope as wire
from trioreq._protocol.envelope import Header
from trioreq._server import streams
from trioreq.testing import _network

both = pytest.mark.parametrize("kind", [Streamer, ThreadStreamer])


@pytest.fixture
def small_queue(monkeypatch: pytest.MonkeyPatch) -> None:
    """Libzmq holds one message for each client."""
    monkeypatch.setattr(_network, "IN_LIBZMQ", 1)


@both
@pytest.mark.usefixtures("small_queue")
async def test_a_dealer_that_does_not_read_delays_its_generator_and_is_not_evicted(
    autojump_clock: MockClock, kind: Callable[[], Streamer | ThreadStreamer]
) -> None:
    streamer = kind()
    async with serving(streamer, send_queue=1, heartbeat=None, stall_timeout=None) as net:
        client = net.connect(socket_type="DEALER")
        client.send(b"end 100")
        client.stall()
        await wait_all_tasks_blocked()
        await trio.sleep(5)
        stats = net.server.statistics()
        assert streamer.sent <= 1 + streams.UNSENT
        assert stats.streamed <= 1 + streams.UNSENT
        assert (stats.connections, stats.replies_dropped) == (1, 0)
        client.resume()
        assert [(await client.receive())[0] for _ in range(100)] == [b"%d" % i for i in range(100)]
        assert await client.receive() == [b"trioreq-end"]


@both
@pytest.mark.usefixtures("small_queue")
async def test_streams_of_one_slow_dealer_together_leave_little_unsent(
    autojump_clock: MockClock, kind: Callable[[], Streamer | ThreadStreamer]
) -> None:
    """Also their ends wait until the connection accepts more."""
    async with serving(kind(), send_queue=1, heartbeat=None, stall_timeout=None) as net:
        client = net.connect(socket_type="DEALER")
        for number in range(10):
            client.send_raw(b"%d" % number, b"", b"end 2")
        client.stall()
        await trio.sleep(5)
        stats = net.server.statistics()
        assert stats.replies_waiting <= streams.UNSENT
        assert (stats.connections, stats.replies_dropped) == (1, 0)
        client.resume()
        received: dict[bytes, list[bytes]] = {}
        for _ in range(30):
            name, _, body = await client.receive_raw()
            received.setdefault(name, []).append(body)
        assert received == {b"%d" % n: [b"0", b"1", b"trioreq-end"] for n in range(10)}


@both
@pytest.mark.usefixtures("small_queue")
async def test_a_cancel_ends_a_stream_that_waits_for_its_connection(
    autojump_clock: MockClock, kind: Callable[[], Streamer | ThreadStreamer]
) -> None:
    streamer = kind()
    async with serving(streamer, heartbeat=None, stall_timeout=5, send_queue=1) as net:
        client = net.connect(socket_type="DEALER")
        client.send_raw(Header(wire.STREAM, 1).pack(), b"", b"end 100")
        client.send_raw(Header(wire.STREAM, 2).pack(), b"", b"end 100")
        net.connect()  # the server reads what has come first
        client.connection.to_client.block("stalled")
        await wait_all_tasks_blocked()
        assert net.server.statistics().running == 2
        client.send_raw(Header(wire.CANCEL, 1).pack(), b"", b"")
        await wait_all_tasks_blocked()
        assert streamer.log.count("cancelled: cancelled") == 1
        assert net.server.statistics().running == 1
        await trio.sleep(20)  # the client is evicted
        assert streamer.log.count("cancelled: disconnected") == 1
        assert net.server.statistics().running == 0


@both
@pytest.mark.usefixtures("small_queue")
async def test_nothing_is_kept_of_streams_that_end_while_their_client_does_not_read(
    autojump_clock: MockClock, kind: Callable[[], Streamer | ThreadStreamer]
) -> None:
    """However many there are: it would be memory without a limit."""
    async with serving(kind(), heartbeat=None, stall_timeout=None) as net:
        client = net.connect(socket_type="DEALER")
        client.send_raw(b"first", b"", b"end 100")
        net.connect()  # the server reads what has come first
        client.connection.to_client.block("stalled")
        await wait_all_tasks_blocked()
        (unsent,) = net.server._router.outbox.unsent.values()
        assert len(unsent.waiting) == 1
        for number in range(1, 20):
            client.send_raw(Header(wire.STREAM, number).pack(), b"", b"end 100")
            await wait_all_tasks_blocked()
            assert len(unsent.waiting) == net.server.statistics().in_flight == 2
            client.send_raw(Header(wire.CANCEL, number).pack(), b"", b"")
            await wait_all_tasks_blocked()
            assert len(unsent.waiting) == net.server.statistics().in_flight == 1


async def test_many_streams_share_a_pass_of_the_event_loop(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each reads the clock, which is stepped here, after each reply."""
    ticks = 0

    def clock() -> float:
        nonlocal ticks
        ticks += 1
        return ticks * streams.BURST_TIME / 10

    async with serving(Streamer(), max_in_flight=50, max_queued_per_client=50) as net:
        monkeypatch.setattr(net.server._streams, "_clock", clock)
        client = net.connect(socket_type="DEALER")
        for number in range(1, 51):
            client.send_raw(Header(wire.STREAM, number).pack(), b"", b"end 100")
        most = before = 0
        while net.server.statistics().replied < 50:
            await trio.lowlevel.checkpoint()
            streamed = net.server.statistics().streamed
            most = max(most, streamed - before)
            before = streamed
        assert before == 50 * 100
        a_pass = 10 * streams.PASS_TIME / streams.BURST_TIME
        assert most <= 2 * (a_pass + 50), (
            "replies in one pass"
        )  # of ours; there may be two of theirs


async def test_replies_go_in_packs_and_in_order(autojump_clock: MockClock) -> None:
    async with serving(Streamer(), max_in_flight=3) as net:
        client = net.connect(socket_type="DEALER")
        requests = [(Header(wire.STREAM, n).pack(), b"", b"end 200") for n in (1, 2)]
        (frames,) = packs.pack(requests, packs.MAX_SIZE, packs.MAX_SIZE)
        client.send_raw(*frames)
        bodies: dict[int, list[bytes]] = {1: [], 2: []}
        ends = messages = 0
        while ends < 2:
            messages += 1
            received = await client.receive_raw()
            pack = packs.unpack_untrusted(received[0]) if len(received) == 1 else None
            for frame, _, body in [received] if pack is None else pack[1]:
                header = wire.header_untrusted((frame, b""))
                assert header is not None
                if header.kind == wire.END:
                    ends += 1
                else:
                    assert header.kind == wire.MORE
                    bodies[header.correlation].append(body)
        assert bodies == {n: [b"%d" % i for i in range(200)] for n in (1, 2)}
        assert messages <= 12
        assert net.server.statistics().replies_sent == 402


async def test_a_first_reply_does_not_wait_for_the_second(autojump_clock: MockClock) -> None:
    async def handler(_: trioreq.Request) -> AsyncIterator[bytes]:
        yield b"at once"
        await trio.sleep(10)
        yield b"later"

    async with serving(handler) as net, trioreq.open_client(net) as client:
        start = trio.current_time()
        async with client.stream(b"") as replies:
            assert await anext(replies) == b"at once"
            assert trio.current_time() == start
            assert await anext(replies) == b"later"
            assert trio.current_time() == start + 10


# The client, on a line without a kernel.


async def test_the_client_gives_credit_in_halves(autojump_clock: MockClock) -> None:
    line = FakeLine()
    async with asking(line):
        line.connect()
        async with line.client.stream(b"x") as replies:
            for _ in range(credit.REPLIES):
                line.answer(0, b"", status=wire.MORE)
            for taken in range(1, credit.REPLIES + 1):
                await anext(replies)
                await wait_all_tasks_blocked()
                given = [body for header, body in line.sent if header.kind == wire.CREDIT]
                half = credit.REPLIES // 2
                assert given == taken // half * [(credit.CREDIT.pack(half, 0),)]
            line.answer(0, bytes(10), status=wire.MORE)
            line.answer(0, bytes(credit.BYTES), status=wire.MORE)
            for _ in range(2):
                await anext(replies)
            await wait_all_tasks_blocked()
            assert line.sent[-1][1] == (credit.CREDIT.pack(2, credit.BYTES + 10),)


@pytest.mark.parametrize("size", [0, credit.BYTES // 2])
async def test_a_reply_without_credit_ends_the_stream(autojump_clock: MockClock, size: int) -> None:
    """So a server that ignores credit does not fill the client's memory. Its replies come first."""
    line = FakeLine()
    async with asking(line):
        line.connect()
        async with line.client.stream(b"x") as replies:
            most = 2 if size else credit.REPLIES
            line.answer(0, bytes(size), status=wire.MORE)
            await anext(replies)
            await wait_all_tasks_blocked()
            given = line.sent[-1][0].kind == wire.CREDIT
            assert given == (size > 0)
            for _ in range(most + given):
                line.answer(0, bytes(size), status=wire.MORE)
            assert line.cancels() == 1
            for _ in range(most - 1 + given):
                assert await anext(replies) == bytes(size)
            with pytest.raises(trioreq.UnexpectedReply, match="without credit"):
                await anext(replies)
            line.answer(0, bytes(size), status=wire.MORE)
        stats = line.client.statistics()
        assert (stats.cancelled, stats.stale, stats.in_flight) == (1, 1, 0)


async def test_the_end_needs_no_credit(autojump_clock: MockClock) -> None:
    """Neither does one that has a reply, as if there was no stream."""
    line = FakeLine()
    async with asking(line):
        line.connect()
        for number, status in enumerate((wire.END, wire.OK)):
            async with line.client.stream(b"x") as replies:
                line.answer(number, bytes(credit.BYTES), status=wire.MORE)
                line.answer(number, b"", status=status)
                assert len([reply async for reply in replies]) == 1 + number
        await wait_all_tasks_blocked()
        assert line.cancels() == 0


@pytest.mark.parametrize("status", [wire.END, 1])
async def test_the_end_comes_after_the_replies(autojump_clock: MockClock, status: int) -> None:
    line = FakeLine()
    async with asking(line):
        line.connect()
        async with line.client.stream(b"x") as replies:
            line.answer(0, b"0", status=wire.MORE)
            line.answer(0, b"1", status=wire.MORE)
            body = (b"",) if status == wire.END else wire.error_body("no", "text")
            line.answer(0, *body, status=status)
            line.answer(0, b"late", status=wire.MORE)
            assert [await anext(replies), await anext(replies)] == [b"0", b"1"]
            with pytest.raises(StopAsyncIteration if status == wire.END else trioreq.ReplyError):
                await anext(replies)
        await wait_all_tasks_blocked()
        assert line.client.statistics().stale == 1
        assert [header.kind for header, _ in line.sent] == [wire.STREAM]  # no cancel, no credit


async def test_a_lost_connection_comes_after_the_replies(autojump_clock: MockClock) -> None:
    line = FakeLine()
    async with asking(line, retries=3):
        line.connect()
        async with line.client.stream(b"x") as replies:
            line.answer(0, b"0", status=wire.MORE)
            line.cut(line.reply(0, b"1", status=wire.MORE))
            assert [await anext(replies), await anext(replies)] == [b"0", b"1"]
            with pytest.raises(trioreq.ConnectionLost):
                await anext(replies)
        line.connect()
        await wait_all_tasks_blocked()
        assert len(line.sent) == 1


async def test_an_echo_is_a_stream_of_one(autojump_clock: MockClock) -> None:
    """A REP socket sends the header back as it came, whatever its kind."""
    line = FakeLine()
    async with asking(line):
        line.connect()
        async with line.client.stream(b"x") as replies:
            header, _ = line.sent[0]
            line.multiplexer.take_message([header.pack(), b"", b"echo"])
            assert [reply async for reply in replies] == [b"echo"]
        assert line.client.statistics().replied == 1


@pytest.mark.parametrize("status", [wire.MORE, wire.END])
async def test_statuses_of_streams_fail_a_request(autojump_clock: MockClock, status: int) -> None:
    line = FakeLine()
    async with asking(line) as nursery:
        line.connect()

        async def ask() -> None:
            with pytest.raises(trioreq.UnexpectedReply, match=f"status {status}"):
                await line.client.request(b"x")

        nursery.start_soon(ask)
        await wait_all_tasks_blocked()
        line.answer(0, b"0", status=status)


async def test_a_stream_waits_for_a_connection_and_has_its_time_limits(
    autojump_clock: MockClock,
) -> None:
    line = FakeLine()
    async with asking(line, connect_timeout=20):
        for options, seconds in (({}, 20), ({"timeout": 5}, 5)):
            start = trio.current_time()
            with pytest.raises(trioreq.NotConnected):
                await line.client.stream(b"x", **options).__aenter__()
            assert trio.current_time() == start + seconds
        assert line.sent == []


class Taker:
    """A task that takes one reply, and what has come of it."""

    def __init__(self, replies: AsyncIterator[bytes]) -> None:
        self.replies = replies
        self.outcome: bytes | Exception | None = None

    async def __call__(self) -> None:
        try:
            self.outcome = await anext(self.replies)
        except Exception as error:  # noqa: BLE001  # it is what the test asks for
            self.outcome = error


def not_started(line: FakeLine) -> FakeLine:
    """The server has not started the stream; returns the line to the next one."""
    line.answer(0, *wire.error_body("shutting-down", ""), status=wire.NOT_STARTED)
    assert line.following is not None
    return line.following


@pytest.mark.parametrize("waits_for", ["reply", "connection"])
async def test_leaving_the_block_ends_the_wait_of_another_task(
    autojump_clock: MockClock, waits_for: str
) -> None:
    line = FakeLine()
    async with asking(line) as nursery:
        line.connect()
        line.hello()
        async with line.client.stream(b"x") as replies:
            taker = Taker(replies)
            nursery.start_soon(taker)
            await wait_all_tasks_blocked()
            if waits_for == "connection":
                not_started(line)
                await wait_all_tasks_blocked()
        await wait_all_tasks_blocked()
        assert isinstance(taker.outcome, trio.ClosedResourceError)
        assert line.cancels() == (waits_for == "reply")


async def test_a_stream_that_was_not_started_is_not_sent_after_its_block(
    autojump_clock: MockClock,
) -> None:
    """Whether a task asks for a reply later, or waits for the connection that is made just then."""
    line = FakeLine()
    async with asking(line) as nursery:
        line.connect()
        async with line.client.stream(b"x") as replies:
            taker = Taker(replies)
            nursery.start_soon(taker)
            await wait_all_tasks_blocked()
            following = not_started(line)
            await wait_all_tasks_blocked()
            following.connect()
        await wait_all_tasks_blocked()
        assert isinstance(taker.outcome, trio.ClosedResourceError)
    async with asking(second := FakeLine()):
        second.connect()
        async with second.client.stream(b"x") as replies:
            not_started(second).connect()
        with pytest.raises(trio.ClosedResourceError):
            await anext(replies)
        with pytest.raises(StopAsyncIteration):
            await anext(replies)
        assert second.following is not None
        assert following.sent == second.following.sent == []


async def test_one_task_at_a_time_sends_a_stream_again(autojump_clock: MockClock) -> None:
    line = FakeLine()
    async with asking(line) as nursery:
        line.connect()
        async with line.client.stream(b"x") as replies:
            following = not_started(line)
            first, second = Taker(replies), Taker(replies)
            for taker in (first, second):
                nursery.start_soon(taker)
                await wait_all_tasks_blocked()
            assert isinstance(second.outcome, trio.BusyResourceError)
            following.connect()
            await wait_all_tasks_blocked()
            following.answer(0, b"0", status=wire.MORE)
            await wait_all_tasks_blocked()
            assert first.outcome == b"0"
            assert [header.kind for header, _ in following.sent] == [wire.STREAM]


async def test_a_stream_that_cannot_be_sent_again_has_ended(autojump_clock: MockClock) -> None:
    line = FakeLine()
    async with asking(line, connect_timeout=5):
        line.connect()
        async with line.client.stream(b"x") as replies:
            not_started(line)
            with pytest.raises(trioreq.NotConnected):
                await anext(replies)
            with pytest.raises(StopAsyncIteration):
                await anext(replies)
            assert trio.current_time() == 5


def test_credit_of_a_reply_that_is_larger_than_can_be_given_at_once() -> None:
    consumed = credit.Consumed()

    class Huge(bytes):
        def __len__(self) -> int:
            return 2**32 + 5

    assert consumed.count((Huge(),)) == credit.CREDIT.pack(1, 2**32 - 1)
    assert consumed.count((bytes(credit.BYTES),)) == credit.CREDIT.pack(1, credit.BYTES + 6)
