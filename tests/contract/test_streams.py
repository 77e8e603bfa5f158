"""Streams: `Client.stream` and plain clients, with async and plain generators as handlers."""

from __future__ import annotations

import math
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack
from functools import partial
from typing import Any

import pytest
import trio
from support.nets import Net
from support.outcomes import outcomes
from support.serving import until
from support.streamers import Streamer, ThreadStreamer

import trioreq
from trioreq._protocol import credit
from trioreq._protocol import envelope as wire
from trioreq._protocol.envelope import Header

END = [b"trioreq-end"]
KINDS = [Streamer, ThreadStreamer]
both = pytest.mark.parametrize("kind", KINDS)


def numbers(end: int) -> list[bytes]:
    return [b"%d" % number for number in range(end)]


async def collect(
    client: trioreq.Client, body: bytes, **options: Any
) -> tuple[list[bytes], Exception | None]:
    """The replies of a stream, and what has ended it."""
    async with client.stream(body, **options) as stream:
        return await rest(stream)


async def rest(stream: AsyncIterator[bytes]) -> tuple[list[bytes], Exception | None]:
    """The replies that were not taken, and what has ended the stream."""
    replies = []
    try:
        async for reply in stream:
            replies.append(reply)  # noqa: PERF401  # those before the error count
    except Exception as error:  # noqa: BLE001  # it is what is tested
        return replies, error
    return replies, None


# What comes.


@both
async def test_all_replies_come_in_order(net: Net, kind: Any) -> None:
    server = await net.serve(kind())
    async with net.open_client() as client:
        for number in (0, 1, 3, 600):
            assert await collect(client, b"end %d" % number) == (numbers(number), None)
        stats = client.statistics()
        assert (stats.requests, stats.replied, stats.in_flight) == (4, 4, 0)
    assert outcomes(server) == {"replied": 4}
    assert server.statistics().streamed == 604


@both
async def test_an_error_comes_after_the_replies_before_it(net: Net, kind: Any) -> None:
    server = await net.serve(kind())
    async with net.open_client() as client:
        replies, error = await collect(client, b"refuse 2")
        assert replies == numbers(2)
        assert isinstance(error, trioreq.ReplyError)
        assert (error.code, error.text) == ("not-found", "no more")
        replies, error = await collect(client, b"fail 1")
        assert replies == numbers(1)
        assert isinstance(error, trioreq.ReplyError)
        assert error.code == "handler-failed"
        assert client.statistics().failed == 2
    assert outcomes(server) == {"failed": 2}


@both
async def test_a_dealer_without_a_header_gets_each_reply_and_the_end(net: Net, kind: Any) -> None:
    server = await net.serve(kind())
    client = await net.connect_dealer()
    await client.send_raw(b"7", b"", b"end 2")
    assert await client.receive_raw() == [b"7", b"", b"0"]
    assert await client.receive_raw() == [b"7", b"", b"1"]
    assert await client.receive_raw() == [b"7", b"", *END]
    await client.send_raw(b"8", b"", b"refuse 1")
    assert await client.receive_raw() == [b"8", b"", b"0"]
    assert await client.receive_raw() == [b"8", b"", b"trioreq-error", b"not-found", b"no more"]
    assert outcomes(server) == {"replied": 1, "failed": 1}
    stats = server.statistics()
    assert (stats.streamed, stats.replies_sent) == (3, 5)


@both
async def test_many_streams_of_one_client_at_once(net: Net, kind: Any) -> None:
    results = []

    async def stream() -> None:
        results.append(await collect(client, b"end 300"))

    server = await net.serve(kind())
    async with net.open_client() as client, trio.open_nursery() as nursery:
        for _ in range(10):
            nursery.start_soon(stream)
    assert results == 10 * [(numbers(300), None)]
    assert outcomes(server) == {"replied": 10}


async def test_replies_of_several_frames(net: Net) -> None:
    async def handler(request: trioreq.Request) -> AsyncIterator[Any]:
        yield list(request.frames)
        yield b"one"
        yield bytearray(b"copied")

    await net.serve(handler)
    async with net.open_client() as client:
        async with client.stream_multipart([b"a", b"b"]) as stream:
            assert [reply async for reply in stream] == [[b"a", b"b"], [b"one"], [b"copied"]]
        async with client.stream_multipart([b"a", b"b"]) as stream:
            assert await anext(stream) == [b"a", b"b"]
        async with client.stream(b"a") as single:
            assert [reply async for reply in single] == [b"a", b"one", b"copied"]


