"""Clients that are killed or stopped, are slow or send again: what becomes of their requests.

On the wire they are processes that are really killed or stopped. A test does that only after
the handler has said that it runs, and waits for what the handler or the server says next.
"""

from __future__ import annotations

from functools import partial

import pytest
import trio
from support.handlers import ThreadWorker, Worker
from support.nets import Net
from support.outcomes import outcomes
from support.serving import until

import trioreq
from trioreq._transport import server_sockets
from trioreq._transport.heartbeats import heartbeat_times
from trioreq.testing import _network

pytestmark = pytest.mark.slow


async def test_g1_g4_a_client_that_dies_cancels_its_async_handler(net: Net) -> None:
    worker = Worker()
    server = await net.serve(worker)
    client = await net.connect_mortal()
    await client.send(b"wait")
    await worker.log.wait("started wait")
    before = trio.current_time()
    await client.crash()
    await worker.log.wait("cancelled wait: disconnected")
    assert trio.current_time() - before <= net.tolerance
    assert outcomes(server) == {"cancelled_by_disconnect": 1}
    stats = server.statistics()
    assert stats.replies_sent == stats.in_flight == stats.connections == 0
    assert not net.handed_over


async def test_a_client_that_closes_its_socket_is_disconnected(net: Net) -> None:
    worker = Worker()
    server = await net.serve(worker)
    client = await net.connect()
    await client.send(b"wait")
    await worker.log.wait("started wait")
    await client.close()
    await worker.log.wait("cancelled wait: disconnected")
    assert server.statistics().connections == 0


async def test_g1_a_handler_that_ignores_its_end_sends_no_reply(net: Net) -> None:
    worker = Worker()
    server = await net.serve(worker)
    client = await net.connect_mortal()
    await client.send(b"shield")
    await worker.log.wait("started shield")
    await client.crash()
    await until(lambda: server.statistics().connections == 0)
    assert server.statistics().running == 1  # it keeps its turn
    worker.release.set()
    await worker.log.wait("ended shield")
    await until(lambda: server.statistics().running == 0)
    assert server.statistics().replies_dropped == 1
    assert outcomes(server) == {"cancelled_by_disconnect": 1}
    assert not net.handed_over
    assert not net.refused


async def test_g4_a_killed_client_ends_its_plain_function_at_the_next_check(net: Net) -> None:
    worker = ThreadWorker()
    server = await net.serve(worker)
    client = await net.connect_mortal()
    await client.send(b"wait")
    await worker.log.wait("started wait")
    await client.crash()
    await worker.log.wait("cancelled wait: disconnected")
    await until(lambda: server.statistics().running == 0)
    assert outcomes(server) == {"cancelled_by_disconnect": 1}
    assert not net.handed_over


async def test_g4_an_abandoned_function_counts_until_it_ends_and_sends_no_reply(net: Net) -> None:
    worker = ThreadWorker()
    server = await net.serve(worker, workers=1)
    deaf, queued = await net.connect_mortal(), await net.connect_mortal()
    await deaf.send(b"deaf")
    await worker.log.wait("started deaf")
    await queued.send(b"wait for a worker")
    await until(lambda: server.statistics().waiting == 1)
    await deaf.crash()
    await until(lambda: server.statistics().abandoned_threads == 1)
    await queued.crash()
    await until(lambda: server.statistics().connections == 0)
    assert outcomes(server) == {"cancelled_by_disconnect": 1, "never_started": 1}
    stats = server.statistics()
    assert (stats.in_flight, stats.running) == (0, 1)
    client = await net.connect()
    await client.send(b"echo")
    await until(lambda: server.statistics().waiting == 1)  # the pool is bounded
    worker.release.set()
    assert await client.receive() == [b"re:echo"]
    assert server.statistics().abandoned_threads == 0
    assert [e for e in worker.log.entries if "started" in e] == ["started deaf", "started echo"]
    assert net.handed_over == [b"re:echo"]


async def test_g2_the_next_client_under_the_same_routing_id_does_not_get_the_old_reply(
    net: Net,
) -> None:
    worker = Worker()
    server = await net.serve(worker)
    client = await net.connect_mortal(routing_id=b"the-same-id")
    await client.send(b"shield")
    await worker.log.wait("started shield")
    await client.crash()
    heir = await net.connect(routing_id=b"the-same-id")
    await heir.send(b"echo")
    assert await heir.receive() == [b"re:echo"]
    worker.release.set()
    await until(lambda: server.statistics().running == 0)
    await heir.send(b"echo again")
    assert await heir.receive() == [b"re:echo again"]
    assert server.statistics().replies_dropped == 1
    assert net.handed_over == [b"re:echo", b"re:echo again"]


