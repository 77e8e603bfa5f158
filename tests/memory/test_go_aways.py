"""Go-aways: at a drain, and when a connection is too old.

Deterministic: an autojump clock, and a line that does what the test says, or the network in memory,
where a server can be started while another one drains.
"""

from __future__ import annotations

import json
import math
import random
from collections import Counter
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
import trio
from support.line import FakeLine, asking
from support.memory import serving
from trio.testing import MockClock, wait_all_tasks_blocked

import trioreq
from trioreq._client.backoff import BACKOFF
from trioreq._client.states import Connected
from trioreq._protocol import envelope as wire
from trioreq._protocol.credit import REPLIES
from trioreq._protocol.envelope import Header
from trioreq._server.go_aways import JITTER
from trioreq._server.server import LAST_CALL, PARTING
from trioreq.testing import MemoryNetwork, open_memory_network

VECTORS = json.loads((Path(__file__).parents[2] / "docs/protocol-vectors.json").read_text())
Outcome = bytes | Exception


class Asking:
    """Requests in tasks of their own, and how they have ended."""

    def __init__(self, client: trioreq.Client, nursery: trio.Nursery) -> None:
        self.client = client
        self.outcomes: dict[bytes, Outcome] = {}
        self._nursery = nursery

    async def ask(self, *bodies: bytes) -> None:
        for body in bodies:
            self._nursery.start_soon(self._ask, body)
            await wait_all_tasks_blocked()

    async def _ask(self, body: bytes) -> None:
        try:
            self.outcomes[body] = await self.client.request(body)
        except Exception as error:  # noqa: BLE001  # it is what the test asks for
            self.outcomes[body] = error


def not_started(line: FakeLine, number: int) -> None:
    line.answer(number, *wire.error_body("shutting-down", ""), status=wire.NOT_STARTED)


# The client.


async def test_new_requests_go_over_another_connection(autojump_clock: MockClock) -> None:
    line = FakeLine()
    async with asking(line) as nursery:
        line.connect()
        asked = Asking(line.client, nursery)
        await asked.ask(b"1", b"2")
        line.go_away()
        following = line.following
        assert following is not None
        await asked.ask(b"3")
        assert not following.requests()  # it waits for the connection
        following.connect()
        await wait_all_tasks_blocked()
        assert following.requests() == [b"3"]
        following.answer(0, b"re:3")
        line.answer(0, b"re:1")
        assert not line.multiplexer._ended.is_set()
        assert line.client.statistics().in_flight == 1
        line.answer(1, b"re:2")
        assert line.multiplexer._ended.is_set()
    assert asked.outcomes == {b"1": b"re:1", b"2": b"re:2", b"3": b"re:3"}
    assert line.client.statistics().connections == 2


async def test_a_request_on_the_old_connection_can_be_cancelled(autojump_clock: MockClock) -> None:
    line = FakeLine()
    async with asking(line) as nursery:
        line.connect()
        line.hello()
        with trio.CancelScope() as scope:
            nursery.start_soon(_cancel_when_idle, scope, line.go_away)
            await line.client.request(b"1")
        assert scope.cancelled_caught
        assert line.cancels() == 1
        assert line.multiplexer._ended.is_set()
        nursery.cancel_scope.cancel()


async def _cancel_when_idle(scope: trio.CancelScope, before: Callable[[], None]) -> None:
    await wait_all_tasks_blocked()
    before()
    scope.cancel()


async def test_without_requests_the_old_connection_ends_at_once(autojump_clock: MockClock) -> None:
    line = FakeLine()
    async with asking(line):
        line.connect()
        line.go_away()
        assert line.multiplexer._ended.is_set()
        line.go_away()  # a second one is ignored
        assert line.following is not None
        assert line.following.following is None


@pytest.mark.parametrize("many", [False, True])
async def test_requests_that_were_not_started_are_sent_again_elsewhere(
    autojump_clock: MockClock, many: bool
) -> None:
    """Whatever `retries` is, and also if there was no go-away."""
    line = FakeLine()
    async with asking(line, retries=0) as nursery:
        line.connect()
        results: list[Any] = []

        async def ask() -> None:
            if many:
                results.extend(await line.client.request_many([b"1"]))
            else:
                results.append(await line.client.request(b"1"))

        nursery.start_soon(ask)
        await wait_all_tasks_blocked()
        not_started(line, 0)
        assert line.following is not None
        line.following.connect()
        await wait_all_tasks_blocked()
        assert line.following.requests() == [b"1"]
        line.following.answer(0, b"re:1")
    assert results == [b"re:1"]
    stats = line.client.statistics()
    assert (stats.requests, stats.not_started, stats.replied, stats.retried) == (2, 1, 1, 0)


