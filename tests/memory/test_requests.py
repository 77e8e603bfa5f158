"""What becomes of a request, on the memory transport.

Deterministic: no kernel, no threads, and an autojump clock, so time passes only when all tasks
wait for it.
"""

from __future__ import annotations

import contextvars
import logging
import math

import pytest
import trio
import trio.testing
from support.handlers import Worker
from support.memory import serving
from trio.testing import MockClock

import trioreq
from trioreq.testing import MemoryNetwork


def outcomes(net: MemoryNetwork) -> dict[str, int]:
    """How requests ended, without the zeros; and the sum always fits."""
    stats = net.server.statistics()
    names = [
        "replied",
        "failed",
        "timed_out",
        "superseded",
        "cancelled_by_disconnect",
        "cancelled_by_client",
        "never_started",
        "overloaded",
        "malformed",
        "shut_down",
    ]
    counts = {name: getattr(stats, name) for name in names}
    assert stats.requests == sum(counts.values()) + stats.in_flight
    return {name: count for name, count in counts.items() if count}


def refused(net: MemoryNetwork) -> list[bytes]:
    """The routing ids of all messages that the socket was given for nobody."""
    assert net._sockets is not None
    return net._sockets.raw_router.refused


async def test_a_request_has_its_reply(autojump_clock: MockClock) -> None:
    async with serving(Worker()) as net:
        client = net.connect()
        client.send(b"echo")
        assert await client.receive() == [b"re:echo"]
        assert outcomes(net) == {"replied": 1}
        assert net.server.statistics().replies_sent == 1


async def test_the_envelope_comes_back_untouched(autojump_clock: MockClock) -> None:
    async with serving(Worker()) as net:
        client = net.connect(socket_type="DEALER")
        client.send_raw(b"hop", b"\x00id", b"", b"echo", b"", b"more")
        assert await client.receive_raw() == [b"hop", b"\x00id", b"", b"re:echo"]


async def test_what_a_request_shows_and_that_it_cannot_be_changed(
    autojump_clock: MockClock,
) -> None:
    seen: list[trioreq.Request] = []

    async def handler(request: trioreq.Request) -> list[bytes]:
        seen.append(request)
        return [b"a", b"b"]

    async with serving(handler, timeout=30) as net:
        client = net.connect()
        client.send(b"one", b"", b"three")
        assert await client.receive() == [b"a", b"b"]
        (request,) = seen
        assert request.body == b"one"
        assert request.frames == (b"one", b"", b"three")
        assert request.deadline == trio.current_time() + 30
        assert request.cancel_reason is None
        assert request.client == trioreq.Peer(1, "127.0.0.1", "REQ")
        for name in ("body", "frames", "deadline", "client", "cancel_reason"):
            with pytest.raises(AttributeError):
                setattr(request, name, None)
        with pytest.raises(AttributeError):
            request.client.user_id = "root"  # type: ignore[misc]


async def test_g4_the_handler_is_cancelled_at_once_when_its_client_goes(
    autojump_clock: MockClock,
) -> None:
    worker = Worker()
    async with serving(worker) as net:
        client = net.connect()
        client.send(b"wait")
        await worker.log.wait("started wait")
        before = trio.current_time()
        client.crash()
        await worker.log.wait("cancelled wait: disconnected")
        assert trio.current_time() == before
        assert outcomes(net) == {"cancelled_by_disconnect": 1}
        assert not net.sent_to(client)


async def test_g1_a_handler_that_ignores_its_cancellation_is_not_heard(
    autojump_clock: MockClock,
) -> None:
    worker = Worker()
    async with serving(worker) as net:
        client = net.connect()
        client.send(b"shield")
        await worker.log.wait("started shield")
        client.crash()
        await trio.testing.wait_all_tasks_blocked()
        assert net.server.statistics().running == 1  # it keeps its turn
        worker.release.set()
        await worker.log.wait("ended shield")
        await trio.testing.wait_all_tasks_blocked()
        assert not net.sent_to(client)
        assert not refused(net)
        stats = net.server.statistics()
        assert stats.running == 0
        assert stats.replies_dropped == trioreq.RepliesDropped(client_gone=1)
        assert outcomes(net) == {"cancelled_by_disconnect": 1}