async def test_a_second_client_under_a_taken_routing_id_is_never_heard(net: Net) -> None:
    """Also not when the first has closed. The id is free then for a third."""
    worker = Worker()
    server = await net.serve(worker)
    first = await net.connect("DEALER", routing_id=b"the-same-id")
    await first.send(b"echo first")
    assert await first.receive() == [b"re:echo first"]
    second = await net.connect("DEALER", routing_id=b"the-same-id")
    await second.send(b"echo second")
    await until(lambda: server.statistics().connections == 2)
    await first.send(b"echo first")
    assert await first.receive() == [b"re:echo first"]
    await first.close()
    await until(lambda: server.statistics().connections == 1)
    await second.send(b"echo second")
    third = await net.connect("DEALER", routing_id=b"the-same-id")
    await third.send(b"echo third")
    assert await third.receive() == [b"re:echo third"]
    assert "started echo second" not in worker.log.entries
    assert outcomes(server) == {"replied": 3}


async def test_g3_a_request_queued_when_its_client_is_killed_is_never_started(net: Net) -> None:
    worker = Worker()
    server = await net.serve(worker, max_in_flight=1)
    client = await net.connect_mortal("DEALER")
    await client.send(b"wait 1")
    await worker.log.wait("started wait 1")
    for name in (b"wait 2", b"wait 3", b"wait 4"):
        await client.send(name)
    await until(lambda: server.statistics().waiting == 3)
    await client.crash()
    other = await net.connect()
    await other.send(b"echo")
    assert await other.receive() == [b"re:echo"]
    assert [e for e in worker.log.entries if "started" in e] == ["started wait 1", "started echo"]
    assert outcomes(server) == {"cancelled_by_disconnect": 1, "never_started": 3, "replied": 1}


async def test_a_dealer_that_dies_with_32_in_flight_ends_them_all(net: Net) -> None:
    worker = Worker()
    server = await net.serve(worker, max_in_flight=16, max_queued_per_client=16)
    client = await net.connect_mortal("DEALER")
    for _ in range(32):
        await client.send(b"wait")
    await until(lambda: server.statistics().in_flight == 32)
    await worker.log.wait("started wait", 16)
    await client.crash()
    await worker.log.wait("cancelled wait: disconnected", 16)
    assert outcomes(server) == {"cancelled_by_disconnect": 16, "never_started": 16}
    await until(lambda: server.statistics().running == 0)


async def test_g5_a_server_that_has_lost_all_its_clients_has_nothing_left_to_do(net: Net) -> None:
    worker = Worker()
    server = await net.serve(worker, max_in_flight=2, timeout=net.brief)
    for number in range(20):
        client = await net.connect("DEALER", routing_id=b"chosen" if number % 2 else None)
        for _ in range(3):
            await client.send(b"wait")
        await worker.log.wait("started wait", 2 * (number + 1))
        await until(lambda: server.statistics().in_flight == 3)
        await client.close()
        await until(lambda: server.statistics().connections == 0)
        await until(lambda: server.statistics().running == 0)
    stats = server.statistics()
    assert (stats.in_flight, stats.waiting) == (0, 0)
    assert outcomes(server) == {"cancelled_by_disconnect": 40, "never_started": 20}
    assert not server._queue._queues
    assert not any(timer.item for _, _, timer in server._requests.deadlines._heap)
    assert not list(server._router.connections)
    assert not server._router._automatic


@pytest.mark.parametrize("how", ["stopped", "cut off"])
async def test_g6_a_silent_client_is_disconnected_after_the_heartbeat(net: Net, how: str) -> None:
    worker = Worker()
    server = await net.serve(worker, heartbeat=net.heartbeat)
    healthy = await net.connect()
    await healthy.send(b"wait and stay")
    if how == "stopped":
        client = await net.connect_mortal()
        await client.send(b"wait")
        await worker.log.wait("started wait")
        before = trio.current_time()
        await client.stall()
    else:
        before = trio.current_time()
        await net.connect_and_fall_silent(b"wait")
        await worker.log.wait("started wait")
    await worker.log.wait("cancelled wait: disconnected")
    took = trio.current_time() - before
    assert 0.9 * heartbeat_times(net.heartbeat)[1] < took <= net.heartbeat + net.tolerance
    worker.release.set()
    assert await healthy.receive() == [b"re:wait and stay"]
    assert outcomes(server) == {"cancelled_by_disconnect": 1, "replied": 1}


async def test_without_a_heartbeat_a_client_may_be_silent_for_as_long_as_it_likes(
    net: Net,
) -> None:
    worker = Worker()
    server = await net.serve(worker, heartbeat=None)
    client = await net.connect_mortal()
    await client.send(b"wait")
    await worker.log.wait("started wait")
    await client.stall()
    await trio.sleep(3 * net.heartbeat)
    assert server.statistics().connections == 1
    await client.resume()
    worker.release.set()
    assert await client.receive() == [b"re:wait"]


@pytest.fixture
def _small_queue(monkeypatch: pytest.MonkeyPatch) -> None:
    """Libzmq holds one message for a connection; the others wait in the server."""
    monkeypatch.setattr(server_sockets, "IN_LIBZMQ", 1)
    monkeypatch.setattr(_network, "IN_LIBZMQ", 1)


