"""What becomes of a request, where only the memory transport can show it.

Deterministic: no kernel, no threads, and an autojump clock, so time passes only when all tasks
wait for it.
"""

from __future__ import annotations

import contextvars
import gc
import math
from typing import Any

import pytest
import trio
import trio.testing
from support.handlers import Worker
from support.memory import serving
from support.outcomes import outcomes
from trio.testing import MockClock

import trioreq
from trioreq._protocol.envelope import CANCEL, REQUEST, Header
from trioreq._server.requests import Requests
from trioreq._transport import routing_ids
from trioreq._transport.router import BATCH
from trioreq.testing import MemoryClient, MemoryNetwork


async def test_g3_a_request_in_one_segment_with_the_end_is_never_started(
    autojump_clock: MockClock,
) -> None:
    worker = Worker()
    async with serving(worker, max_in_flight=1) as net:
        client = net.connect(socket_type="DEALER")
        for name in (b"wait 1", b"wait 2", b"wait 3"):
            client.send(name)
        await worker.log.wait("started wait 1")
        client.send(b"wait 4")
        client.crash()
        other = net.connect()
        other.send(b"echo")
        assert await other.receive() == [b"re:echo"]
        assert [e for e in worker.log.entries if "started" in e] == [
            "started wait 1",
            "started echo",
        ]
        assert outcomes(net.server) == {
            "cancelled_by_disconnect": 1,
            "never_started": 3,
            "replied": 1,
        }


async def test_g3_a_granted_request_whose_client_goes_first_is_never_started(
    autojump_clock: MockClock,
) -> None:
    started: list[bytes] = []

    async def handler(request: trioreq.Request) -> bytes:
        started.append(request.body)
        if request.body == b"first":
            # The second request has a slot by now, and was not begun.
            second.crash()
            net.server._router.read_monitor()
        return b""

    async with serving(handler) as net:
        first, second = net.connect(), net.connect()
        await trio.testing.wait_all_tasks_blocked()
        first.send(b"first")
        second.send(b"second")
        await first.receive()
        await trio.testing.wait_all_tasks_blocked()
        assert started == [b"first"]
        assert outcomes(net.server) == {"replied": 1, "never_started": 1}
        assert net.server.statistics().running == 0


async def test_g5_a_granted_request_whose_client_goes_first_leaves_no_task(
    autojump_clock: MockClock,
) -> None:
    """It needs a task to give its slot back, if the handler before it waits."""

    async def handler(request: trioreq.Request) -> bytes:
        if request.body == b"first":
            second.crash()
            net.server._router.read_monitor()
            await trio.lowlevel.checkpoint()
        return b""

    async with serving(handler) as net:
        first, second = net.connect(), net.connect()
        await trio.testing.wait_all_tasks_blocked()
        first.send(b"first")
        second.send(b"second")
        await first.receive()
        first.close()
        await trio.testing.wait_all_tasks_blocked()
        assert outcomes(net.server) == {"replied": 1, "never_started": 1}
        assert net.server.statistics().running == 0
        assert [name for name in names_of_tasks() if name.startswith("client")] == []


def names_of_tasks() -> list[str]:
    """Those of all tasks of this loop."""
    root = trio.lowlevel.current_root_task()
    tasks = [] if root is None else [root]
    for task in tasks:
        tasks.extend(child for nursery in task.child_nurseries for child in nursery.child_tasks)
    return [task.name for task in tasks]


async def test_g1_g2_a_reply_is_not_handed_over_if_its_client_has_just_disconnected(
    autojump_clock: MockClock,
) -> None:
    """Also if another has its routing id by now."""

    async def handler(request: trioreq.Request) -> bytes:
        if request.body == b"old":
            await trio.lowlevel.checkpoint()
            old.crash()
            heirs.append(net.connect(routing_id=b"the-same-id"))
        return request.body

    heirs: list[MemoryClient] = []
    async with serving(handler) as net:
        old = net.connect(routing_id=b"the-same-id")
        old.send(b"old")
        await trio.testing.wait_all_tasks_blocked()
        assert await heirs[0].request(b"new") == [b"new"]
        assert net.server.statistics().replies_dropped == 1
        assert net._sockets is not None
        assert {*net._sockets.raw_router.refused} == {routing_ids.PROBE}


async def test_timers_of_requests_that_ended_are_removed(autojump_clock: MockClock) -> None:
    async with serving(Worker(), timeout=3600) as net:
        client = net.connect()
        for _ in range(1000):
            client.send(b"echo")
            await client.receive()
        assert len(net.server._requests.deadlines._heap) < 100


async def test_g5_nothing_is_kept_for_disconnected_clients(autojump_clock: MockClock) -> None:
    worker = Worker()
    async with serving(worker, max_in_flight=2, timeout=30) as net:
        for number in range(100):
            client = net.connect(socket_type="DEALER")
            client.send(b"wait")
            client.send(b"wait")
            client.send(b"wait")
            if number % 2:
                await trio.testing.wait_all_tasks_blocked()
            client.crash()
        await trio.testing.wait_all_tasks_blocked()
        server = net.server
        assert not list(server._router.connections)
        assert not server._requests.in_flight
        assert not server._queue._queues
        assert server._queue.free == 2
        assert not any(timer.item for _, _, timer in server._requests.deadlines._heap)