async def test_a_reply_of_several_frames_is_unexpected_and_the_stream_goes_on(net: Net) -> None:
    async def handler(_: trioreq.Request) -> AsyncIterator[Any]:
        yield [b"a", b"b"]
        yield b"one"

    await net.serve(handler)
    async with net.open_client() as client, client.stream(b"x") as stream:
        with pytest.raises(trioreq.UnexpectedReply, match="use stream_multipart") as unexpected:
            await anext(stream)
        assert unexpected.value.frames == (b"a", b"b")
        assert [reply async for reply in stream] == [b"one"]


async def test_a_handler_that_returns_its_reply_makes_a_stream_of_one(net: Net) -> None:
    async def handler(request: trioreq.Request) -> bytes:
        return b"re:" + request.body

    await net.serve(handler)
    async with net.open_client() as client:
        assert await collect(client, b"x") == ([b"re:x"], None)
        assert await client.request(b"y") == b"re:y"


# Those who ask for one reply.


@both
async def test_a_request_for_one_reply_is_refused(net: Net, kind: Any) -> None:
    streamer = kind()
    server = await net.serve(streamer)
    plain = await net.connect()
    await plain.send(b"end 1")
    mark, code, text = await plain.receive()
    assert (mark, code) == (b"trioreq-error", b"streaming")
    assert b"client.stream" in text
    async with net.open_client() as client:
        with pytest.raises(trioreq.ReplyError, match="streaming"):
            await client.request(b"end 1")
        (error,) = await client.request_many([b"end 1"])
        assert isinstance(error, trioreq.ReplyError)
    assert outcomes(server) == {"malformed": 3}
    assert streamer.log.entries == []


async def test_the_error_of_a_req_has_the_format_of_error_reply(net: Net) -> None:
    await net.serve(Streamer(), error_reply=lambda code, _: code.encode())
    client = await net.connect()
    await client.send(b"end 1")
    assert await client.receive() == [b"streaming"]


@both
@pytest.mark.parametrize("workers", [trioreq.ProcessWorkers(1), trioreq.RayWorkers(1)], ids=type)
async def test_processes_make_no_streams(net: Net, kind: Any, workers: Any) -> None:
    handler = plain_in_a_module if kind is ThreadStreamer else in_a_module
    with pytest.raises(TypeError, match=rf"handler must be .* with {type(workers).__name__}, got"):
        await net.serve(handler, workers=workers)


def plain_in_a_module(_: trioreq.Request) -> Iterator[bytes]:
    yield b""


async def in_a_module(_: trioreq.Request) -> AsyncIterator[bytes]:
    yield b""


async def test_the_error_names_threads() -> None:
    with pytest.raises(TypeError, match="it yields a stream of replies, which threads can send"):
        await trioreq.serve(
            plain_in_a_module, "tcp://127.0.0.1:0", workers=trioreq.ProcessWorkers(1)
        )


# Credit.


@both
async def test_a_generator_runs_no_further_ahead_than_its_credit(net: Net, kind: Any) -> None:
    streamer = kind()
    server = await net.serve(streamer)
    async with net.open_client() as client, client.stream(b"end 1000") as stream:
        await until(lambda: streamer.sent == credit.REPLIES)
        assert await collect(client, b"end 0") == ([], None)  # the connection is free for others
        await settle(net)
        assert streamer.sent == credit.REPLIES
        assert server.statistics().streamed == credit.REPLIES
        assert [reply async for reply in stream] == numbers(1000)
    assert streamer.sent == 1000


async def test_the_bytes_of_replies_count_too(net: Net) -> None:
    streamer = Streamer()
    await net.serve(streamer)
    async with net.open_client() as client, client.stream(b"end 20 10000") as stream:
        await until(lambda: streamer.sent == 7)
        await settle(net)
        assert streamer.sent == 7  # 60,000 bytes are less than the credit, and 70,000 are more
        assert [len(reply) async for reply in stream] == 20 * [10000]