async def large(worker: Worker, request: trioreq.Request) -> bytes:
    """What the kernel and libzmq hold on the way is theirs: so replies are large."""
    reply = await worker(request)
    return reply.ljust(2**22) if request.body.startswith(b"wait") else reply


@pytest.mark.usefixtures("_small_queue")
async def test_g6_a_slow_client_gets_its_replies_later_and_no_other_client_waits(
    net: Net,
) -> None:
    worker = Worker()
    server = await net.serve(partial(large, worker), send_queue=9, heartbeat=None)
    slow, other = await net.connect_mortal("DEALER"), await net.connect()
    for number in range(8):
        await slow.send(b"wait%d" % number)
    await worker.log.wait_for(lambda: len(worker.log.entries) == 8)
    await slow.stall()
    worker.release.set()
    await other.send(b"echo")
    assert await other.receive() == [b"re:echo"]
    await until(lambda: server.statistics().in_flight == 0)
    stats = server.statistics()
    assert stats.replied == 9
    assert stats.replies_waiting > 0
    assert stats.replies_sent + stats.replies_waiting == 9
    await slow.resume()
    replies = [(await slow.receive())[0].rstrip() for _ in range(8)]
    assert sorted(replies) == [b"re:wait%d" % number for number in range(8)]
    stats = server.statistics()
    assert (stats.replies_sent, stats.replies_waiting, stats.replies_dropped) == (9, 0, 0)
    assert stats.evicted_slow == 0


@pytest.mark.usefixtures("_small_queue")
async def test_g5_a_client_with_too_many_replies_waiting_is_evicted(
    net: Net, caplog: pytest.LogCaptureFixture
) -> None:
    worker = Worker()
    server = await net.serve(partial(large, worker), send_queue=2, heartbeat=None)
    full, other = await net.connect_mortal("DEALER"), await net.connect()
    for _ in range(8):
        await full.send(b"wait")
    await worker.log.wait("started wait", 8)
    await full.stall()
    worker.release.set()
    await other.send(b"echo")
    assert await other.receive() == [b"re:echo"]
    await until(lambda: server.statistics().evicted_slow == 1)
    await until(lambda: server.statistics().in_flight == 0)
    stats = server.statistics()
    assert (stats.replies_waiting, stats.connections) == (0, 1)
    assert stats.replies_dropped > 0
    told = [record.message for record in caplog.records if "send_queue is full" in record.message]
    assert len(told) == 1
    await full.resume()


async def test_g7_a_new_request_of_a_req_client_supersedes_the_last_one(net: Net) -> None:
    worker = Worker()
    server = await net.serve(worker)
    client = await net.connect()
    await client.send(b"wait")
    await worker.log.wait("started wait")
    await client.send(b"echo")
    assert await client.receive() == [b"re:echo"]
    await worker.log.wait("cancelled wait: superseded")
    assert outcomes(server) == {"superseded": 1, "replied": 1}
    assert net.handed_over == [b"re:echo"]


async def test_g7_a_late_reply_is_never_taken_for_the_new_ones(net: Net) -> None:
    worker = Worker()
    server = await net.serve(worker)
    client = await net.connect()
    await client.send(b"shield")
    await worker.log.wait("started shield")
    await client.send(b"wait")
    await worker.log.wait("started wait")
    worker.release.set()
    assert await client.receive() == [b"re:wait"]
    await worker.log.wait("ended shield")
    await until(lambda: server.statistics().running == 0)
    assert outcomes(server) == {"superseded": 1, "replied": 1}
    assert net.handed_over == [b"re:wait"]


async def test_a_dealer_that_sends_more_gives_nothing_up(net: Net) -> None:
    worker = Worker()
    server = await net.serve(worker)
    client = await net.connect("DEALER")
    await client.send(b"wait")
    await worker.log.wait("started wait")
    await client.send(b"echo")
    assert await client.receive() == [b"re:echo"]
    worker.release.set()
    assert await client.receive() == [b"re:wait"]
    assert outcomes(server) == {"replied": 2}


async def test_a_nursery_that_fails_while_it_is_cancelled_ends_its_request_alone(
    net: Net, caplog: pytest.LogCaptureFixture
) -> None:
    inside = trio.Event()

    async def fail_late() -> None:
        inside.set()
        try:
            await trio.sleep_forever()
        finally:
            raise LookupError("while unwinding")

    async def handler(request: trioreq.Request) -> bytes:
        if request.body == b"echo":
            return b"re:echo"
        async with trio.open_nursery() as nursery:
            nursery.start_soon(trio.sleep_forever)
            nursery.start_soon(fail_late)
        raise AssertionError

    server = await net.serve(handler)
    client, other = await net.connect(), await net.connect()
    await client.send(b"x")
    await inside.wait()
    await client.close()
    await other.send(b"echo")
    assert await other.receive() == [b"re:echo"]
    await until(lambda: server.statistics().running == 0)
    assert outcomes(server) == {"cancelled_by_disconnect": 1, "replied": 1}
    assert "after its request had ended (disconnected)" in caplog.text
    assert "while unwinding" in caplog.text