async def test_g5_queued_requests_are_released_at_once(autojump_clock: MockClock) -> None:
    """Also while no turn comes free."""
    worker = Worker()
    async with serving(worker, max_in_flight=1) as net:
        net.connect().send(b"shield")
        await worker.log.wait("started shield")
        for _ in range(100):
            client = net.connect(socket_type="DEALER")
            client.send(b"echo")
            client.send(b"echo")
            await trio.testing.wait_all_tasks_blocked()
            assert net.server.statistics().waiting == 2
            client.crash()
            await trio.testing.wait_all_tasks_blocked()
        assert net.server.statistics().waiting == 0
        assert not net.server._queue._queues
        worker.release.set()


async def test_requests_do_not_see_each_others_context(autojump_clock: MockClock) -> None:
    variable: contextvars.ContextVar[str] = contextvars.ContextVar("variable", default="clean")

    async def handler(request: trioreq.Request) -> bytes:
        before = variable.get()
        variable.set(request.body.decode())
        await trio.lowlevel.checkpoint()
        return before.encode()

    async with serving(handler, max_in_flight=2) as net:
        clients = [net.connect(socket_type="DEALER") for _ in range(3)]
        for client in clients:
            for _ in range(5):
                client.send(b"dirty")
        for client in clients:
            for _ in range(5):
                assert await client.receive() == [b"clean"]


@pytest.mark.parametrize("kind", [KeyboardInterrupt, SystemExit])
async def test_an_exception_that_ends_programs_ends_the_server_after_each_client_is_answered(
    autojump_clock: MockClock,
    kind: type[BaseException],
) -> None:
    worker = Worker()

    async def handler(request: trioreq.Request) -> bytes:
        if request.body == b"end":
            raise kind
        return await worker(request)

    with pytest.raises(kind):  # noqa: PT012  # the server ends the block
        async with serving(handler) as net:
            waiting = net.connect()
            waiting.send(b"wait")
            await worker.log.wait("started wait")
            net.connect().send(b"end")
            await trio.sleep_forever()
    assert (await waiting.receive())[1] == b"shutting-down"
    assert "cancelled wait: shutdown" in worker.log.entries


async def test_drain_returns_when_a_cancel_has_stopped_the_server(
    autojump_clock: MockClock,
) -> None:
    worker = Worker()
    drained = trio.Event()

    async def drain(net: MemoryNetwork) -> None:
        await net.server.drain(math.inf)
        drained.set()

    async with trio.open_nursery() as nursery:
        async with serving(worker) as net:
            net.connect().send(b"wait")
            await worker.log.wait("started wait")
            nursery.start_soon(drain, net)
            await trio.testing.wait_all_tasks_blocked()
        with trio.fail_after(1):
            await drained.wait()


async def test_all_clients_are_answered_though_error_reply_ends_the_program_at_the_shutdown(
    autojump_clock: MockClock,
) -> None:
    def error_reply(code: str, text: str) -> bytes:
        raise SystemExit(3)

    worker = Worker()
    clients: list[MemoryClient] = []

    async def serve() -> None:
        async with serving(worker, error_reply=error_reply) as net:
            clients.extend([net.connect() for _ in range(3)])
            for client in clients:
                client.send(b"wait")
            await worker.log.wait("started wait", 3)

    with pytest.raises(SystemExit):
        await serve()
    for client in clients:
        assert (await client.receive())[:2] == [b"trioreq-error", b"shutting-down"]