async def test_a_reply_may_be_larger_than_all_credit(net: Net) -> None:
    streamer = Streamer()
    await net.serve(streamer)
    async with net.open_client() as client, client.stream(b"end 3 200000") as stream:
        await until(lambda: streamer.sent == 1)
        await settle(net)
        assert streamer.sent == 1
        assert [len(reply) async for reply in stream] == 3 * [200000]


async def settle(net: Net) -> None:
    """Let everything happen that may happen now."""
    if net.in_step:
        await trio.testing.wait_all_tasks_blocked()
    else:
        await trio.sleep(0.05)


async def test_a_slow_dealer_delays_the_generator_and_is_not_evicted(net: Net) -> None:
    """However small the queue is: the generator waits."""
    streamer = Streamer()
    server = await net.serve(streamer, send_queue=1)
    client = await net.connect("DEALER")
    await client.send(b"end 3000 10000")
    for _ in range(3000):
        assert len((await client.receive())[0]) == 10000
    assert await client.receive() == END
    stats = server.statistics()
    assert (stats.streamed, stats.replies_dropped, stats.evicted) == (3000, 0, 0)


# The end of a stream before its own.


@both
async def test_leaving_the_block_cancels_the_stream(net: Net, kind: Any) -> None:
    streamer = kind()
    server = await net.serve(streamer)
    async with net.open_client() as client:
        async with client.stream(b"wait 2") as stream:
            assert await anext(stream) == b"0"
        await streamer.log.wait("ended")
        assert streamer.log.entries == ["started", "cancelled: cancelled", "ended"]
        assert (client.statistics().cancelled, client.statistics().in_flight) == (1, 0)
        replies, error = await rest(stream)
        assert replies in ([], [b"1"])
        assert isinstance(error, trio.ClosedResourceError)
    assert outcomes(server) == {"cancelled_by_client": 1}


@both
async def test_a_generator_is_cancelled_at_its_yield(net: Net, kind: Any) -> None:
    """It waits for credit there, and its `finally` runs."""
    streamer = kind()
    server = await net.serve(streamer)
    async with net.open_client() as client:
        async with client.stream(b"end 1000"):
            await until(lambda: streamer.sent == credit.REPLIES)
        await streamer.log.wait("ended")
        assert streamer.log.entries == ["started", "cancelled: cancelled", "ended"]
        await until(lambda: server.statistics().running == 0)
        assert outcomes(server) == {"cancelled_by_client": 1}
    assert server.statistics().streamed == credit.REPLIES


@both
async def test_cancelling_the_task_cancels_the_stream(net: Net, kind: Any) -> None:
    streamer = kind()
    server = await net.serve(streamer)
    async with net.open_client() as client:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(collect, client, b"wait 2")
            await until(lambda: streamer.sent == 2)
            nursery.cancel_scope.cancel()
        await streamer.log.wait("cancelled: cancelled")
        await streamer.log.wait("ended")
        assert outcomes(server) == {"cancelled_by_client": 1}


@both
@pytest.mark.parametrize("body", [b"wait 2", b"end 2000 10000"])
async def test_a_disconnect_ends_the_stream(net: Net, kind: Any, body: bytes) -> None:
    """Where the generator waits itself, and where it waits at its `yield`."""
    streamer = kind()
    server = await net.serve(streamer)
    client = await net.connect_mortal("DEALER")
    await client.send(body)
    await until(lambda: streamer.sent >= 2)
    await client.stall()
    await settle(net)
    await client.crash()
    await streamer.log.wait("cancelled: disconnected")
    await streamer.log.wait("ended")
    await until(lambda: server.statistics().running == 0)
    sent = server.statistics().streamed
    assert outcomes(server) == {"cancelled_by_disconnect": 1}
    await settle(net)
    assert server.statistics().streamed == sent
    assert server.statistics().replies_waiting == 0


@both
async def test_a_lost_connection_ends_the_stream_and_it_is_not_retried(net: Net, kind: Any) -> None:
    streamer = kind()
    server = await net.serve(streamer)
    async with net.open_client(retries=5) as client, client.stream(b"wait 2") as stream:
        assert [await anext(stream) for _ in range(2)] == numbers(2)
        for connection in list(server._router.connections):
            server._router.evict(connection, "the test says so")
        with pytest.raises(trioreq.ConnectionLost):
            await anext(stream)
        with pytest.raises(StopAsyncIteration):
            await anext(stream)
        assert client.statistics().lost == 1
    assert streamer.log.count("started") == 1
    assert outcomes(server) == {"cancelled_by_disconnect": 1}