def kinds(line: FakeLine) -> list[int]:
    return [header.kind for header, _ in line.sent]


async def test_a_stream_that_was_not_started_is_sent_again_elsewhere(
    autojump_clock: MockClock,
) -> None:
    line = FakeLine()
    async with asking(line) as nursery:
        line.connect()
        replies: list[bytes] = []

        async def consume() -> None:
            async with line.client.stream(b"1") as stream:
                replies.extend([reply async for reply in stream])

        nursery.start_soon(consume)
        await wait_all_tasks_blocked()
        not_started(line, 0)
        await wait_all_tasks_blocked()
        assert line.following is not None
        line.following.connect()
        await wait_all_tasks_blocked()
        assert kinds(line.following) == [wire.STREAM]
        line.following.answer(0, b"a", status=wire.MORE)
        line.following.answer(0, b"", status=wire.END)
    assert replies == [b"a"]
    assert line.cancels() == 0
    stats = line.client.statistics()
    assert (stats.requests, stats.not_started, stats.replied, stats.retried) == (2, 1, 1, 0)


async def test_a_stream_that_was_not_started_still_has_its_deadline(
    autojump_clock: MockClock,
) -> None:
    line = FakeLine()
    async with asking(line):
        line.connect()
        async with line.client.stream(b"1", timeout=5) as stream:
            not_started(line, 0)
            with pytest.raises(trioreq.NotConnected):
                await anext(stream)
        assert trio.current_time() == 5


