"""What a client asks, and what it is answered.

In memory the clock jumps; on the wire time is real, and everything waits for events.
"""

from __future__ import annotations

import logging
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from typing import Any

import pytest
import trio
from support.handlers import ThreadWorker, Worker
from support.nets import Net
from support.outcomes import outcomes
from support.serving import until

import trioreq
import trioreq.testing
from harness.outcomes import ended
from trioreq._server.requests import Requests


@pytest.mark.parametrize("worker_type", [Worker, ThreadWorker])
@pytest.mark.parametrize("socket_type", ["REQ", "DEALER"])
async def test_a_request_has_its_reply(net: Net, socket_type: str, worker_type: Any) -> None:
    server = await net.serve(worker_type())
    client = await net.connect(socket_type)
    for body in (b"echo", b"echo again"):
        await client.send(body)
        assert await client.receive() == [b"re:" + body]
    assert outcomes(server) == {"replied": 2}
    stats = server.statistics()
    assert (stats.replies_sent, stats.connections, stats.in_flight) == (2, 1, 0)


async def test_the_envelope_comes_back_untouched(net: Net) -> None:
    await net.serve(Worker())
    client = await net.connect_dealer()
    await client.send_raw(b"hop", b"\x00id", b"", b"echo", b"", b"more")
    assert await client.receive_raw() == [b"hop", b"\x00id", b"", b"re:echo"]


async def test_a_request_has_its_attributes_and_cannot_be_changed(net: Net) -> None:
    seen: list[trioreq.Request] = []

    async def handler(request: trioreq.Request) -> list[bytes]:
        seen.append(request)
        return [b"a", b"", b"c"]

    await net.serve(handler, timeout=30)
    client = await net.connect()
    before = trio.current_time()
    await client.send(b"one", b"", b"three")
    assert await client.receive() == [b"a", b"", b"c"]
    (request,) = seen
    assert request.body == b"one"
    assert request.frames == (b"one", b"", b"three")
    assert before + 30 <= request.deadline <= trio.current_time() + 30
    assert request.cancel_reason is None
    assert (request.client.id, request.client.socket_type, request.client.user_id) == (1, "REQ", "")
    assert request.client.address
    for name in ("body", "frames", "deadline", "client", "cancel_reason"):
        with pytest.raises(AttributeError):
            setattr(request, name, None)
    with pytest.raises(AttributeError):
        request.client.user_id = "root"  # type: ignore[misc]


async def test_a_client_that_connects_again_is_another(net: Net) -> None:
    async def handler(request: trioreq.Request) -> bytes:
        return b"%d" % request.client.id

    server = await net.serve(handler)
    numbers = []
    for _ in range(3):
        client = await net.connect(routing_id=b"the-same-id")
        await client.send(b"x")
        numbers += await client.receive()
        await client.close()
        await until(lambda: server.statistics().connections == 0)
    assert len(set(numbers)) == 3


@pytest.mark.parametrize(
    ("result", "body"),
    [
        (bytearray(b"x"), [b"x"]),
        (memoryview(b"xy")[1:], [b"y"]),
        ((b"a", bytearray()), [b"a", b""]),
    ],
)
async def test_all_kinds_of_valid_replies_are_sent(
    net: Net, result: object, body: list[bytes]
) -> None:
    async def handler(request: trioreq.Request) -> object:
        return result

    await net.serve(handler)
    client = await net.connect()
    await client.send(b"x")
    assert await client.receive() == body


@pytest.mark.parametrize("result", [None, "text", [], 17])
async def test_an_invalid_reply_is_a_logged_type_error(
    net: Net, result: object, caplog: pytest.LogCaptureFixture
) -> None:
    async def handler(request: trioreq.Request) -> object:
        return result

    server = await net.serve(handler)
    client = await net.connect()
    await client.send(b"x")
    assert (await client.receive())[:2] == [b"trioreq-error", b"handler-failed"]
    assert outcomes(server) == {"failed": 1}
    assert "TypeError" in caplog.text


async def test_a_dealer_may_have_many_in_flight(net: Net) -> None:
    worker = Worker()
    await net.serve(worker)
    client = await net.connect("DEALER")
    for number in range(10):
        await client.send(b"wait %d" % number)
    await worker.log.wait_for(lambda: len(worker.log.entries) == 10)
    worker.release.set()
    replies = {(await client.receive())[0] for _ in range(10)}
    assert replies == {b"re:wait %d" % number for number in range(10)}


async def test_a_malformed_message_is_answered_counted_and_logged_once(
    net: Net, caplog: pytest.LogCaptureFixture
) -> None:
    server = await net.serve(Worker())
    client = await net.connect_dealer()
    for frames in ([b"no", b"delimiter"], [b""], [b"hop", b""]):
        await client.send_raw(*frames)
        reply = await client.receive_raw()
        assert reply[:3] == [b"", b"trioreq-error", b"malformed"]
        assert len(reply) == 4
    assert outcomes(server) == {"malformed": 3}
    assert sum("malformed request" in record.message for record in caplog.records) == 1