@both
async def test_a_deadline_covers_the_whole_stream(net: Net, kind: Any) -> None:
    streamer = kind()
    server = await net.serve(streamer)
    async with net.open_client() as client:
        start = trio.current_time()
        replies, error = await collect(client, b"wait 2", timeout=net.brief)
        assert net.brief <= trio.current_time() - start <= net.brief + net.tolerance
        assert replies == numbers(2)
        assert isinstance(error, trioreq.RequestTimeout)
        assert client.statistics().timed_out == 1
        await streamer.log.wait("ended")
        # Whichever clock was the first.
        assert outcomes(server) in ({"timed_out": 1}, {"cancelled_by_client": 1})
    assert streamer.log.entries[1] in ("cancelled: deadline", "cancelled: cancelled")


@both
async def test_the_servers_own_limit_ends_a_stream(net: Net, kind: Any) -> None:
    streamer = kind()
    server = await net.serve(streamer, timeout=net.brief)
    async with net.open_client() as client:
        replies, error = await collect(client, b"wait 2")
        assert replies == numbers(2)
        assert isinstance(error, trioreq.RequestTimeout)
        await streamer.log.wait("cancelled: deadline")
    assert outcomes(server) == {"timed_out": 1}


async def test_a_deadline_ends_a_generator_that_waits_for_credit(net: Net) -> None:
    streamer = Streamer()
    server = await net.serve(streamer, timeout=net.brief)
    async with net.open_client() as client, client.stream(b"end 1000") as stream:
        await streamer.log.wait("cancelled: deadline")
        for number in range(credit.REPLIES):
            assert await anext(stream) == b"%d" % number
        with pytest.raises(trioreq.RequestTimeout):
            await anext(stream)
    assert outcomes(server) == {"timed_out": 1}


async def test_the_deadline_of_the_scopes_around_the_call_goes_with_it(net: Net) -> None:
    deadlines = []

    async def handler(request: trioreq.Request) -> AsyncIterator[bytes]:
        deadlines.append(request.deadline - trio.current_time())
        yield b""

    await net.serve(handler)
    async with net.open_client() as client:
        with trio.fail_after(1000):
            assert await collect(client, b"x", timeout=2000) == ([b""], None)
        assert await collect(client, b"x") == ([b""], None)
    assert 900 < deadlines[0] <= 1000.001
    assert deadlines[1] == math.inf or deadlines[1] > 1000


async def test_idle_timeout_is_the_time_that_the_consumer_waits(net: Net) -> None:
    async def handler(_: trioreq.Request) -> AsyncIterator[bytes]:
        for _pause in range(3):
            await trio.sleep(net.brief / 4)
            yield b""
        await trio.sleep_forever()

    server = await net.serve(handler)
    async with (
        net.open_client() as client,
        client.stream(b"x", idle_timeout=2 * net.brief) as stream,
    ):
        await anext(stream)
        await trio.sleep(3 * net.brief)  # this does not count
        await anext(stream)
        await anext(stream)
        start = trio.current_time()
        with pytest.raises(trioreq.RequestTimeout, match="has sent no reply for"):
            await anext(stream)
        waited = trio.current_time() - start
        assert 2 * net.brief <= waited <= 2 * net.brief + net.tolerance
        with pytest.raises(StopAsyncIteration):
            await anext(stream)
        assert client.statistics().timed_out == 1
        await until(lambda: server.statistics().running == 0)
        assert outcomes(server) == {"cancelled_by_client": 1}


@both
async def test_a_shutdown_ends_streams_with_an_error(net: Net, kind: Any) -> None:
    streamer = kind()
    server = await net.serve(streamer)
    plain = await net.connect("DEALER")
    await plain.send(b"wait 1")
    assert await plain.receive() == [b"0"]
    async with net.open_client() as client, client.stream(b"wait 1") as stream:
        assert await anext(stream) == b"0"
        await net.stop()
        with pytest.raises(trioreq.ReplyError, match="shutting-down"):
            await anext(stream)
    assert (await plain.receive())[1] == b"shutting-down"
    await streamer.log.wait("cancelled: shutdown", times=2)
    assert outcomes(server) == {"shut_down": 2}