async def test_a_stream_goes_on_over_the_retired_connection(autojump_clock: MockClock) -> None:
    """Its credit and its cancel are sent there too."""
    line = FakeLine()
    async with asking(line):
        line.connect()
        line.hello()
        async with line.client.stream(b"1") as stream:
            line.go_away()
            assert line.following is not None
            line.following.connect()
            for _ in range(REPLIES // 2):
                line.answer(0, b"", status=wire.MORE)
                await anext(stream)
            await wait_all_tasks_blocked()
            assert kinds(line) == [wire.STREAM, wire.CREDIT]
        await wait_all_tasks_blocked()
    assert kinds(line) == [wire.STREAM, wire.CREDIT, wire.CANCEL]
    assert kinds(line.following) == []


@pytest.mark.parametrize("lost_before", [False, True])
@pytest.mark.parametrize("many", [False, True])
async def test_without_another_connection_the_error_says_whether_anything_may_be_done(
    autojump_clock: MockClock, many: bool, lost_before: bool
) -> None:
    line = FakeLine()
    async with asking(line, retries=1, connect_timeout=5) as nursery:
        line.connect()
        results: list[Any] = []

        async def ask() -> None:
            if many:
                results.extend(await line.client.request_many([b"1"]))
            else:
                try:
                    await line.client.request(b"1")
                except trioreq.TrioreqError as error:
                    results.append(error)

        nursery.start_soon(ask)
        await wait_all_tasks_blocked()
        if lost_before:
            line.cut()
            line.connect()
            await trio.sleep(1)
        not_started(line, -1)
    expected = trioreq.ConnectionLost if lost_before else trioreq.NotConnected
    assert [type(result) for result in results] == [expected]


async def test_the_loss_of_the_old_connection_does_not_concern_the_new_one(
    autojump_clock: MockClock,
) -> None:
    line = FakeLine()
    async with asking(line) as nursery:
        line.connect()
        asked = Asking(line.client, nursery)
        await asked.ask(b"1")
        line.go_away()
        assert line.following is not None
        line.following.connect()
        await asked.ask(b"2")
        line.cut()
        await wait_all_tasks_blocked()
        assert isinstance(asked.outcomes[b"1"], trioreq.ConnectionLost)
        assert line.multiplexer._ended.is_set()
        line.following.answer(0, b"re:2")
    assert asked.outcomes[b"2"] == b"re:2"


async def test_a_go_away_that_was_unread_when_the_connection_was_lost_counts(
    autojump_clock: MockClock,
) -> None:
    line = FakeLine()
    async with asking(line) as nursery:
        line.connect()
        asked = Asking(line.client, nursery)
        await asked.ask(b"1", b"2")
        error = wire.error_body("shutting-down", "")
        line.cut(list(wire.go_away("")), line.reply(0, *error, status=wire.NOT_STARTED))
        assert line.multiplexer._ended.is_set()
        assert line.following is not None
        line.following.connect()
        await wait_all_tasks_blocked()
        line.following.answer(0, b"re:1")
    assert asked.outcomes[b"1"] == b"re:1"
    assert isinstance(asked.outcomes[b"2"], trioreq.ConnectionLost)


@pytest.mark.parametrize("vector", VECTORS["unasked"], ids=lambda vector: vector["name"])
async def test_a_message_that_is_not_a_reply(
    vector: dict[str, Any], autojump_clock: MockClock
) -> None:
    line = FakeLine()
    line.max_pack_size = 1000
    async with asking(line) as nursery:
        line.connect()
        asked = Asking(line.client, nursery)
        await asked.ask(b"1")
        line.multiplexer.take_message([bytes.fromhex(word) for word in vector["frames"]])
        assert (line.following is not None) is (vector["taken_for"] == "go-away")
        state = line.multiplexer.state
        assert isinstance(state, Connected)
        assert state.negotiation.max_pack_size == vector.get("max_pack_size", 0)
        line.answer(0, b"re:1")
    assert asked.outcomes == {b"1": b"re:1"}
    assert line.client.statistics().stale == 0


async def test_many_requests_keep_their_order_and_their_deadlines(
    autojump_clock: MockClock,
) -> None:
    """What is sent again has the earliest deadline, though it was sent last."""
    line = FakeLine()
    async with asking(line) as nursery:
        line.connect()
        results: list[Any] = []

        async def ask() -> None:
            bodies = [b"1", b"2", b"3", b"4"]
            results.extend(await line.client.request_many(bodies, in_flight=3, timeout=10))

        begun = trio.current_time()
        nursery.start_soon(ask)
        await trio.sleep(4)
        line.go_away()
        following = line.following
        assert following is not None
        following.connect()
        line.answer(1, b"re:2")
        await wait_all_tasks_blocked()
        assert following.requests() == [b"4"]  # which has until 14
        not_started(line, 0)
        await wait_all_tasks_blocked()
        assert following.requests() == [b"4", b"1"]
        line.answer(2, b"re:3")
        await trio.sleep(6)
        await wait_all_tasks_blocked()
        assert following.sent[-1][0].kind == wire.REQUEST or following.cancels() == 0
        following.hello()
        assert following.cancels() == 1  # of 1, at 10
        following.answer(0, b"re:4")
    assert trio.current_time() == begun + 10
    assert [type(results[0]), *results[1:]] == [trioreq.RequestTimeout, b"re:2", b"re:3", b"re:4"]


async def test_requests_lost_with_the_old_connection_are_sent_again_beside_others(
    autojump_clock: MockClock,
) -> None:
    line = FakeLine()
    async with asking(line, retries=1) as nursery:
        line.connect()
        results: list[Any] = []

        async def ask() -> None:
            results.extend(await line.client.request_many([b"1", b"2", b"3"], in_flight=2))

        nursery.start_soon(ask)
        await wait_all_tasks_blocked()
        line.go_away()
        following = line.following
        assert following is not None
        line.answer(1, b"re:2")
        await wait_all_tasks_blocked()
        line.cut()  # while 3 waits for the connection
        await trio.sleep(1)
        following.connect()
        await trio.sleep(1)
        sent = following.requests()
        assert sorted(sent) == [b"1", b"3"]
        for number, body in enumerate(sent):
            following.answer(number, b"re:" + body)
    assert results == [b"re:1", b"re:2", b"re:3"]


async def test_closing_the_client_fails_requests_on_all_connections(
    autojump_clock: MockClock,
) -> None:
    line = FakeLine()
    async with asking(line) as nursery:
        line.connect()
        asked = Asking(line.client, nursery)
        await asked.ask(b"1")
        line.go_away()
        assert line.following is not None
        line.following.connect()
        await asked.ask(b"2")
        line.connections.close()
    closed = [type(outcome) for outcome in asked.outcomes.values()]
    assert closed == [trio.ClosedResourceError] * 2
    stats = line.client.statistics()
    assert (stats.lost, stats.in_flight) == (2, 0)


# The server, at a drain.


class Worker:
    """A handler that counts which requests it was called for.

    "sleep 3" takes 3 seconds; "wait" takes until `release` is set.
    """

    def __init__(self) -> None:
        self.calls: Counter[bytes] = Counter()
        self.release = trio.Event()

    async def __call__(self, request: trioreq.Request) -> bytes:
        self.calls[request.body] += 1
        word, _, argument = request.body.partition(b" ")
        if word == b"sleep":
            await trio.sleep(float(argument.split()[0]))
        if word == b"wait":
            await self.release.wait()
        return b"re:" + request.body


async def test_the_requests_of_a_client_move_to_the_next_server(
    autojump_clock: MockClock,
) -> None:
    old, new = Worker(), Worker()
    async with serving(old) as net, trio.open_nursery() as nursery, trioreq.open_client(net) as c:
        asked = Asking(c, nursery)
        await asked.ask(b"wait")
        nursery.start_soon(net.server.drain, math.inf)
        await wait_all_tasks_blocked()
        await nursery.start(trioreq.serve, new, net)
        await asked.ask(b"now")
        await trio.sleep(1)
        assert asked.outcomes == {b"now": b"re:now"}
        assert net.server.statistics().connections == 1
        begun = trio.current_time()
        old.release.set()
        await trio.sleep(0.001)
        assert asked.outcomes[b"wait"] == b"re:wait"
        assert net.server._closed.is_set()
        assert trio.current_time() < begun + PARTING
        assert (old.calls, new.calls) == ({b"wait": 1}, {b"now": 1})
        assert net.server.statistics().go_aways == 1
        nursery.cancel_scope.cancel()


@pytest.mark.parametrize("many", [False, True])
async def test_a_request_that_crosses_the_go_away_is_not_lost(
    autojump_clock: MockClock, many: bool
) -> None:
    """The server is idle, and would end before it comes: it waits until the client has gone."""
    old, new = Worker(), Worker()
    async with serving(old) as net, trio.open_nursery() as nursery, trioreq.open_client(net) as c:
        await c.request(b"first")
        net.delay(c, 0.5)
        asked = Asking(c, nursery)

        async def ask() -> None:
            bodies = [b"1", b"2", b"3"]
            for body, reply in zip(bodies, await c.request_many(bodies), strict=True):
                asked.outcomes[body] = reply

        if many:
            nursery.start_soon(ask)
        else:
            await asked.ask(b"1", b"2", b"3")
        nursery.start_soon(net.server.drain, math.inf)
        await wait_all_tasks_blocked()
        await nursery.start(trioreq.serve, new, net)
        await trio.sleep(5)
        assert asked.outcomes == {b"1": b"re:1", b"2": b"re:2", b"3": b"re:3"}
        assert old.calls == {b"first": 1}
        assert new.calls == {b"1": 1, b"2": 1, b"3": 1}
        assert net.server.statistics().shut_down == 3
        assert c.statistics().not_started == 3
        nursery.cancel_scope.cancel()


async def test_requests_that_are_queued_when_the_grace_is_over_were_not_started(
    autojump_clock: MockClock,
) -> None:
    old, new = Worker(), Worker()
    async with (
        serving(old, max_in_flight=1) as net,
        trio.open_nursery() as nursery,
        trioreq.open_client(net) as client,
    ):
        asked = Asking(client, nursery)
        await asked.ask(b"wait", b"1", b"2")
        nursery.start_soon(net.server.drain, 3)
        await wait_all_tasks_blocked()
        await nursery.start(trioreq.serve, new, net)
        await trio.sleep(4)
        ended = asked.outcomes.pop(b"wait")
        assert isinstance(ended, trioreq.ReplyError)
        assert ended.code == trioreq.Code.SHUTTING_DOWN
        assert asked.outcomes == {b"1": b"re:1", b"2": b"re:2"}
        assert (old.calls, new.calls) == ({b"wait": 1}, {b"1": 1, b"2": 1})
        nursery.cancel_scope.cancel()


def test_a_thread_that_has_not_begun_was_not_started() -> None:
    """Plain functions: as above."""

    def function(request: trioreq.Request) -> bytes:
        calls.append(request.body)
        trioreq.testing.sleep(10)
        return b""

    async def main() -> None:
        async with serving(function, workers=1) as net:
            client = net.connect(socket_type="DEALER")
            for number in (1, 2):
                client.send_raw(Header(wire.REQUEST, number).pack(), b"", b"%d" % number)
            await wait_all_tasks_blocked()
            await net.server.drain(1)
            for _ in calls * 2:
                frames = await client.receive_raw()
                header = wire.header_untrusted((frames[0], b""))
                assert header is not None
                statuses[header.correlation] = header.kind

    calls: list[bytes] = []
    statuses: dict[int, int] = {}
    trio.run(main, clock=MockClock(autojump_threshold=0))
    assert calls == [b"1"]
    assert statuses == {1: 6, 2: wire.NOT_STARTED}


@pytest.mark.parametrize(
    ("envelope", "correlation", "told"),
    [
        ([], 1 | wire.WANTS_HELLO, True),
        ([], 1, False),
        ([b"proxy"], 1 | wire.WANTS_HELLO, False),
        (None, 0, False),
    ],
    ids=["hello", "header", "proxy", "plain"],
)
@pytest.mark.parametrize("age", [False, True], ids=["drain", "age"])
async def test_only_clients_that_asked_for_a_hello_are_sent_a_go_away(
    autojump_clock: MockClock,
    envelope: list[bytes] | None,
    correlation: int,
    told: bool,
    age: bool,
) -> None:
    """One that does not follow holds up a drain for no longer than clients need to follow."""
    async with serving(Worker(), max_connection_age=10 if age else None) as net:
        client = net.connect(socket_type="DEALER")
        header = [Header(wire.REQUEST, correlation).pack()]
        client.send_raw(*([] if envelope is None else [*envelope, *header]), b"", b"1")
        await wait_all_tasks_blocked()
        begun = trio.current_time()
        if age:
            await trio.sleep(100)
            assert client.connected
        else:
            await net.server.drain(math.inf)
            assert trio.current_time() == begun + (PARTING if told else 0) + LAST_CALL
        sent = [frames for frames in client.connection.sent if frames == list(client_go_away(age))]
        assert len(sent) == told
        assert net.server.statistics().go_aways == told


def client_go_away(age: bool) -> tuple[bytes, ...]:
    drains = "the server is shutting down"
    return wire.go_away("the connection has reached max_connection_age" if age else drains)


async def test_a_plain_clients_request_that_crosses_the_drain_is_answered(
    autojump_clock: MockClock,
) -> None:
    worker = Worker()
    async with serving(worker) as net, trio.open_nursery() as nursery:
        client = net.connect()
        await client.request(b"first")
        net.delay(client, LAST_CALL / 2)
        client.send(b"second")
        nursery.start_soon(net.server.drain, math.inf)
        code, text = b"shutting-down", b"the server is shutting down"
        assert await client.receive() == [b"trioreq-error", code, text]
    assert worker.calls == {b"first": 1}


async def test_two_drains_end_together(autojump_clock: MockClock) -> None:
    """Whatever the first one waits for."""
    async with serving(Worker()) as net:
        client = net.connect(socket_type="DEALER")
        client.send_raw(Header(wire.REQUEST, 1 | wire.WANTS_HELLO).pack(), b"", b"1")
        await wait_all_tasks_blocked()
        begun = trio.current_time()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(net.server.drain, math.inf)
            nursery.start_soon(net.server.drain, 1)
        assert trio.current_time() == begun + 1


async def test_the_grace_bounds_the_wait_for_clients_too(autojump_clock: MockClock) -> None:
    async with serving(Worker()) as net:
        client = net.connect(socket_type="DEALER")
        client.send_raw(Header(wire.REQUEST, 1 | wire.WANTS_HELLO).pack(), b"", b"1")
        await wait_all_tasks_blocked()
        begun = trio.current_time()
        await net.server.drain(0.5)
        assert trio.current_time() == begun + 0.5


# Connections that are too old.


async def test_a_connection_that_is_too_old_is_replaced(autojump_clock: MockClock) -> None:
    worker = Worker()
    async with (
        serving(worker, max_connection_age=100) as net,
        trio.open_nursery() as nursery,
        trioreq.open_client(net) as client,
    ):
        asked = Asking(client, nursery)
        begun = trio.current_time()
        await asked.ask(b"wait")
        await client._connections._replaced.wait()
        assert 100 * (1 - JITTER) <= trio.current_time() - begun <= 100 * (1 + JITTER)
        await asked.ask(b"now")
        await trio.sleep(1)
        assert asked.outcomes == {b"now": b"re:now"}
        assert net.server.statistics().connections == 2
        worker.release.set()
        await trio.sleep(1)
        assert asked.outcomes == {b"now": b"re:now", b"wait": b"re:wait"}
        assert net.server.statistics().connections == 1
        assert len(net.server._go_aways._clients) == 1
        assert net.server._go_aways._ages._live == 1
    stats = client.statistics()
    assert (stats.connections, stats.not_started, stats.lost) == (2, 0, 0)


async def test_connections_that_begin_together_do_not_end_together(
    autojump_clock: MockClock,
) -> None:
    ends = set()

    async def use(net: MemoryNetwork) -> None:
        async with trioreq.open_client(net) as client:
            await client.request(b"1")
            old = client._connections.current
            await old._ended.wait()
            ends.add(trio.current_time())

    async with serving(Worker(), max_connection_age=100) as net, trio.open_nursery() as nursery:
        for _ in range(10):
            nursery.start_soon(use, net)
    assert len(ends) == 10


async def test_a_server_that_sends_every_connection_away_is_not_asked_without_a_pause(
    autojump_clock: MockClock,
) -> None:
    async with serving(Worker(), max_connection_age=1e-6) as net, trioreq.open_client(net) as c:
        with trio.move_on_after(10):
            while True:
                await c.request(b"1")
                await trio.sleep(0.001)
        assert c.statistics().connections <= 10 / BACKOFF + 1
        assert not c.statistics().lost


# Rolling restarts.


async def roll(net: MemoryNetwork, start: Callable[[], Awaitable[trioreq.Server]]) -> None:
    """Start a server when the one before begins to drain, a few times."""
    server = await start()
    for _ in range(5):
        await trio.sleep(random.uniform(0, 3))
        async with trio.open_nursery() as nursery:
            nursery.start_soon(server.drain, 30)
            await trio.lowlevel.checkpoint()
            server = await start()


@pytest.mark.parametrize("seed", range(5))
async def test_a_rolling_restart_loses_nothing_and_does_nothing_twice(
    autojump_clock: MockClock, seed: int
) -> None:
    """Clients on lines of different lengths; none retries what it has lost."""
    worker = Worker()
    outcomes: dict[bytes, Outcome] = {}
    over = False

    async def ask(client: trioreq.Client, name: str) -> None:
        number = 0
        while not over:
            number += 1
            seconds = random.choice([0, 0, 0.1, 2])
            body = f"sleep {seconds} {name} {number}".encode()
            try:
                outcomes[body] = await client.request(body)
            except trioreq.TrioreqError as error:
                outcomes[body] = error
            await trio.sleep(random.choice([0, 0.01, 0.5]))

    async def ask_many(client: trioreq.Client, name: str) -> None:
        number = 0
        while not over:
            number += 1
            bodies = [f"sleep 0.{n} {name} {number} {n}".encode() for n in range(9)]
            replies = await client.request_many(bodies, in_flight=4)
            outcomes.update(zip(bodies, replies, strict=True))

    async def use(name: str, task: Callable[[trioreq.Client, str], Awaitable[None]]) -> None:
        async with trioreq.open_client(net) as client:
            await client.request(name.encode())
            net.delay(client, random.choice([0, 0.01, 0.2]))
            async with trio.open_nursery() as nursery:
                for number in range(2):
                    nursery.start_soon(task, client, f"{name}.{number}")

    async with open_memory_network(seed=seed) as net, trio.open_nursery() as servers:

        async def start() -> trioreq.Server:
            server: trioreq.Server = await servers.start(trioreq.serve, worker, net)
            return server

        async with trio.open_nursery() as clients:
            for number in range(4):
                clients.start_soon(use, f"c{number}", ask_many if number == 3 else ask)
            await roll(net, start)
            over = True
        servers.cancel_scope.cancel()
    errors = [outcome for outcome in outcomes.values() if isinstance(outcome, Exception)]
    assert errors == []
    assert len(outcomes) > 50
    assert [body for body, times in worker.calls.items() if times > 1] == []
    assert {body: b"re:" + body for body in outcomes} == outcomes
