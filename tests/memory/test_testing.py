"""The network in memory itself: what a test can do with it, and the errors of wrong use."""

from __future__ import annotations

import random
import subprocess
import sys
import threading
from collections.abc import Callable
from typing import Any

import pytest
import trio
from support.handlers import Worker
from support.memory import serving
from support.trace import run_traced
from trio.testing import MockClock, wait_all_tasks_blocked

import trioreq
from trioreq._client.connections import Connections
from trioreq._transport.line import Accepted, Event
from trioreq.testing import make_request, open_memory_network, open_memory_server, sleep
from trioreq.testing._schedule import scheduled


async def echo(request: trioreq.Request) -> bytes:
    return request.body


async def hang(request: trioreq.Request) -> bytes:
    await trio.sleep_forever()
    raise AssertionError


async def test_a_delay_is_for_each_direction_and_keeps_the_order(
    autojump_clock: MockClock,
) -> None:
    async with serving(echo) as net:
        client = net.connect(socket_type="DEALER")
        await wait_all_tasks_blocked()
        net.delay(client, 2)
        before = trio.current_time()
        client.send(b"1")
        net.delay(client, 0)
        client.send(b"2")  # not before the one in front of it
        assert await client.receive() == [b"1"]
        assert await client.receive() == [b"2"]
        assert trio.current_time() == before + 2
        net.delay(client, 3)
        assert await client.request(b"3") == [b"3"]
        assert trio.current_time() == before + 8


async def test_a_cable_that_is_mended_in_time_was_only_slow(autojump_clock: MockClock) -> None:
    async with serving(echo, heartbeat=10) as net:
        client = net.connect()
        net.cut(client)
        client.send(b"x")
        await trio.sleep(4)
        assert net.sent_to(client) == []
        net.mend(client)
        assert await client.receive() == [b"x"]
        await trio.sleep(100)
        assert client.connected


async def test_replies_that_wait_at_a_cut_connection_are_counted_and_freed_with_it(
    autojump_clock: MockClock,
) -> None:
    worker = Worker()
    async with serving(worker, heartbeat=10) as net:
        client = net.connect()
        client.send(b"wait")
        await worker.log.wait("started wait")
        net.cut(client)
        worker.release.set()
        await wait_all_tasks_blocked()
        assert net.sent_to(client) == net.held_for(client) == [[b"re:wait"]]
        await trio.sleep(11)
        assert net.server.statistics().connections == 0
        assert net.held_for(client) == []
        assert client.connected  # it is not reported yet
        net.mend(client)
        with pytest.raises(trio.BrokenResourceError, match="ended"):
            await client.receive()
        with pytest.raises(trio.BrokenResourceError, match="connect again"):
            client.send(b"x")
        assert not client.connected


async def test_both_ends_of_open_client_notice_a_cut(autojump_clock: MockClock) -> None:
    async with (
        serving(hang, heartbeat=10) as net,
        trioreq.open_client(net, heartbeat=20) as client,
        trio.open_nursery() as nursery,
    ):
        lost: list[float] = []

        async def ask() -> None:
            with pytest.raises(trioreq.ConnectionLost):
                await client.request(b"x")
            lost.append(trio.current_time())

        nursery.start_soon(ask)
        await trio.sleep(1)
        before = trio.current_time()
        net.cut(client)
        await trio.sleep(10)
        assert net.server.statistics().cancelled_by_disconnect == 1
        assert not lost
        await trio.sleep(10)
        assert before + 10 <= lost[0] <= before + 20
        with pytest.raises(trioreq.NotConnected):
            await client.request(b"x", timeout=100)
        net.mend(client)
        with pytest.raises(trioreq.RequestTimeout):
            await client.request(b"x", timeout=100)
        assert client.statistics().connections == 2
        await trio.testing.wait_all_tasks_blocked()
        cancelled = net.server.statistics().cancelled_by_client  # or it was timed out just before
        net.delay(client, 5)
        async with trio.open_nursery() as callers:
            callers.start_soon(client.request, b"x")
            await trio.sleep(100)
            callers.cancel_scope.cancel()
        await trio.sleep(5)
        await trio.testing.wait_all_tasks_blocked()
        assert net.server.statistics().cancelled_by_client == cancelled + 1