async def test_g3_what_waits_or_comes_after_the_end_is_never_started(
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
        assert outcomes(net) == {"cancelled_by_disconnect": 1, "never_started": 3, "replied": 1}


async def test_g3_a_granted_request_whose_client_goes_first_is_never_started(
    autojump_clock: MockClock,
) -> None:
    started: list[bytes] = []

    async def handler(request: trioreq.Request) -> bytes:
        started.append(request.body)
        if request.body == b"first":
            # The second request is granted by now, and no lane has come to it.
            second.crash()
            net.server._transport.read_monitor()
        return b""

    async with serving(handler) as net:
        first, second = net.connect(), net.connect()
        await trio.testing.wait_all_tasks_blocked()
        first.send(b"first")
        second.send(b"second")
        await first.receive()
        await trio.testing.wait_all_tasks_blocked()
        assert started == [b"first"]
        assert outcomes(net) == {"replied": 1, "never_started": 1}
        assert net.server.statistics().running == 0


async def test_g7_a_req_that_sends_anew_has_given_its_last_request_up(
    autojump_clock: MockClock,
) -> None:
    worker = Worker()
    async with serving(worker) as net:
        client = net.connect()
        client.send(b"wait")
        await worker.log.wait("started wait")
        client.send(b"echo")
        assert await client.receive() == [b"re:echo"]
        await worker.log.wait("cancelled wait: superseded")
        worker.release.set()
        await trio.testing.wait_all_tasks_blocked()
        assert len(net.sent_to(client)) == 1
        assert outcomes(net) == {"superseded": 1, "replied": 1}


async def test_a_dealer_may_have_many_in_flight(autojump_clock: MockClock) -> None:
    worker = Worker()
    async with serving(worker) as net:
        client = net.connect(socket_type="DEALER")
        for number in range(10):
            client.send(b"wait %d" % number)
        await worker.log.wait_for(lambda: len(worker.log.entries) == 10)
        worker.release.set()
        replies = {(await client.receive())[0] for _ in range(10)}
        assert replies == {b"re:wait %d" % number for number in range(10)}


async def test_the_deadline_counts_the_wait_for_a_turn(autojump_clock: MockClock) -> None:
    worker = Worker(stubborn=100)
    async with serving(worker, max_in_flight=1, timeout=30) as net:
        first, second, third = net.connect(), net.connect(), net.connect()
        first.send(b"shield")
        await worker.log.wait("started shield")
        second.send(b"echo")
        await trio.sleep(20)
        third.send(b"echo")
        begun = trio.current_time() - 20
        assert await first.receive() == [
            b"trioreq-error",
            b"timed-out",
            b"the request took longer than the server allows",
        ]
        assert (await second.receive())[:2] == [b"trioreq-error", b"timed-out"]
        assert trio.current_time() == begun + 30
        worker.release.set()
        assert await third.receive() == [b"re:echo"]
        assert outcomes(net) == {"timed_out": 2, "replied": 1}
        assert len(net.sent_to(first)) == 1


async def test_past_the_deadline_the_handler_is_cancelled(autojump_clock: MockClock) -> None:
    worker = Worker()
    async with serving(worker, timeout=30) as net:
        client = net.connect()
        client.send(b"wait")
        assert (await client.receive())[1] == b"timed-out"
        await worker.log.wait("cancelled wait: deadline")


async def test_timers_of_requests_that_ended_are_thrown_out(autojump_clock: MockClock) -> None:
    async with serving(Worker(), timeout=3600) as net:
        client = net.connect()
        for _ in range(1000):
            client.send(b"echo")
            await client.receive()
        assert len(net.server._desk.deadlines._heap) < 100


async def test_clients_take_turns(autojump_clock: MockClock) -> None:
    worker = Worker()
    async with serving(worker, max_in_flight=1) as net:
        greedy, modest = net.connect(socket_type="DEALER"), net.connect()
        greedy.send(b"wait")
        await worker.log.wait("started wait")
        for number in range(3):
            greedy.send(b"echo greedy %d" % number)
        modest.send(b"echo modest")
        worker.release.set()
        for _ in range(4):
            await greedy.receive()
        started = [e.removeprefix("started echo ") for e in worker.log.entries if "started e" in e]
        assert started == ["greedy 0", "modest", "greedy 1", "greedy 2"]


async def test_past_the_queue_the_answer_is_overloaded_at_once(autojump_clock: MockClock) -> None:
    worker = Worker()
    async with serving(worker, max_in_flight=2, max_queued_per_client=1) as net:
        client, other = net.connect(socket_type="DEALER"), net.connect()
        for name in (b"shield 1", b"shield 2", b"echo 3", b"echo 4"):  # in one batch
            client.send(name)
        assert (await client.receive())[:2] == [b"trioreq-error", b"overloaded"]
        other.send(b"echo")  # has a queue of its own
        await trio.testing.wait_all_tasks_blocked()
        stats = net.server.statistics()
        assert (stats.in_flight, stats.waiting, stats.running) == (4, 2, 2)
        worker.release.set()
        assert await other.receive() == [b"re:echo"]
        assert {(await client.receive())[0] for _ in range(3)} == {
            b"re:shield 1",
            b"re:shield 2",
            b"re:echo 3",
        }
        assert outcomes(net) == {"overloaded": 1, "replied": 4}


async def test_a_malformed_message_is_answered_counted_and_logged_once(
    autojump_clock: MockClock,
    caplog: pytest.LogCaptureFixture,
) -> None:
    async with serving(Worker()) as net:
        client = net.connect(socket_type="DEALER")
        client.send_raw(b"no", b"delimiter")
        client.send_raw(b"")
        assert (await client.receive())[:2] == [b"trioreq-error", b"malformed"]
        assert (await client.receive())[:2] == [b"trioreq-error", b"malformed"]
        assert outcomes(net) == {"malformed": 2}
    assert sum("no request" in record.message for record in caplog.records) == 1


async def test_an_exception_becomes_an_error_reply_and_a_traceback_in_the_log(
    autojump_clock: MockClock,
    caplog: pytest.LogCaptureFixture,
) -> None:
    async with serving(Worker()) as net:
        client = net.connect()
        client.send(b"fail secret")
        reply = await client.receive()
        assert reply[:2] == [b"trioreq-error", b"handler-failed"]
        assert b"LookupError" in reply[2]
        assert b"secret" not in reply[2]
        client.send(b"echo")
        assert await client.receive() == [b"re:echo"]
        assert outcomes(net) == {"failed": 1, "replied": 1}
    (record,) = [record for record in caplog.records if record.levelno == logging.ERROR]
    assert "fail secret" in caplog.text
    assert record.exc_info


@pytest.mark.parametrize("result", [None, "text", [], 17])
async def test_what_is_no_reply_is_a_logged_type_error(
    autojump_clock: MockClock, result: object, caplog: pytest.LogCaptureFixture
) -> None:
    async def handler(request: trioreq.Request) -> object:
        return result

    async with serving(handler) as net:
        client = net.connect()
        client.send(b"x")
        assert (await client.receive())[:2] == [b"trioreq-error", b"handler-failed"]
        assert outcomes(net) == {"failed": 1}
    assert "TypeError" in caplog.text


async def test_an_error_on_purpose_has_its_own_code_and_no_traceback(
    autojump_clock: MockClock,
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def handler(request: trioreq.Request) -> bytes:
        raise trioreq.ReplyError("not-found", "no image 17")

    async with serving(handler) as net:
        client = net.connect()
        client.send(b"x")
        assert await client.receive() == [b"trioreq-error", b"not-found", b"no image 17"]
        assert outcomes(net) == {"failed": 1}
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]


class Odd(BaseException):
    """No Exception, and nothing that ends programs."""


async def test_odd_exceptions_are_failures_too(autojump_clock: MockClock) -> None:
    async def handler(request: trioreq.Request) -> bytes:
        raise Odd

    async with serving(handler) as net:
        client = net.connect()
        client.send(b"x")
        assert (await client.receive())[1] == b"handler-failed"


async def test_a_nursery_that_fails_while_it_is_cancelled_ends_its_request_alone(
    autojump_clock: MockClock,
    caplog: pytest.LogCaptureFixture,
) -> None:
    inside = trio.Event()

    async def fail_late() -> None:
        try:
            await trio.sleep_forever()
        finally:
            raise LookupError("while unwinding")

    async def handler(request: trioreq.Request) -> bytes:
        if request.body == b"echo":
            return b"re:echo"
        async with trio.open_nursery() as nursery:
            nursery.start_soon(fail_late)
            nursery.start_soon(trio.sleep_forever)
            await trio.testing.wait_all_tasks_blocked()
            inside.set()
        raise AssertionError

    async with serving(handler) as net:
        client, other = net.connect(), net.connect()
        client.send(b"x")
        await inside.wait()
        client.crash()
        other.send(b"echo")
        assert await other.receive() == [b"re:echo"]
        await trio.testing.wait_all_tasks_blocked()
        assert outcomes(net) == {"cancelled_by_disconnect": 1, "replied": 1}
    assert "after its request had ended (disconnected)" in caplog.text
    assert "while unwinding" in caplog.text


async def test_g6_a_full_client_loses_its_replies_and_nobody_waits(
    autojump_clock: MockClock,
    caplog: pytest.LogCaptureFixture,
) -> None:
    worker = Worker()
    async with serving(worker, send_queue=2) as net:
        full, other = net.connect(socket_type="DEALER"), net.connect()
        for _ in range(5):
            full.send(b"wait")
        await worker.log.wait("started wait", 5)
        full.stall()
        worker.release.set()
        other.send(b"echo")
        assert await other.receive() == [b"re:echo"]
        await trio.testing.wait_all_tasks_blocked()
        stats = net.server.statistics()
        assert stats.replies_dropped == trioreq.RepliesDropped(queue_full=3)
        assert stats.replies_sent == 3
        assert net.held_for(full) == [[b"re:wait"]] * 2
    assert sum("does not read" in record.message for record in caplog.records) == 1


async def test_g5_nothing_is_kept_for_the_gone(autojump_clock: MockClock) -> None:
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
        desk = net.server._desk
        assert not desk.connections
        assert not desk.in_flight
        assert not desk.turns._queues
        assert not desk.turns.granted
        assert desk.turns.free == 2
        assert not any(timer.item for _, _, timer in desk.deadlines._heap)


async def test_g5_what_waits_is_let_go_of_at_once(autojump_clock: MockClock) -> None:
    """Also while no turn comes free."""
    worker = Worker()
    async with serving(worker, max_in_flight=1) as net:
        net.connect().send(b"shield")
        await worker.log.wait("started shield")
        for _ in range(100):
            client = net.connect(socket_type="DEALER")
            client.send(b"echo")
            client.send(b"echo")
            client.crash()
        assert net.server.statistics().waiting == 0
        assert not net.server._desk.turns._queues
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


async def test_check_cancelled_knows_its_request_in_an_async_handler(
    autojump_clock: MockClock,
) -> None:
    async def handler(request: trioreq.Request) -> bytes:
        trioreq.check_cancelled()
        return b"fine"

    async with serving(handler) as net:
        client = net.connect()
        client.send(b"x")
        assert await client.receive() == [b"fine"]


async def test_cancelling_tells_each_waiting_client_and_cancels_what_runs(
    autojump_clock: MockClock,
) -> None:
    worker = Worker()
    async with serving(worker, max_in_flight=1) as net:
        first, second = net.connect(), net.connect()
        first.send(b"wait")
        await worker.log.wait("started wait")
        second.send(b"echo")
        await trio.testing.wait_all_tasks_blocked()
        before = trio.current_time()
    assert trio.current_time() == before
    for client in (first, second):
        assert await client.receive() == [
            b"trioreq-error",
            b"shutting-down",
            b"the server is shutting down",
        ]
    assert worker.log.entries[-2] == "cancelled wait: shutdown"
    assert outcomes(net) == {"shut_down": 2}


async def test_draining_gives_what_is_here_its_time_and_starts_nothing_new(
    autojump_clock: MockClock,
) -> None:
    worker = Worker()
    async with serving(worker, max_in_flight=1) as net, trio.open_nursery() as nursery:
        client, waiting, newcomer = net.connect(), net.connect(), net.connect()
        client.send(b"wait")
        waiting.send(b"echo")
        await worker.log.wait("started wait")
        nursery.start_soon(net.server.drain, 10)
        await trio.testing.wait_all_tasks_blocked()
        newcomer.send(b"echo")
        assert (await newcomer.receive())[1] == b"shutting-down"
        worker.release.set()
        assert await client.receive() == [b"re:wait"]
        assert await waiting.receive() == [b"re:echo"]
        before = trio.current_time()
        await net.server._closed.wait()
        assert trio.current_time() == before
        assert outcomes(net) == {"replied": 2, "shut_down": 1}


async def test_draining_ends_after_its_grace(autojump_clock: MockClock) -> None:
    worker = Worker()
    async with serving(worker) as net:
        client = net.connect()
        client.send(b"wait")
        await worker.log.wait("started wait")
        before = trio.current_time()
        await net.server.drain(10)
        assert trio.current_time() == before + 10
        assert (await client.receive())[1] == b"shutting-down"
        assert "cancelled wait: shutdown" in worker.log.entries


async def test_draining_an_idle_server_is_at_once(autojump_clock: MockClock) -> None:
    async with serving(Worker()) as net:
        before = trio.current_time()
        await net.server.drain(math.inf)
        assert trio.current_time() == before


async def test_draining_twice_takes_the_shorter_grace(autojump_clock: MockClock) -> None:
    worker = Worker()
    async with serving(worker) as net, trio.open_nursery() as nursery:
        net.connect().send(b"wait")
        await worker.log.wait("started wait")
        nursery.start_soon(net.server.drain, 1000)
        await trio.testing.wait_all_tasks_blocked()
        before = trio.current_time()
        await net.server.drain(10)
        assert trio.current_time() == before + 10


@pytest.mark.parametrize("grace", [-1, math.nan])
async def test_a_grace_is_a_time(autojump_clock: MockClock, grace: float) -> None:
    async with serving(Worker()) as net:
        with pytest.raises(ValueError, match="grace"):
            await net.server.drain(grace)


@pytest.mark.parametrize("kind", [KeyboardInterrupt, SystemExit])
async def test_what_ends_programs_ends_the_server_with_a_word_to_each_client(
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