@pytest.mark.parametrize("worker_type", [Worker, ThreadWorker])
async def test_an_exception_becomes_an_error_reply_and_a_traceback_in_the_log(
    net: Net, worker_type: Any, caplog: pytest.LogCaptureFixture
) -> None:
    server = await net.serve(worker_type())
    client = await net.connect()
    await client.send(b"fail secret")
    reply = await client.receive()
    assert reply[:2] == [b"trioreq-error", b"handler-failed"]
    assert b"LookupError" in reply[2]
    assert b"secret" not in reply[2]
    await client.send(b"echo")
    assert await client.receive() == [b"re:echo"]
    assert outcomes(server) == {"failed": 1, "replied": 1}
    (record,) = [record for record in caplog.records if record.levelno == logging.ERROR]
    assert "fail secret" in caplog.text
    assert record.exc_info


async def test_an_error_on_purpose_has_its_own_code_and_no_traceback(
    net: Net, caplog: pytest.LogCaptureFixture
) -> None:
    async def handler(request: trioreq.Request) -> bytes:
        raise trioreq.ReplyError("not-found", "no image 17")

    server = await net.serve(handler)
    client = await net.connect()
    await client.send(b"x")
    assert await client.receive() == [b"trioreq-error", b"not-found", b"no image 17"]
    assert outcomes(server) == {"failed": 1}
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]


class Odd(BaseException):
    """No Exception, and nothing that ends programs."""


async def test_odd_exceptions_are_failures_too(net: Net) -> None:
    async def handler(request: trioreq.Request) -> bytes:
        raise Odd

    await net.serve(handler)
    client = await net.connect()
    await client.send(b"x")
    assert (await client.receive())[1] == b"handler-failed"


@pytest.mark.parametrize("plain", [False, True])
async def test_check_cancelled_knows_its_request(net: Net, plain: bool) -> None:
    def handler(request: trioreq.Request) -> bytes:
        trioreq.check_cancelled()
        return b"fine"

    async def async_handler(request: trioreq.Request) -> bytes:
        return handler(request)

    await net.serve(handler if plain else async_handler)
    client = await net.connect()
    await client.send(b"x")
    assert await client.receive() == [b"fine"]


async def test_past_the_queue_the_answer_is_overloaded_at_once(
    net: Net, caplog: pytest.LogCaptureFixture
) -> None:
    worker = Worker()
    server = await net.serve(worker, max_in_flight=2, max_queued_per_client=1)
    client, other = await net.connect("DEALER"), await net.connect()
    for name in (b"shield 1", b"shield 2", b"echo 3", b"echo 4", b"echo 5"):
        await client.send(name)
    for _ in range(2):
        assert (await client.receive())[:2] == [b"trioreq-error", b"overloaded"]
    await other.send(b"echo")  # has a queue of its own
    await until(lambda: server.statistics().waiting == 2)
    stats = server.statistics()
    assert (stats.in_flight, stats.running) == (4, 2)
    worker.release.set()
    assert await other.receive() == [b"re:echo"]
    assert {(await client.receive())[0] for _ in range(3)} == {
        b"re:shield 1",
        b"re:shield 2",
        b"re:echo 3",
    }
    assert outcomes(server) == {"overloaded": 2, "replied": 4}
    assert sum("too many" in record.message for record in caplog.records) == 1


async def test_none_may_wait_if_there_is_no_queue(net: Net) -> None:
    worker = Worker()
    await net.serve(worker, max_in_flight=1, max_queued_per_client=0)
    client = await net.connect("DEALER")
    await client.send(b"wait")
    await client.send(b"echo")
    assert (await client.receive())[1] == b"overloaded"
    worker.release.set()
    assert await client.receive() == [b"re:wait"]


@pytest.mark.parametrize(
    ("worker_type", "limit"), [(Worker, "max_in_flight"), (ThreadWorker, "workers")]
)
async def test_slots_are_shared_fairly_between_clients(
    net: Net, worker_type: Any, limit: str
) -> None:
    worker = worker_type()
    server = await net.serve(worker, **{limit: 1})
    greedy, modest = await net.connect("DEALER"), await net.connect()
    await greedy.send(b"wait")
    await worker.log.wait("started wait")
    for number in range(3):
        await greedy.send(b"echo greedy %d" % number)
    await until(lambda: server.statistics().waiting == 3)
    await modest.send(b"echo modest")
    await until(lambda: server.statistics().waiting == 4)
    worker.release.set()
    for _ in range(4):
        await greedy.receive()
    await modest.receive()
    started = [e.removeprefix("started echo ") for e in worker.log.entries if "started e" in e]
    assert started == ["greedy 0", "modest", "greedy 1", "greedy 2"]


