"""The gateway's handler on lines without a kernel.

Deterministic: an autojump clock, and lines that do what the test says.
"""

from __future__ import annotations

import math
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
import trio
from support.line import FakeLine
from trio.testing import MockClock, wait_all_tasks_blocked

import trioreq
from trioreq._client.connections import Connections
from trioreq._gateway.gateway import Gateway, Worker
from trioreq._protocol import envelope as wire


def request(body: bytes) -> trioreq.Request:
    return trioreq.Request(trioreq.Peer(1, "", "REQ"), (body,))


def gateway_of(*lines: FakeLine, slots: int = 1) -> Gateway:
    """A gateway with a worker at each line."""
    for line in lines:
        line.connections = Connections(line, "memory", math.inf)
        line.client = trioreq.Client(line.connections, timeout=None, retries=0)
    return Gateway([Worker(line.connections, slots) for line in lines], 0, 10.0)


@asynccontextmanager
async def forwarding(gateway: Gateway) -> AsyncIterator[trio.Nursery]:
    """A nursery for requests; one that gets stuck, also in a shield, fails at once by the clock."""

    async def limit() -> None:
        await trio.sleep(1000)
        gateway.stop()
        raise trio.TooSlowError

    async with trio.open_nursery() as nursery:
        nursery.start_soon(limit)
        async with trio.open_nursery() as requests:
            yield requests
        nursery.cancel_scope.cancel()


async def test_the_worker_with_the_fewest_requests_has_the_next(autojump_clock: MockClock) -> None:
    first, second = FakeLine(), FakeLine()
    gateway = gateway_of(first, second, slots=3)
    first.connect()
    second.connect()
    async with trio.open_nursery() as nursery:
        for name in (b"0", b"1", b"2", b"3"):
            nursery.start_soon(gateway, request(name))
            await wait_all_tasks_blocked()
        second.answer(0, b"")
        await wait_all_tasks_blocked()
        nursery.start_soon(gateway, request(b"4"))
        await wait_all_tasks_blocked()
        gateway.stop()
        nursery.cancel_scope.cancel()
    assert (first.requests(), second.requests()) == ([b"0", b"2"], [b"1", b"3", b"4"])


async def test_requests_that_wait_for_a_worker_are_forwarded_in_their_order(
    autojump_clock: MockClock,
) -> None:
    line = FakeLine()
    gateway = gateway_of(line)
    names = [b"%d" % number for number in range(10)]
    async with trio.open_nursery() as nursery:
        nursery.start_soon(gateway.follow, gateway._workers[0], "memory")
        for name in names:
            nursery.start_soon(gateway, request(name))
            await wait_all_tasks_blocked()
        line.connect()
        for number in range(len(names)):
            await wait_all_tasks_blocked()
            line.answer(number, b"")
        await wait_all_tasks_blocked()
        nursery.cancel_scope.cancel()
    assert line.requests() == names


async def test_a_worker_that_connects_as_the_client_disconnects_gets_no_request(
    autojump_clock: MockClock,
) -> None:
    line = FakeLine()
    gateway = gateway_of(line)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(gateway, request(b"alice"))
        await wait_all_tasks_blocked()
        line.connect()
        gateway._changed.unpark()  # the handler is awake, and has not run yet
        nursery.cancel_scope.cancel()
    assert line.requests() == []


async def test_a_request_waits_for_a_worker_until_the_last_was_lost_for_too_long(
    autojump_clock: MockClock,
) -> None:
    first, second = FakeLine(), FakeLine()
    gateway = gateway_of(first, second)
    codes: list[tuple[str, float]] = []

    async def ask() -> None:
        try:
            await gateway(request(b""))
        except trioreq.ReplyError as error:
            codes.append((error.code, trio.current_time()))

    start = trio.current_time()
    first.connect()
    await trio.sleep(5)
    first.cut()
    async with trio.open_nursery() as nursery:
        for _ in range(3):
            nursery.start_soon(ask)
    await ask()
    assert codes == [("no-worker", start + 15)] * 4


async def test_a_lost_request_of_a_client_that_has_disconnected_is_not_retried(
    autojump_clock: MockClock,
) -> None:
    first, second = FakeLine(), FakeLine()
    gateway = gateway_of(first, second)
    gateway._retries = 1
    first.connect()
    second.connect()
    client = trio.CancelScope()

    async def ask() -> None:
        with client:
            await gateway(request(b"alice"))

    async with forwarding(gateway) as nursery:
        nursery.start_soon(ask)
        await wait_all_tasks_blocked()
        client.cancel()
        await wait_all_tasks_blocked()
        first.cut()
    assert (first.requests(), second.requests()) == ([b"alice"], [])