async def test_retries_over_a_cut(autojump_clock: MockClock) -> None:
    async with (
        serving(echo) as net,
        trioreq.open_client(net, heartbeat=2, retries=1) as client,
    ):
        assert await client.request(b"x") == b"x"
        net.delay(client, 1)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(client.request, b"y")
            await wait_all_tasks_blocked()
            net.cut(client)
            await trio.sleep(3)  # the heartbeat has detected it by then
            net.mend(client)
        stats = client.statistics()
        assert (stats.retried, stats.lost, stats.replied) == (1, 1, 2)


async def test_a_descriptor_is_used_again_at_once_or_when_asked(autojump_clock: MockClock) -> None:
    async with serving(echo) as net:
        first, second = net.connect(), net.connect()
        with pytest.raises(ValueError, match="in use"):
            net.connect(reuse=first)
        await second.request(b"x")
        first.crash()
        second.crash()
        heir = net.connect(reuse=second)
        assert heir.connection.descriptor == second.connection.descriptor
        assert net.connect().connection.descriptor == first.connection.descriptor
        assert await heir.request(b"x") == [b"x"]


async def test_a_client_has_its_identity(autojump_clock: MockClock) -> None:
    async def who(request: trioreq.Request) -> bytes:
        return f"{request.client.user_id} {request.client.socket_type}".encode()

    async with serving(who) as net:
        client = net.connect(socket_type="DEALER", user_id="eve", routing_id=b"own")
        assert await client.request(b"") == [b"eve DEALER"]
        assert repr(client) == "<MemoryClient DEALER, connected>"
        client.close()
        assert repr(client) == "<MemoryClient DEALER, closed>"
        with pytest.raises(trio.ClosedResourceError):
            client.send(b"x")
        with pytest.raises(trio.ClosedResourceError):
            await client.receive()
    assert repr(client) == "<MemoryClient DEALER, closed>"


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"socket_type": "PUB"}, "REQ"),
        ({"routing_id": b""}, "1 to 255"),
        ({"routing_id": b"x" * 256}, "1 to 255"),
        ({"routing_id": b"\0x"}, "zero byte"),
    ],
)
async def test_invalid_endpoints_are_refused(
    autojump_clock: MockClock, options: dict[str, Any], match: str
) -> None:
    async with serving(echo) as net:
        with pytest.raises(ValueError, match=match):
            net.connect(**options)


async def test_a_client_refuses_invalid_use(autojump_clock: MockClock) -> None:
    async with serving(echo) as net:
        client = net.connect()
        with pytest.raises(ValueError, match="at least one frame"):
            client.send()
        client.stall()
        with pytest.raises(RuntimeError, match="resume"):
            client.send(b"x")
        client.resume()
        assert await client.request(b"x") == [b"x"]


async def test_a_req_takes_no_old_reply_for_the_new_ones(autojump_clock: MockClock) -> None:
    async with serving(echo) as net:
        client = net.connect()
        client.send(b"old")
        await wait_all_tasks_blocked()  # the reply is there, and was not received
        assert await client.request(b"new") == [b"new"]


async def test_one_server_at_a_time(autojump_clock: MockClock) -> None:
    async with open_memory_network() as net:
        assert str(net) == "memory"
        with pytest.raises(ConnectionRefusedError, match="no server"):
            net.connect()
        async with trio.open_nursery() as nursery:
            await nursery.start(trioreq.serve, echo, net)
            with pytest.raises(trioreq.EndpointError, match="already"):
                await trioreq.serve(echo, net)
            client = net.connect()
            nursery.cancel_scope.cancel()
        with pytest.raises(trio.BrokenResourceError):
            await client.receive()


async def test_a_server_that_drains_as_a_client_connects_is_not_connected_to(
    autojump_clock: MockClock,
) -> None:
    """The client has been woken, and has not run yet. It waits for the next server."""
    options: dict[str, Any] = {"heartbeat": None, "max_message_size": 1000}
    async with open_memory_network() as net, trio.open_nursery() as nursery:
        events: list[Event] = []

        async def connect() -> None:
            events.extend(await net.line(**options).events())

        nursery.start_soon(connect)
        await wait_all_tasks_blocked()
        first = net.bind(**options, send_queue=1)
        first.refuse_connections(())
        await wait_all_tasks_blocked()
        assert events == []
        net.bind(**options, send_queue=1)
        first.refuse_connections(())  # again
        await wait_all_tasks_blocked()
        assert events == [Accepted()]