async def test_drain_returns_though_the_end_of_the_server_was_interrupted(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    drained = trio.Event()

    async def drain(net: MemoryNetwork) -> None:
        await net.server.drain(math.inf)
        drained.set()

    async def serve() -> None:
        worker = Worker()
        async with serving(worker) as net:
            net.connect().send(b"wait")
            await worker.log.wait("started wait")
            nursery.start_soon(drain, net)
            await trio.testing.wait_all_tasks_blocked()

    async def interrupted(_: trioreq.Server) -> None:
        raise LookupError("a second Ctrl-C")

    monkeypatch.setattr(trioreq.Server, "wait_finished", interrupted)
    async with trio.open_nursery() as nursery:
        with pytest.raises(LookupError):
            await serve()
        with trio.fail_after(1):
            await drained.wait()


@pytest.mark.parametrize(
    ("frames", "most"),
    [
        ((b"no request",), 128),
        ((b"", b"echo"), 128),
        ((b"", b"echo", b"more"), 64),
        ((b"", *[b""] * 1000), 1),
        ((b"", bytes(10_000), b""), 19),
        ((bytes(10_000), b"", b""), 19),
    ],
)
async def test_a_batch_is_bounded_whatever_its_messages_are(
    autojump_clock: MockClock, frames: tuple[bytes, ...], most: int
) -> None:
    async with serving(Worker()) as net:
        client = net.connect(socket_type="DEALER")
        client.send(b"echo")
        await client.receive()
        for _ in range(200):
            client.send_raw(*frames)
        net.server._reader.read(BATCH)
        assert net.server.statistics().requests - 1 == most


@pytest.mark.parametrize("frames", [(b"", b"echo"), (b"no request",)])
async def test_a_drain_ends_with_the_last_request_though_a_refused_one_has_given_it_up(
    autojump_clock: MockClock, frames: tuple[bytes, ...]
) -> None:
    worker = Worker()
    async with serving(worker) as net, trio.open_nursery() as nursery:
        client = net.connect()
        client.send(b"wait")
        await worker.log.wait("started wait")
        nursery.start_soon(net.server.drain, math.inf)
        await trio.testing.wait_all_tasks_blocked()
        client.send_raw(*frames)
        with trio.move_on_after(1) as scope:
            await net.server._closed.wait()
        net.server._drained.set()  # or else the test would wait with it
    assert not scope.cancelled_caught


async def test_g6_where_there_is_always_more_to_read_other_tasks_run_too(
    autojump_clock: MockClock,
) -> None:
    asked = passes = 0

    async def handler(request: trioreq.Request) -> bytes:
        nonlocal asked
        asked += 1
        if asked < 10_000:
            client.send(b"the next one")  # it has arrived before it can be read
        return b""

    async with serving(handler, max_in_flight=4) as net:
        client = net.connect(socket_type="DEALER")
        client.send(b"the first one")
        while asked < 10_000:
            await trio.lowlevel.checkpoint()
            passes += 1
    assert passes > 10_000 / 200  # after each 128 requests, and not at the end alone


def requests_in_memory() -> list[trioreq.Request]:
    gc.collect()
    return [thing for thing in gc.get_objects() if isinstance(thing, trioreq.Request)]


async def test_g5_a_reader_that_waits_holds_no_request() -> None:
    async def handler(request: trioreq.Request) -> bytes:
        return request.body

    others = requests_in_memory()  # of other tests
    async with serving(handler) as net:
        client = net.connect()
        assert await client.request(b"x") == [b"x"]
        await trio.testing.wait_all_tasks_blocked()
        assert [one for one in requests_in_memory() if one not in others] == []


async def test_ctrl_c_may_come_into_a_handler_but_not_into_the_sending_of_its_reply(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whether it is called in the reader's task, or in one of its client's nursery."""
    protected: list[tuple[str, bool]] = []
    end = Requests._end
    release = trio.Event()

    def watched(*arguments: Any, **options: Any) -> None:
        protected.append(("reply", trio.lowlevel.currently_ki_protected()))
        end(*arguments, **options)

    async def handler(request: trioreq.Request) -> bytes:
        protected.append(("handler", trio.lowlevel.currently_ki_protected()))
        if request.body == b"wait":
            await release.wait()
        if request.body == b"fail":
            raise trioreq.ReplyError("no", "no")
        return request.body

    monkeypatch.setattr(Requests, "_end", watched)
    async with serving(handler, max_in_flight=1) as net:
        client = net.connect(socket_type="DEALER")
        for body in (b"x", b"fail", b"wait"):
            client.send(body)
        await trio.testing.wait_all_tasks_blocked()
        for body in (b"x", b"fail"):
            client.send(body)
        await trio.testing.wait_all_tasks_blocked()
        assert net.server.statistics().waiting == 2  # for a slot, and so for a task
        release.set()
        await trio.testing.wait_all_tasks_blocked()
    assert protected == [("handler", False), ("reply", True)] * 5


async def test_g4_a_client_can_cancel_one_of_its_requests_that_run_in_tasks_of_their_own(
    autojump_clock: MockClock,
) -> None:
    worker = Worker()
    async with serving(worker, max_in_flight=2) as net:
        client = net.connect(socket_type="DEALER")
        holders = net.connect(), net.connect()
        for holder in holders:
            holder.send(b"wait and hold")
        await worker.log.wait("started wait and hold", 2)
        for number in (1, 2):
            client.send_raw(Header(REQUEST, number).pack(), b"", b"wait %d" % number)
        await trio.testing.wait_all_tasks_blocked()
        for holder in holders:
            holder.crash()
        await worker.log.wait("started wait 2")
        client.send_raw(Header(CANCEL, 1).pack(), b"", b"")
        await worker.log.wait("cancelled wait 1: cancelled")
        worker.release.set()
        assert await client.receive() == [b"re:wait 2"]


async def test_a_server_that_drains_refuses_connections(autojump_clock: MockClock) -> None:
    worker = Worker()
    async with serving(worker) as net:
        client = net.connect()
        client.send(b"wait")
        await worker.log.wait("started wait")
        async with trio.open_nursery() as nursery:
            nursery.start_soon(net.server.drain, 100)
            await trio.testing.wait_all_tasks_blocked()
            with pytest.raises(ConnectionRefusedError, match="the server drains"):
                net.connect()
            with pytest.raises(trioreq.NotConnected):
                async with trioreq.open_client(net, connect_timeout=1) as ours:
                    await ours.request(b"echo")
            worker.release.set()
            assert await client.receive() == [b"re:wait"]