def not_start(line: FakeLine) -> None:
    """The worker answers its request as one that shuts down and has not started it."""
    line.answer(0, *wire.error_body("shutting-down", ""), status=wire.NOT_STARTED)


async def test_a_request_that_its_worker_has_not_started_is_forwarded_to_another(
    autojump_clock: MockClock,
) -> None:
    """Without a retry, as soon as another is free. The slot of the first is free at once."""
    first, second = FakeLine(), FakeLine()
    gateway = gateway_of(first, second)
    replies: dict[bytes, bytes] = {}

    async def forward(body: bytes) -> None:
        (replies[body],) = await gateway(request(body))

    async with forwarding(gateway) as nursery:
        first.connect()
        second.connect()
        for body in (b"alice", b"bob"):
            nursery.start_soon(forward, body)
            await wait_all_tasks_blocked()
        not_start(first)
        await wait_all_tasks_blocked()
        assert [worker.in_flight for worker in gateway._workers] == [0, 1]
        second.answer(0, b"re:bob")
        await wait_all_tasks_blocked()
        assert second.requests() == [b"bob", b"alice"]
        second.answer(1, b"re:alice")
    assert replies == {b"bob": b"re:bob", b"alice": b"re:alice"}
    assert first.requests() == [b"alice"]
    assert first.client.statistics().not_started == 1


async def test_a_request_that_the_only_worker_has_not_started_waits_for_a_worker(
    autojump_clock: MockClock,
) -> None:
    line = FakeLine()
    gateway = gateway_of(line)
    start = trio.current_time()
    async with forwarding(gateway) as nursery:
        line.connect()

        async def ask() -> None:
            with pytest.raises(trioreq.ReplyError) as caught:
                await gateway(request(b"alice"))
            assert caught.value.code == "no-worker"

        nursery.start_soon(ask)
        await trio.sleep(1)
        not_start(line)
    assert trio.current_time() == start + 11


@pytest.mark.parametrize("later", [False, True])
async def test_a_request_that_was_not_started_is_dropped_if_its_client_has_disconnected(
    autojump_clock: MockClock, later: bool
) -> None:
    """Whether it has disconnected before the worker said so, or later, waiting for another."""
    first, second = FakeLine(), FakeLine()
    gateway = gateway_of(first, second)
    client = trio.CancelScope()

    async def ask() -> None:
        with client:
            await gateway(request(b"alice"))

    async with forwarding(gateway) as nursery:
        first.connect()
        nursery.start_soon(ask)
        await wait_all_tasks_blocked()
        if later:
            not_start(first)
            await wait_all_tasks_blocked()
            client.cancel()
        else:
            second.connect()
            client.cancel()
            not_start(first)
    assert (first.requests(), second.requests()) == ([b"alice"], [])
    assert client.cancelled_caught


async def test_a_worker_that_sends_a_go_away_has_the_next_request_on_its_new_connection(
    autojump_clock: MockClock,
) -> None:
    """The request that it has ends on the old connection, and takes its slot until then."""
    line = FakeLine()
    gateway = gateway_of(line)
    replies: list[bytes] = []

    async def forward(body: bytes) -> None:
        replies.extend(await gateway(request(body)))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(gateway.follow, gateway._workers[0], "memory")
        line.connect()
        nursery.start_soon(forward, b"first")
        await wait_all_tasks_blocked()
        line.go_away()
        nursery.start_soon(forward, b"second")
        await wait_all_tasks_blocked()
        assert line.following is not None
        line.following.connect()
        await wait_all_tasks_blocked()
        assert line.following.requests() == []
        line.answer(0, b"re:first")
        await wait_all_tasks_blocked()
        assert line.following.requests() == [b"second"]
        line.following.answer(0, b"re:second")
        await wait_all_tasks_blocked()
        nursery.cancel_scope.cancel()
    assert replies == [b"re:first", b"re:second"]


async def test_a_request_that_waits_is_forwarded_when_the_new_connection_is_there(
    autojump_clock: MockClock,
) -> None:
    line = FakeLine()
    gateway = gateway_of(line)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(gateway.follow, gateway._workers[0], "memory")
        line.connect()
        await wait_all_tasks_blocked()
        line.go_away()
        nursery.start_soon(gateway, request(b"alice"))
        await wait_all_tasks_blocked()
        assert line.following is not None
        line.following.connect()
        await wait_all_tasks_blocked()
        assert line.following.requests() == [b"alice"]
        gateway.stop()
        nursery.cancel_scope.cancel()