async def test_a_client_that_is_cut_while_it_waits_for_a_server_does_not_connect(
    autojump_clock: MockClock,
) -> None:
    async with open_memory_network() as net, trioreq.open_client(net) as client:
        async with trioreq.open_server(echo, net):
            await client.request(b"x")
        await trio.sleep(1)
        for _ in range(2):
            net.cut(client)
            await wait_all_tasks_blocked()
        async with trioreq.open_server(echo, net) as server:
            await trio.sleep(1)
            assert server.statistics().connections == 0
            net.mend(client)
            assert await client.request(b"x", timeout=5) == b"x"


async def test_only_clients_in_memory_can_be_cut(autojump_clock: MockClock) -> None:
    class OnTheWire:
        """The line of a client that is elsewhere."""

    connections = Connections(OnTheWire(), "", 1)  # type: ignore[arg-type]
    client = trioreq.Client(connections, timeout=1, retries=0)
    async with serving(echo) as net:
        with pytest.raises(TypeError, match="must be connected to a MemoryNetwork"):
            net.cut(client)


async def test_sleep_is_for_plain_functions() -> None:
    with pytest.raises(RuntimeError, match=r"trio\.sleep"):
        sleep(1)
    slept = threading.Event()

    def in_a_thread() -> None:
        sleep(0.001)
        slept.set()

    await trio.to_thread.run_sync(in_a_thread)
    assert slept.is_set()


def test_the_state_before_the_seed_is_restored(monkeypatch: pytest.MonkeyPatch) -> None:
    """In whatever order networks close."""
    run: Any = trio._core._run
    monkeypatch.setattr(run, "_ALLOW_DETERMINISTIC_SCHEDULING", False)
    before = run._r.getstate(), random.getstate()
    first, second = scheduled(1), scheduled(2)
    first.__enter__()
    second.__enter__()
    first.__exit__(None, None, None)
    assert run._ALLOW_DETERMINISTIC_SCHEDULING
    assert before[1] != random.getstate()
    second.__exit__(None, None, None)
    assert not run._ALLOW_DETERMINISTIC_SCHEDULING
    assert before == (run._r.getstate(), random.getstate())


def test_thirty_seconds_are_a_few_steps(record_property: Callable[[str, object], None]) -> None:
    """The time that a test takes is that of its work, of which there is little."""
    steps = 0

    class Count(trio.abc.Instrument):
        def before_task_step(self, task: trio.lowlevel.Task) -> None:
            nonlocal steps
            steps += 1

    async def main() -> float:
        async with open_memory_server(hang, timeout=30) as net:
            begun = trio.current_time()
            assert (await net.connect().request(b"x"))[1] == b"timed-out"
            return trio.current_time() - begun

    took = trio.run(main, clock=MockClock(autojump_threshold=0), instruments=[Count()])
    assert took == 30
    assert steps < 100
    record_property("steps", steps)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["async", "plain"])