@both
async def test_a_drain_lets_a_stream_end(net: Net, kind: Any) -> None:
    streamer = kind()
    server = await net.serve(streamer)
    async with (
        net.open_client() as client,
        trio.open_nursery() as nursery,
        client.stream(b"wait 1") as stream,
    ):
        assert await anext(stream) == b"0"
        nursery.start_soon(server.drain, math.inf)
        await settle(net)
        streamer.release.set()
        assert [reply async for reply in stream] == []
    assert outcomes(server) == {"replied": 1}


@both
async def test_a_stream_has_one_slot_until_it_ends(net: Net, kind: Any) -> None:
    streamer = kind()
    server = await net.serve(streamer, max_in_flight=1, workers=1)
    async with net.open_client() as client, client.stream(b"wait 1") as first:
        assert await anext(first) == b"0"
        async with client.stream(b"end 1") as second:
            await until(lambda: server.statistics().waiting == 1)
            assert server.statistics().running == 1
            streamer.release.set()
            assert await anext(second) == b"0"


# What generators do.


async def test_a_time_limit_in_a_generator_holds_at_its_yield_too(net: Net) -> None:
    """It runs in one task, so its own cancel scopes work; the reply that waits is not sent."""

    async def handler(_: trioreq.Request) -> AsyncIterator[bytes]:
        with trio.move_on_after(net.brief):
            for number in range(credit.REPLIES + 1):
                yield b"%d" % number
        yield b"over"

    server = await net.serve(handler)
    async with net.open_client() as client, client.stream(b"x") as stream:
        await until(lambda: server.statistics().streamed == credit.REPLIES)
        await trio.sleep(2 * net.brief)
        replies = [reply async for reply in stream]
    assert replies == [*numbers(credit.REPLIES), b"over"]


async def test_a_nursery_in_a_generator(net: Net) -> None:
    async def handler(_: trioreq.Request) -> AsyncIterator[bytes]:
        async with trio.open_nursery() as nursery:
            send, receive = trio.open_memory_channel[bytes](0)
            nursery.start_soon(produce, send)
            async for reply in receive:
                yield reply

    async def produce(send: trio.MemorySendChannel[bytes]) -> None:
        async with send:
            for number in range(600):
                await send.send(b"%d" % number)

    server = await net.serve(handler)
    async with net.open_client() as client:
        assert await collect(client, b"x") == (numbers(600), None)
        async with client.stream(b"x") as stream:
            await anext(stream)
        await until(lambda: server.statistics().running == 0)
        assert outcomes(server) == {"replied": 1, "cancelled_by_client": 1}


async def test_a_generator_that_goes_on_though_it_was_cancelled_is_closed(net: Net) -> None:
    closed = []

    async def handler(_: trioreq.Request) -> AsyncIterator[bytes]:
        try:
            while True:
                try:
                    yield bytes(1000)
                except trio.Cancelled:
                    closed.append("cancelled")
        finally:
            closed.append("closed")

    server = await net.serve(handler)
    async with net.open_client() as client:
        async with client.stream(b"x") as stream:
            await anext(stream)
        await until(lambda: server.statistics().running == 0)
        assert outcomes(server) == {"cancelled_by_client": 1}
    assert closed == ["cancelled", "closed"]


async def test_a_plain_generator_that_goes_on_is_closed(net: Net) -> None:
    closed = []

    def handler(_: trioreq.Request) -> Iterator[bytes]:
        try:
            while True:
                try:
                    yield bytes(1000)
                except trioreq.RequestCancelled:
                    closed.append("cancelled")
        finally:
            closed.append("closed")

    server = await net.serve(handler)
    async with net.open_client() as client:
        async with client.stream(b"x") as stream:
            await anext(stream)
        await until(lambda: server.statistics().running == 0)
        assert outcomes(server) == {"cancelled_by_client": 1}
    assert closed == ["cancelled", "closed"]