async def test_past_the_deadline_the_handler_is_cancelled(net: Net) -> None:
    worker = Worker()
    server = await net.serve(worker, timeout=net.brief)
    client = await net.connect()
    before = trio.current_time()
    await client.send(b"wait")
    reply = await client.receive()
    took = trio.current_time() - before
    assert net.brief <= took <= net.brief + net.tolerance
    assert reply == [
        b"trioreq-error",
        b"timed-out",
        b"the request took longer than the server allows",
    ]
    await worker.log.wait("cancelled wait: deadline")
    assert outcomes(server) == {"timed_out": 1}


async def test_past_the_deadline_check_cancelled_raises(net: Net) -> None:
    reasons: list[trioreq.CancelReason] = []

    def handler(request: trioreq.Request) -> bytes:
        while True:
            trioreq.testing.sleep(net.brief / 100)
            try:
                trioreq.check_cancelled()
            except trioreq.RequestCancelled as cancelled:
                reasons.append(cancelled.reason)
                raise

    server = await net.serve(handler, timeout=net.brief)
    client = await net.connect()
    await client.send(b"x")
    assert (await client.receive())[1] == b"timed-out"
    await until(lambda: server.statistics().running == 0)
    assert reasons == ["deadline"]


async def test_the_deadline_includes_the_wait_for_a_slot(net: Net) -> None:
    """And a handler that ignores it keeps its turn."""
    worker = Worker()
    server = await net.serve(worker, max_in_flight=1, timeout=net.brief)
    first, second = await net.connect(), await net.connect()
    await first.send(b"shield")
    await worker.log.wait("started shield")
    await second.send(b"echo")
    for client in (first, second):
        assert (await client.receive())[:2] == [b"trioreq-error", b"timed-out"]
    assert server.statistics().running == 1
    worker.release.set()
    await second.send(b"echo again")
    assert await second.receive() == [b"re:echo again"]
    assert "started echo" not in worker.log.entries
    assert outcomes(server) == {"timed_out": 2, "replied": 1}
    assert net.handed_over[2:] == [b"re:echo again"]


async def test_a_frame_as_large_as_allowed_passes_and_a_larger_one_ends_its_connection(
    net: Net,
) -> None:
    worker = Worker()
    server = await net.serve(worker, max_message_size=100)
    client, other = await net.connect("DEALER"), await net.connect()
    await client.send(b"wait", bytes(100), bytes(100))  # it is the frames that are limited
    await worker.log.wait("started wait")
    await client.send(bytes(101))
    await worker.log.wait("cancelled wait: disconnected")
    await other.send(b"echo")
    assert await other.receive() == [b"re:echo"]
    assert outcomes(server) == {"cancelled_by_disconnect": 1, "replied": 1}


async def test_the_least_limit_is_the_size_of_a_handshake(net: Net) -> None:
    """With less, no client could connect (libzmq#4436), so it is refused."""
    with pytest.raises(ValueError, match=r"max_message_size must be from 41 to .* got 40"):
        await trioreq.serve(Worker(), net._address(), max_message_size=40)
    with pytest.raises(ValueError, match=r"max_message_size must be from 41 to .* got 40"):
        async with net.open_client(max_message_size=40):
            pass
    await net.serve(Worker(), max_message_size=41)
    client = await net.connect("DEALER")
    await client.send(b"echo")
    assert await client.receive() == [b"re:echo"]
    async with net.open_client(max_message_size=41) as ours:
        assert await ours.request(b"echo") == b"re:echo"


async def test_a_routing_id_counts_in_the_handshake(net: Net) -> None:
    server = await net.serve(Worker(), max_message_size=60)
    short = await net.connect("DEALER", routing_id=b"x" * 19)
    await short.send(b"echo")
    assert await short.receive() == [b"re:echo"]
    long = await net.connect("DEALER", routing_id=b"x" * 20)
    await long.send(b"echo")
    await until(lambda: server._router._table.epoch >= 3)  # it came, and it went
    assert server.statistics().requests == 1


async def test_statistics_may_be_taken_in_another_thread(
    net: Net, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each snapshot adds up, also if requests end as it is taken. The loop waits for the thread."""
    worker = Worker()
    server = await net.serve(worker)
    with ThreadPoolExecutor(1) as thread:
        await (await net.connect()).send(b"wait")
        await worker.log.wait("started wait")
        assert thread.submit(server.statistics).result() == server.statistics()
        left = [1]

        def end(_: Requests) -> int:
            left[0] -= 1
            return left[0]

        with monkeypatch.context() as patched:
            patched.setattr(Requests, "in_flight", property(end), raising=False)
            counted = thread.submit(server.statistics).result()
        assert counted.requests == ended(asdict(counted)) + counted.in_flight
        async with net.open_client() as client:
            assert thread.submit(client.statistics).result() == client.statistics()
    worker.release.set()
