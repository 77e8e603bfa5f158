"""How a server ends: what it lets finish, and what it sends to its clients."""

from __future__ import annotations

import math
from collections import Counter
from typing import Any

import pytest
import trio
from support.handlers import ThreadWorker, Worker
from support.nets import Net
from support.outcomes import outcomes
from support.serving import until

import trioreq

SHUTTING_DOWN = [b"trioreq-error", b"shutting-down", b"the server is shutting down"]


async def test_cancelling_serve_answers_each_waiting_client_and_cancels_handlers(net: Net) -> None:
    """Each handler knows the reason, though which task is first is chance: so there are many."""
    many = 10
    worker = Worker()
    server = await net.serve(worker, max_in_flight=many)
    running = [await net.connect() for _ in range(many)]
    for client in running:
        await client.send(b"wait")
    await worker.log.wait("started wait", many)
    waiting = await net.connect()
    await waiting.send(b"echo")
    await until(lambda: server.statistics().waiting == 1)
    before = trio.current_time()
    await net.stop()
    assert trio.current_time() - before <= net.tolerance
    assert Counter(worker.log.entries) == {
        "started wait": many,
        "cancelled wait: shutdown": many,
        "ended wait": many,
    }
    for client in (*running, waiting):
        assert await client.receive() == SHUTTING_DOWN
    assert outcomes(server) == {"shut_down": many + 1}


async def test_plain_functions_detect_the_shutdown_with_check_cancelled(net: Net) -> None:
    worker = ThreadWorker()
    server = await net.serve(worker)
    deaf, listening = await net.connect(), await net.connect()
    await deaf.send(b"deaf")
    await listening.send(b"wait")
    await worker.log.wait("started deaf")
    await worker.log.wait("started wait")
    await net.stop()
    await worker.log.wait("cancelled wait: shutdown")
    assert "ended deaf" not in worker.log.entries  # left to itself; it was not awaited
    await until(lambda: server.statistics().abandoned_threads == 1)
    worker.release.set()
    await worker.log.wait("ended deaf")
    await until(lambda: server.statistics().abandoned_threads == 0)


@pytest.mark.parametrize("worker_type", [Worker, ThreadWorker])
async def test_draining_lets_requests_in_flight_finish_and_starts_no_others(
    net: Net, worker_type: Any
) -> None:
    worker = worker_type()
    server = await net.serve(worker, max_in_flight=1)
    client, waiting, newcomer = await net.connect(), await net.connect(), await net.connect()
    await client.send(b"wait")
    await worker.log.wait("started wait")
    await waiting.send(b"echo")
    await until(lambda: server.statistics().waiting == 1)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(server.drain, math.inf)
        await until(lambda: server._requests.closing)
        await newcomer.send(b"echo")
        assert await newcomer.receive() == SHUTTING_DOWN
        worker.release.set()
        assert await client.receive() == [b"re:wait"]
        assert await waiting.receive() == [b"re:echo"]
    assert outcomes(server) == {"replied": 2, "shut_down": 1}


async def test_draining_ends_after_its_grace(net: Net) -> None:
    worker = Worker()
    server = await net.serve(worker)
    client = await net.connect()
    await client.send(b"wait")
    await worker.log.wait("started wait")
    before = trio.current_time()
    await server.drain(net.brief)
    assert net.brief <= trio.current_time() - before <= net.brief + net.tolerance
    assert await client.receive() == SHUTTING_DOWN
    assert "cancelled wait: shutdown" in worker.log.entries


async def test_draining_twice_takes_the_shorter_grace(net: Net) -> None:
    worker = Worker()
    server = await net.serve(worker)
    await (await net.connect()).send(b"wait")
    await worker.log.wait("started wait")
    async with trio.open_nursery() as nursery:
        nursery.start_soon(server.drain, 1000)
        await until(lambda: server._requests.closing)
        before = trio.current_time()
        await server.drain(net.brief)
    assert net.brief <= trio.current_time() - before <= net.brief + net.tolerance


async def test_draining_an_idle_server_is_at_once(net: Net) -> None:
    server = await net.serve(Worker())
    before = trio.current_time()
    await server.drain(math.inf)
    assert trio.current_time() - before <= net.tolerance


@pytest.mark.parametrize("grace", [-1, math.nan])
async def test_a_grace_is_a_time(net: Net, grace: float) -> None:
    server = await net.serve(Worker())
    with pytest.raises(ValueError, match="grace"):
        await server.drain(grace)


@pytest.mark.parametrize("worker_type", [Worker, ThreadWorker])
async def test_a_server_that_has_ended_has_no_connections_and_no_threads(
    net: Net, worker_type: Any
) -> None:
    """The descriptors of connections may belong to anything by then."""
    server = await net.serve(worker_type())
    client = await net.connect()
    await client.send(b"echo")
    await client.receive()
    (connected,) = server.clients()
    await net.stop()
    assert server.clients() == ()
    assert server.statistics().connections == 0
    assert not await server.evict(connected.id)
    with trio.fail_after(10):
        while server.statistics().workers.alive:  # noqa: ASYNC110  # threads end without an event
            await trio.sleep(0.001)
    server.refuse_connections()
    with pytest.raises(RuntimeError, match="the server has ended"):
        server.replace_keys(trioreq.KeyPair.generate())
    await server.drain(1)


async def test_when_draining_is_done_the_place_is_free(net: Net) -> None:
    server = await net.serve(Worker())
    await server.drain(1)
    successor = await net.serve(Worker())
    assert successor.endpoints == server.endpoints
    client = await net.connect()
    await client.send(b"echo")
    assert await client.receive() == [b"re:echo"]