@pytest.mark.parametrize("reply", [None, "text", 5, [], [b"", None]])
@both
async def test_a_result_that_is_not_a_reply_ends_the_stream(
    net: Net, kind: Any, reply: Any, caplog: pytest.LogCaptureFixture
) -> None:
    closed = []

    async def handler(_: trioreq.Request) -> AsyncIterator[Any]:
        try:
            yield b"first"
            yield reply
        finally:
            closed.append(True)

    def plain(_: trioreq.Request) -> Iterator[Any]:
        try:
            yield b"first"
            yield reply
        finally:
            closed.append(True)

    await net.serve(plain if kind is ThreadStreamer else handler)
    async with net.open_client() as client:
        replies, error = await collect(client, b"x")
    assert replies == [b"first"]
    assert isinstance(error, trioreq.ReplyError)
    assert error.code == "handler-failed"
    assert closed == [True]
    assert "TypeError: its result" in caplog.text


async def test_a_shielded_generator_is_woken_by_the_end_of_its_request(net: Net) -> None:
    """It waits for credit in a shield; what it yields then is dropped."""
    ended = trio.Event()

    async def handler(_: trioreq.Request) -> AsyncIterator[bytes]:
        with trio.CancelScope(shield=True):
            for number in range(2 * credit.REPLIES):
                yield b"%d" % number
        ended.set()
        yield b"never"

    server = await net.serve(handler)
    async with net.open_client() as client:
        async with client.stream(b"x"):
            await until(lambda: server.statistics().streamed == credit.REPLIES)
        await ended.wait()
        await until(lambda: server.statistics().running == 0)
    assert server.statistics().streamed == credit.REPLIES


async def test_a_generator_that_is_a_method_or_a_partial(net: Net) -> None:
    class Handler:
        async def method(self, number: int, request: trioreq.Request) -> AsyncIterator[bytes]:
            yield b"%d" % number + request.body

    await net.serve(partial(Handler().method, 7))
    async with net.open_client() as client:
        assert await collect(client, b"x") == ([b"7x"], None)


# The client.


async def test_one_task_takes_replies_at_a_time(net: Net) -> None:
    streamer = Streamer()
    await net.serve(streamer)
    async with (
        net.open_client() as client,
        client.stream(b"wait 0") as stream,
        trio.open_nursery() as nursery,
    ):
        nursery.start_soon(anext, stream)
        await streamer.log.wait("started")
        await settle(net)
        with pytest.raises(trio.BusyResourceError):
            await anext(stream)
        nursery.cancel_scope.cancel()


async def test_a_cancelled_wait_loses_no_reply(net: Net) -> None:
    streamer = Streamer()
    await net.serve(streamer)
    async with net.open_client() as client, client.stream(b"wait 1") as stream:
        assert await anext(stream) == b"0"
        with trio.move_on_after(net.brief):
            await anext(stream)
        streamer.release.set()
        assert [reply async for reply in stream] == []


async def test_closing_the_client_ends_its_streams(net: Net) -> None:
    streamer = Streamer()
    await net.serve(streamer)
    async with AsyncExitStack() as stack:
        async with net.open_client() as client:
            stream = await stack.enter_async_context(client.stream(b"wait 1"))
            assert await anext(stream) == b"0"
        with pytest.raises(trio.ClosedResourceError):
            await anext(stream)
    with pytest.raises(trio.ClosedResourceError):
        await client.stream(b"x").__aenter__()


async def test_credit_for_one_stream_is_not_anothers(net: Net) -> None:
    streamer = Streamer()
    await net.serve(streamer)
    client = await net.connect_dealer()
    for number in (1, 2):
        await client.send_raw(Header(wire.STREAM, number).pack(), b"", b"end 300 1")
    replies = [(await client.receive_raw())[0] for _ in range(2 * credit.REPLIES)]
    assert [replies.count(Header(wire.MORE, n, wire.SPEAKS).pack()) for n in (1, 2)] == 2 * [256]
    await client.send_raw(Header(wire.CREDIT, 2).pack(), b"", credit.CREDIT.pack(1000, 1000))
    for _ in range(44):
        assert (await client.receive_raw())[0] == Header(wire.MORE, 2, wire.SPEAKS).pack()
    assert (await client.receive_raw())[0] == Header(wire.END, 2, wire.SPEAKS).pack()
    await settle(net)
    assert streamer.sent == credit.REPLIES + 300