def test_a_thousand_runs_are_one(kind: str) -> None:
    first = run_traced(kind, seed=1)
    assert len(first) > 30
    for _ in range(499):  # of each kind
        assert run_traced(kind, seed=1) == first
    assert any(run_traced(kind, seed=seed) != first for seed in range(2, 10))


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["async", "plain"])
def test_runs_in_other_processes_are_the_same(kind: str) -> None:
    code = f"import support.trace as t; print(*t.run_traced({kind!r}, seed=1), sep='\\n')"
    outputs = {
        subprocess.run(
            [sys.executable, "-c", code],
            env={"PYTHONHASHSEED": hash_seed, "PYTHONPATH": ":".join(sys.path)},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for hash_seed in ("0", "1", "2", "3")
    }
    assert outputs == {"\n".join(run_traced(kind, seed=1)) + "\n"}


# What a handler raises is raised in its test.


async def fail(request: trioreq.Request) -> bytes:
    raise ZeroDivisionError(request.body)


def fail_plainly(request: trioreq.Request) -> bytes:
    raise ZeroDivisionError(request.body)


async def fail_in_a_nursery(request: trioreq.Request) -> bytes:
    async with trio.open_nursery() as nursery:
        nursery.start_soon(fail, request)
    return b""


async def reply_with_text(request: trioreq.Request) -> Any:
    return "text"


async def fail_after_the_end(request: trioreq.Request) -> bytes:
    try:
        await trio.sleep_forever()
    finally:
        raise ZeroDivisionError(request.cancel_reason)


async def keep_a_cancelled(request: trioreq.Request) -> bytes:
    with trio.CancelScope() as scope:
        scope.cancel()
        try:
            await trio.sleep_forever()
        except trio.Cancelled as error:
            kept = error
    raise kept


@pytest.mark.parametrize(
    ("handler", "raised", "said"),
    [
        (fail, ZeroDivisionError, "b'x'"),
        (fail_plainly, ZeroDivisionError, "b'x'"),
        (reply_with_text, TypeError, "its result must be bytes"),
        (fail_after_the_end, ZeroDivisionError, "deadline"),
        (keep_a_cancelled, RuntimeError, "the handler failed with Cancelled"),
    ],
)
async def test_an_exception_of_a_handler_ends_the_block(
    handler: Any, raised: type[Exception], said: str, autojump_clock: MockClock
) -> None:
    cancelled = False
    with pytest.raises(raised, match=said):  # noqa: PT012  # the handler ends the block
        async with open_memory_server(handler, timeout=5) as net:
            net.connect().send(b"x")
            try:
                await trio.sleep(60)
            finally:
                cancelled = True
    assert cancelled


async def test_an_exception_group_of_a_handler_is_raised_unchanged(
    autojump_clock: MockClock,
) -> None:
    with pytest.raises(ExceptionGroup) as caught:  # noqa: PT012  # the handler ends the block
        async with open_memory_server(fail_in_a_nursery) as net:
            net.connect().send(b"x")
            await trio.sleep(60)
    assert caught.group_contains(ZeroDivisionError, depth=1)


async def test_an_exception_of_a_handler_ends_the_block_of_the_network(
    autojump_clock: MockClock,
) -> None:
    with pytest.raises(ZeroDivisionError):  # noqa: PT012  # the handler ends the block
        async with open_memory_network() as net, trioreq.open_server(fail, net):
            net.connect().send(b"x")
            await trio.sleep(60)


async def test_an_error_that_is_a_reply_ends_nothing(autojump_clock: MockClock) -> None:
    async def refuse(request: trioreq.Request) -> bytes:
        raise trioreq.ReplyError("not-found")

    async with open_memory_server(refuse) as net:
        assert (await net.connect().request(b"x"))[1] == b"not-found"


async def test_an_exception_of_a_cancelled_handler_does_not_end_the_block(
    autojump_clock: MockClock,
) -> None:
    async with open_memory_server(hang, timeout=5) as net:
        assert (await net.connect().request(b"x"))[1] == b"timed-out"


@pytest.mark.parametrize("handler", [fail, fail_plainly])
async def test_a_test_may_leave_errors_of_handlers_to_the_client(
    handler: Any, autojump_clock: MockClock
) -> None:
    async with open_memory_server(handler, raise_handler_errors=False) as net:
        assert (await net.connect().request(b"x"))[1] == b"handler-failed"


async def test_a_handler_accepts_a_request_without_a_server() -> None:
    request = make_request(b"cat")
    assert await echo(request) == b"cat"
    assert request.frames == (b"cat",)
    assert request.client.socket_type == "REQ"
    assert request.deadline == float("inf")
    assert request.cancel_reason is None
    request.check_cancelled()


def test_a_request_without_a_server_has_what_it_is_given() -> None:
    peer = trioreq.Peer(id=7, address="192.0.2.1", socket_type="DEALER", user_id="alice")
    request = make_request([b"cat", b"256"], client=peer, deadline=30.0)
    assert request.frames == (b"cat", b"256")
    assert request.client is peer
    assert request.deadline == 30.0


@pytest.mark.parametrize("body", ["text", [], 3])
def test_a_request_without_a_server_is_bytes_too(body: Any) -> None:
    with pytest.raises(TypeError, match="body"):
        make_request(body)
