"""What happens between two steps of the server, where its order of steps is what makes it right.

Deterministic: no kernel, no threads, an autojump clock, and what comes in between is called by the
test, instead of a function of the server or in a handler.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import trio
import trio.testing
from support.handlers import ThreadWorker, Worker
from support.memory import serving
from support.outcomes import outcomes
from trio.testing import MockClock, wait_all_tasks_blocked

import trioreq
import trioreq.testing
from trioreq._protocol import packs
from trioreq._protocol.envelope import CANCEL, CREDIT, REQUEST, Header
from trioreq._server import deadlines, reader, server
from trioreq._server.pending_request import PendingRequest
from trioreq._server.tasks import IN_A_ROW
from trioreq._transport.held_connections import HeldConnections
from trioreq._transport.router import BATCH, MESSAGE
from trioreq.testing import MemoryClient, MemoryNetwork
from trioreq.testing._libzmq import HeldConnection, MemorySockets


def sockets_of(net: MemoryNetwork) -> MemorySockets:
    assert net._sockets is not None
    return net._sockets


async def echo(request: trioreq.Request) -> bytes:
    return request.body


# Connections that are accepted.


async def test_g2_a_connection_that_comes_while_zap_requests_are_read_is_attributed(
    autojump_clock: MockClock,
) -> None:
    """The monitor is read after them, so it has the accept of each connection that asks."""
    async with serving(echo) as net:
        zap = sockets_of(net).zap
        receive = zap.receive
        late: list[MemoryClient] = []

        def receive_and_connect() -> list[bytes] | None:
            if not late:
                late.append(net.connect())
            return receive()

        zap.receive = receive_and_connect
        assert await net.connect().request(b"first") == [b"first"]
        assert await late[0].request(b"late") == [b"late"]
        assert net.server.statistics().unattributed == 0


async def test_g2_a_client_that_comes_back_under_its_routing_id_is_heard(
    autojump_clock: MockClock,
) -> None:
    """What it sent last on its old connection has not been read when libzmq asks about the new."""
    async with serving(echo) as net:
        old = net.connect(routing_id=b"its-own")
        assert await old.request(b"x") == [b"x"]
        await wait_all_tasks_blocked()
        old.send(b"last words")
        old.crash()
        new = net.connect(routing_id=b"its-own")
        net.server._admission.answer()  # before the reader has its turn
        await net.server._admission._reply_all()
        assert await new.request(b"x") == [b"x"]
        assert outcomes(net.server) == {"replied": 2, "never_started": 1}


async def test_g6_a_catch_up_is_bounded_and_the_rest_is_read(autojump_clock: MockClock) -> None:
    """Nothing but the catch-up could wake the reader: no message comes, and no reply is sent."""
    most = reader.CATCH_UP * BATCH // MESSAGE
    worker = Worker()
    async with serving(worker, max_queued_per_client=4 * most) as net:
        client = net.connect(socket_type="DEALER")
        client.send(b"wait")
        await worker.log.wait("started wait")
        await wait_all_tasks_blocked()
        for _ in range(2 * most):
            client.send(b"wait")
        net.connect()
        net.server._admission.answer()
        assert net.server.statistics().requests == 1 + most
        await wait_all_tasks_blocked()
        assert net.server.statistics().requests == 1 + 2 * most


async def test_g6_zap_requests_are_answered_while_admit_decides_about_another(
    autojump_clock: MockClock,
) -> None:
    """The reply to the one eats the edge of the other's request."""
    others: list[MemoryClient] = []

    async def admit(_: trioreq.Applicant) -> str:
        await trio.sleep(1)
        if not others:
            others.append(net.connect())
        return ""

    async with serving(echo, admit=admit) as net:
        assert await net.connect().request(b"x") == [b"x"]
        assert await others[0].request(b"x") == [b"x"]


async def test_a_connection_that_goes_while_it_is_held_is_not_counted(
    autojump_clock: MockClock,
) -> None:
    """It is held when its accept is read, and counted when all events are."""
    async with serving(echo, max_connections=2) as net:
        assert await net.connect().request(b"x") == [b"x"]
        await wait_all_tasks_blocked()
        sockets = sockets_of(net)
        hold = sockets.hold

        def hold_and_disconnect(descriptor: int) -> HeldConnection | None:
            held = hold(descriptor)
            if not brief.connection.ended:
                brief.crash()
            return held

        sockets.__dict__["hold"] = hold_and_disconnect
        brief = net.connect()
        await wait_all_tasks_blocked()
        assert await net.connect().request(b"x") == [b"x"]
        assert net.server.statistics().refused == 0


async def test_g2_a_connection_that_gets_the_descriptor_of_one_beyond_a_limit_is_not_closed(
    autojump_clock: MockClock,
) -> None:
    """Another connection may be held already: the monitor reports it, and is read after that."""
    async with serving(echo, max_connections=1) as net:
        first = net.connect()
        assert await first.request(b"x") == [b"x"]
        sockets = sockets_of(net)
        hold = sockets.hold
        heirs: list[MemoryClient] = []

        def hold_another(descriptor: int) -> HeldConnection | None:
            if not heirs:
                first.crash()
                beyond.crash()
                heirs.append(net.connect(reuse=beyond))
            return hold(descriptor)

        sockets.__dict__["hold"] = hold_another
        beyond = net.connect()
        await wait_all_tasks_blocked()
        with trio.fail_after(1):
            assert await heirs[0].request(b"x") == [b"x"]
        assert net.server.statistics().refused == 0


async def test_a_client_whose_key_is_revoked_before_its_first_message_is_not_served(
    autojump_clock: MockClock,
) -> None:
    worker = Worker()
    async with serving(worker) as net:
        client = net.connect()
        await wait_all_tasks_blocked()
        net.server._rules.__dict__["still_accept"] = lambda _: False
        client.send(b"wait")
        with pytest.raises(trio.BrokenResourceError, match="shut the connection down"):
            await client.receive()
        assert not worker.log.entries
        assert outcomes(net.server) == {"never_started": 1}
        assert net.server.statistics().evicted == 1


async def test_g5_the_message_guard_keeps_nothing_for_closed_connections(
    autojump_clock: MockClock,
) -> None:
    async with serving(echo) as net:
        client = net.connect()
        await client.request(b"x")
        (connection,) = net.server._router.connections
        guard = net.server._router.guard
        guard.weigh(connection, 0, 0, 0)
        assert guard.watched == {connection}
        client.crash()
        await wait_all_tasks_blocked()
        assert not guard.watched


# Messages that come while another call on the socket is made.


@pytest.mark.parametrize("plain", [False, True])
async def test_g6_a_reply_does_not_put_the_reader_to_sleep(
    autojump_clock: MockClock, plain: bool
) -> None:
    """It eats the edge of the message that has just come. Plain functions: a flush does."""

    def answer(request: trioreq.Request) -> bytes:
        if request.body == b"last":
            other.send(b"echo")
        return b"re:" + request.body

    async def handler(request: trioreq.Request) -> bytes:
        await trio.sleep(1)  # the reader sleeps meanwhile
        return answer(request)

    def plain_handler(request: trioreq.Request) -> bytes:
        trioreq.testing.sleep(1)
        return answer(request)

    async with serving(plain_handler if plain else handler) as net:
        client, other = net.connect(), net.connect()
        await wait_all_tasks_blocked()
        assert await client.request(b"last") == [b"re:last"]
        assert await other.receive() == [b"re:echo"]


async def test_a_reply_that_is_ready_does_not_wait_for_a_handler_that_waits(
    autojump_clock: MockClock,
) -> None:
    worker = Worker()
    async with serving(worker) as net:
        client = net.connect(socket_type="DEALER")
        await wait_all_tasks_blocked()
        client.send(b"echo")
        client.send(b"wait")
        await wait_all_tasks_blocked()
        assert worker.log.entries[-1] == "started wait"
        assert net.sent_to(client) == [[b"re:echo"]]


# Requests that end while they are about to start.


async def test_g3_a_plain_function_whose_client_goes_before_its_thread_begins_is_not_called(
    autojump_clock: MockClock,
) -> None:
    worker = ThreadWorker()
    async with serving(worker) as net:
        client = net.connect()
        await wait_all_tasks_blocked()
        workers: Any = net.server._workers
        spawn = workers._spawn

        def spawn_and_disconnect() -> None:
            spawn()
            client.crash()
            net.server._router.read_monitor()

        workers._spawn = spawn_and_disconnect
        client.send(b"echo")
        await wait_all_tasks_blocked()
        assert not worker.log.entries
        assert outcomes(net.server) == {"never_started": 1}
        assert net.server.statistics().running == 0


async def test_g7_a_plain_function_that_is_superseded_before_its_thread_begins_is_not_called(
    autojump_clock: MockClock,
) -> None:
    worker = ThreadWorker()
    async with serving(worker) as net:
        client = net.connect()
        await wait_all_tasks_blocked()
        workers: Any = net.server._workers
        spawn = workers._spawn

        def spawn_and_supersede() -> None:
            workers._spawn = spawn
            spawn()
            client.send(b"echo again")
            net.server._catch_up()

        workers._spawn = spawn_and_supersede
        client.send(b"echo")
        assert await client.receive() == [b"re:echo again"]
        assert "started echo" not in worker.log.entries
        assert outcomes(net.server) == {"superseded": 1, "replied": 1}


async def test_a_request_that_ends_when_its_thread_has_just_looked_counts_as_started(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    worker = ThreadWorker()
    async with serving(worker) as net:
        client = net.connect()
        await wait_all_tasks_blocked()
        check = PendingRequest.check_cancelled

        def check_and_disconnect(request: PendingRequest) -> None:
            check(request)
            client.crash()
            net.server._router.read_monitor()

        monkeypatch.setattr(PendingRequest, "check_cancelled", check_and_disconnect)
        client.send(b"echo")
        await wait_all_tasks_blocked()
        assert "started echo" in worker.log.entries
        assert outcomes(net.server) == {"cancelled_by_disconnect": 1}


class StartsMeanwhile:
    """Instead of `PendingRequest.started`: a thread begins right after the loop has looked.

    Args:
        request: The request that the thread begins.
        begin: Begins it.
    """

    def __init__(self, request: PendingRequest, begin: Callable[[PendingRequest], None]) -> None:
        self._request = request
        self._begin: Callable[[PendingRequest], None] | None = begin
        self._started: dict[PendingRequest, bool] = {}

    def __get__(self, request: PendingRequest, _: object) -> bool:
        seen = self._started.get(request, False)
        begin, self._begin = self._begin, None
        if begin is not None:
            assert request is self._request
            begin(request)
        return seen

    def __set__(self, request: PendingRequest, started: bool) -> None:
        self._started[request] = started


async def test_g3_a_request_that_counts_as_never_started_is_not_started_by_its_thread(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    worker = ThreadWorker()
    async with serving(worker, workers=1) as net:
        first, second = net.connect(), net.connect()
        first.send(b"deaf")
        await worker.log.wait("started deaf")
        second.send(b"echo")
        await wait_all_tasks_blocked()
        (connection,) = (
            c for c in net.server._router.connections if c.client.requests and c.id > 1
        )
        (request,) = connection.client.requests
        ran: list[bool] = []

        def begin(request: PendingRequest) -> None:
            connection.disconnected = False  # it was not when the thread looked, a moment ago
            try:
                net.server._requests.begin_in_thread(request, 0)
            except trioreq.RequestCancelled:
                ran.append(False)
            else:
                ran.append(True)
            finally:
                connection.disconnected = True

        second.crash()
        with monkeypatch.context() as patched:
            patched.setattr(PendingRequest, "started", StartsMeanwhile(request, begin))
            net.server._router.read_monitor()
        assert outcomes(net.server) == {"never_started": 1}
        assert ran == [False]
        worker.release.set()
        await first.receive()


async def test_a_client_that_goes_while_its_nursery_is_opened_leaves_no_task_and_no_slot(
    autojump_clock: MockClock,
) -> None:
    worker = Worker()
    async with serving(worker) as net:
        client = net.connect(socket_type="DEALER")
        await wait_all_tasks_blocked()
        before = trio.lowlevel.current_statistics().tasks_living
        workers: Any = net.server._workers
        follow = workers._follow

        def follow_and_disconnect(rest: Any) -> None:
            follow(rest)
            assert len(rest) == 2  # they are to run in the client's nursery
            client.crash()
            net.server._router.read_monitor()

        workers._follow = follow_and_disconnect
        for _ in range(3):
            client.send(b"wait")
        await wait_all_tasks_blocked()
        assert outcomes(net.server) == {"cancelled_by_disconnect": 1, "never_started": 2}
        assert net.server.statistics().running == 0
        assert trio.lowlevel.current_statistics().tasks_living == before


async def test_g7_what_supersedes_a_request_does_not_run_in_its_cancelled_nursery(
    autojump_clock: MockClock,
) -> None:
    worker = Worker()
    async with serving(worker, max_in_flight=1) as net:
        holder, client = net.connect(), net.connect()
        holder.send(b"wait and hold")
        await worker.log.wait("started wait and hold")
        client.send(b"wait 1")
        await wait_all_tasks_blocked()
        holder.crash()  # its slot goes to the other client's request, in a nursery
        await worker.log.wait("started wait 1")
        client.send(b"wait 2")
        await worker.log.wait("cancelled wait 1: superseded")
        await worker.log.wait("started wait 2")
        worker.release.set()
        assert await client.receive() == [b"re:wait 2"]


# Disconnects that are read and not handled yet.


@pytest.fixture
def _one_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "AT_ONCE", 1)


@pytest.mark.usefixtures("_one_at_once")
async def test_g1_a_handler_that_returns_before_its_disconnect_is_handled_is_not_answered(
    autojump_clock: MockClock,
) -> None:
    async def handler(request: trioreq.Request) -> bytes:
        if request.body == b"wait":
            await trio.sleep_forever()
        await trio.lowlevel.checkpoint()
        first.crash()
        second.crash()
        net.server._router.read_monitor()
        return b"late"

    async with serving(handler) as net:
        first, second = net.connect(), net.connect()
        first.send(b"wait")
        await wait_all_tasks_blocked()
        second.send(b"go")
        await wait_all_tasks_blocked()
        assert outcomes(net.server) == {"cancelled_by_disconnect": 2}
        dropped = net.server.statistics().replies_dropped
        assert dropped == 1


@pytest.mark.usefixtures("_one_at_once")
@pytest.mark.parametrize("plain", [False, True])
async def test_g3_no_handler_is_called_for_a_client_whose_disconnect_is_to_be_handled_yet(
    autojump_clock: MockClock, plain: bool
) -> None:
    """All have a slot when the first handler is called, and the others go meanwhile."""
    started: list[bytes] = []

    def crash_others(request: trioreq.Request) -> bytes:
        started.append(request.body)
        for name, client in clients.items():
            if name != request.body and client.connected:
                client.crash()
        net.server._router.read_monitor()
        return b""

    async def in_the_loop(request: trioreq.Request) -> bytes:
        return crash_others(request)

    async with serving(crash_others if plain else in_the_loop) as net:
        clients = {b"%d" % number: net.connect() for number in range(5)}
        await wait_all_tasks_blocked()
        for name, client in clients.items():
            client.send(name)
        await wait_all_tasks_blocked()
        assert len(started) == 1
        assert outcomes(net.server) == {"replied": 1, "never_started": 4}
        assert net.server.statistics().running == 0


@pytest.mark.usefixtures("_one_at_once")
async def test_a_disconnect_that_is_not_handled_when_the_server_stops_is_none_the_less_one(
    autojump_clock: MockClock,
) -> None:
    worker = ThreadWorker()
    async with serving(worker) as net:
        clients = [net.connect() for _ in range(3)]
        for client in clients:
            client.send(b"wait")
        await worker.log.wait("started wait", 3)
        for client in clients:
            client.crash()
        net.server._router.read_monitor()
        net.server.stop()
        assert outcomes(net.server) == {"cancelled_by_disconnect": 3}
        await worker.log.wait("cancelled wait: disconnected", 3)


@pytest.mark.parametrize("each", [1, 10, 1000])
async def test_g6_of_many_disconnects_some_are_handled_in_each_pass(
    autojump_clock: MockClock, each: int
) -> None:
    many = 5 * server.AT_ONCE
    most = server.AT_ONCE + each  # a client's requests are ended together
    async with serving(Worker(), max_in_flight=5000) as net:
        clients = [net.connect(socket_type="DEALER") for _ in range(max(many // each, 3))]
        for client in clients:
            for _ in range(each):
                client.send(b"wait")
        await wait_all_tasks_blocked()
        many = net.server.statistics().in_flight
        for client in clients:
            client.crash()
        net.server._router.read_monitor()
        passes = 0
        seen = many - net.server.statistics().in_flight
        assert 0 < seen <= most
        while seen < many:
            await trio.lowlevel.checkpoint()
            passes += 1
            before, seen = seen, many - net.server.statistics().in_flight
            assert seen - before <= 2 * most  # this task may run last, and then first
            assert passes < 100


async def test_g6_of_many_deadlines_some_are_handled_in_each_pass(
    autojump_clock: MockClock,
) -> None:
    """They are at the same time, and handled at that time."""
    many = 5 * deadlines.AT_ONCE
    options = {"max_in_flight": 1, "max_queued_per_client": many, "send_queue": many}
    async with serving(Worker(), timeout=5, **options) as net:
        client = net.connect(socket_type="DEALER")
        for _ in range(many):
            client.send(b"wait")
        most = before = 0

        class Passes(trio.abc.Instrument):
            def before_io_wait(self, timeout: float) -> None:
                nonlocal most, before
                timed_out = net.server.statistics().timed_out
                most, before = max(most, timed_out - before), timed_out

        passes = Passes()
        trio.lowlevel.add_instrument(passes)
        await trio.sleep(5.5)
        trio.lowlevel.remove_instrument(passes)
        assert before == many
        assert most == deadlines.AT_ONCE


# Deadlines.


@pytest.mark.parametrize("seed", range(8))
async def test_a_handler_that_trio_cancels_before_the_servers_timer_has_timed_out(
    autojump_clock: MockClock, seed: int
) -> None:
    """Both are due at once, and the seed decides which of the two tasks is first."""
    worker = Worker()
    async with serving(worker, timeout=5, seed=seed) as net:
        assert (await net.connect().request(b"wait"))[1] == b"timed-out"
        await worker.log.wait("cancelled wait: deadline")
        assert outcomes(net.server) == {"timed_out": 1}


async def test_the_deadline_of_a_request_that_was_answered_does_not_cancel_the_reader(
    autojump_clock: MockClock,
) -> None:
    async with serving(echo, timeout=5) as net:
        client = net.connect()
        for _ in range(3):
            assert await client.request(b"x") == [b"x"]
            await trio.sleep(10)


# The reader's task.


async def test_the_task_of_a_request_that_was_cancelled_does_not_read_on(
    autojump_clock: MockClock,
) -> None:
    """The request was cancelled, and with it the scope of the task, though it did not wait."""

    async def handler(request: trioreq.Request) -> bytes:
        if request.body == b"go":
            client.crash()
            net.server._router.read_monitor()
        return request.body

    async with serving(handler) as net:
        client, other = net.connect(), net.connect()
        await wait_all_tasks_blocked()
        client.send(b"go")
        await wait_all_tasks_blocked()
        assert await other.request(b"x") == [b"x"]


async def test_a_lock_that_a_handler_has_not_released_is_not_the_next_ones(
    autojump_clock: MockClock,
) -> None:
    lock = trio.Lock()

    async def handler(request: trioreq.Request) -> bytes:
        try:
            lock.acquire_nowait()
        except trio.WouldBlock:  # and no RuntimeError: it is not held by this task
            return b"locked"
        return b"taken"

    async with serving(handler) as net:
        client = net.connect()
        assert await client.request(b"x") == [b"taken"]
        assert await client.request(b"x") == [b"locked"]


async def test_a_scope_that_a_handler_has_not_left_ends_with_its_request(
    autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    async def handler(request: trioreq.Request) -> bytes:
        if request.body == b"leave":
            trio.move_on_after(5).__enter__()
        else:
            await trio.sleep(10)
        return request.body

    async with serving(handler) as net:
        client = net.connect()
        assert await client.request(b"leave") == [b"leave"]
        assert await client.request(b"sleep") == [b"sleep"]
        await wait_all_tasks_blocked()
    assert "left a cancel scope open" in caplog.text


async def test_a_cancelled_of_another_scope_fails_its_request_alone(
    autojump_clock: MockClock,
) -> None:
    kept: list[trio.Cancelled] = []

    async def handler(request: trioreq.Request) -> bytes:
        if request.body == b"raise":
            raise kept[0]
        with trio.CancelScope() as scope:
            scope.cancel()
            try:
                await trio.lowlevel.checkpoint()
            except trio.Cancelled as cancelled:
                kept.append(cancelled)
                raise
        return request.body

    async with serving(handler) as net:
        client = net.connect()
        assert await client.request(b"keep") == [b"keep"]
        assert (await client.request(b"raise"))[1] == b"handler-failed"
        assert await client.request(b"keep") == [b"keep"]


# The end of the server.


class Broken(Exception):
    """A fault of the server itself."""


# Which task is first is chance, and a handler that is first would have no reason: so many wait.
MANY = 20


async def check_told(worker: Worker, clients: list[MemoryClient]) -> None:
    """Each client was answered, and its handler knew the reason when it was cancelled."""
    for client in clients:
        assert (await client.receive())[1] == b"shutting-down"
    assert worker.log.count("cancelled wait: shutdown") == len(clients)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("task", ["reader", "ZAP handler"])
async def test_a_fault_of_the_server_itself_ends_it_and_each_client_is_answered(
    autojump_clock: MockClock, task: str, seed: int
) -> None:
    def break_down(*_: object) -> None:
        raise Broken

    worker = Worker()
    with pytest.raises(Broken):  # noqa: PT012  # the server ends the block
        async with serving(worker, seed=seed, max_in_flight=MANY) as net:
            waiting, other = [net.connect() for _ in range(MANY)], net.connect()
            for client in waiting:
                client.send(b"wait")
            await worker.log.wait("started wait", MANY)
            await wait_all_tasks_blocked()
            if task == "reader":
                sockets_of(net).router.receive_from = break_down
                other.send(b"echo")
            else:
                sockets_of(net).zap.receive = break_down
                net.connect()
            await trio.sleep_forever()
    await check_told(worker, waiting)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("own_task", [False, True])
async def test_an_exception_that_ends_the_program_answers_each_client_wherever_it_is_raised(
    autojump_clock: MockClock, own_task: bool, seed: int
) -> None:
    worker = Worker()

    async def handler(request: trioreq.Request) -> bytes:
        if request.body == b"exit":
            raise SystemExit
        return await worker(request)

    with pytest.raises(SystemExit):  # noqa: PT012  # the server ends the block
        async with serving(handler, seed=seed, max_in_flight=MANY + 1) as net:
            waiting = [net.connect() for _ in range(MANY)]
            holder, other = net.connect(), net.connect()
            for client in waiting:
                client.send(b"wait")
            if own_task:
                holder.send(b"wait and hold")
                await worker.log.wait("started wait and hold")
            await worker.log.wait("started wait", MANY)
            await wait_all_tasks_blocked()
            other.send(b"exit")
            await wait_all_tasks_blocked()
            holder.crash()  # its slot goes to the other one's request, in a nursery
            await trio.sleep_forever()
    await check_told(worker, waiting)


# The start of the server, and batches in which there is nothing for it.


async def test_a_server_that_is_cancelled_while_it_starts_ends(autojump_clock: MockClock) -> None:
    async with trioreq.testing.open_memory_network() as net:
        with trio.fail_after(1), trio.CancelScope() as scope:
            scope.cancel()
            await trioreq.serve(echo, net)
        assert scope.cancelled_caught


async def test_a_server_whose_sibling_fails_while_it_starts_ends(
    autojump_clock: MockClock,
) -> None:
    async def fail() -> None:
        raise LookupError

    async with trioreq.testing.open_memory_network() as net:
        with trio.fail_after(1), pytest.raises(ExceptionGroup):  # noqa: PT012  # its block ends so
            async with trio.open_nursery() as nursery:
                nursery.start_soon(fail)
                await nursery.start(trioreq.serve, echo, net)


async def test_g6_empty_packs_do_not_hide_what_comes_behind_them(
    autojump_clock: MockClock,
) -> None:
    async with serving(echo) as net:
        client = net.connect(socket_type="DEALER")
        client.send(b"first")
        await client.receive()
        for _ in range(BATCH // MESSAGE + 1):
            client.send_raw(packs.HEAD.pack(packs.MAGIC, 0, 0))
        client.send(b"behind them")
        with trio.fail_after(1):
            assert await client.receive() == [b"behind them"]


async def test_g6_messages_of_closed_connections_are_read_few_at_a_time(
    autojump_clock: MockClock,
) -> None:
    async with serving(echo) as net:
        client = net.connect(socket_type="DEALER", routing_id=b"explicit")
        client.send(b"first")
        await client.receive()
        client.connection.keep_unflushed()
        in_a_row = IN_A_ROW // MESSAGE
        for _ in range(4 * in_a_row):
            client.send(b"x")
        client.crash()
        await wait_all_tasks_blocked()
        client.connection.flush()
        most = 0
        while (before := net.server.statistics().unattributed) < 4 * in_a_row:
            await trio.lowlevel.checkpoint()
            most = max(most, net.server.statistics().unattributed - before)
        assert most <= 3 * in_a_row


class Passes(trio.abc.Instrument):
    """Counts the passes of the event loop, and the most messages that are read in one."""

    def __init__(self, read: Callable[[], int]) -> None:
        self._read = read
        self._before = 0
        self.most = 0

    def before_io_wait(self, timeout: float) -> None:
        self.most = max(self.most, self._read() - self._before)
        self._before = self._read()


@pytest.mark.parametrize(
    "frames",
    [
        (packs.HEAD.pack(packs.MAGIC, 0, 0),),  # no message
        (b"", *[b"x"] * 10_000),
        (bytes(100_000), b"", b"x"),
    ],
)
async def test_g6_other_tasks_run_however_messages_that_arrive_look(
    autojump_clock: MockClock, frames: tuple[bytes, ...]
) -> None:
    async with serving(echo) as net:
        client = net.connect(socket_type="DEALER")
        client.send(b"first")
        await client.receive()
        router = net.server._router
        for _ in range(300):
            client.send_raw(*frames)
        passes = Passes(lambda: router.weight)
        trio.lowlevel.add_instrument(passes)
        await wait_all_tasks_blocked()
        trio.lowlevel.remove_instrument(passes)
        assert router.weight > 300 * MESSAGE
        assert passes.most <= IN_A_ROW + BATCH + MESSAGE * len(frames) + sum(map(len, frames))


async def test_late_messages_that_are_not_requests_are_not_counted_as_requests(
    autojump_clock: MockClock,
) -> None:
    async with serving(echo) as net:
        client = net.connect(socket_type="DEALER", routing_id=b"explicit")
        client.send(b"first")
        await client.receive()
        client.connection.keep_unflushed()
        for kind in (CANCEL, CREDIT, REQUEST):
            client.send_raw(Header(kind, 7).pack(), b"", b"x")
        two = [(Header(kind, 8).pack(), b"", b"x") for kind in (REQUEST, CANCEL, REQUEST)]
        (pack,) = packs.pack(two, packs.MAX_SIZE, 0)
        client.send_raw(*pack)
        client.crash()
        await wait_all_tasks_blocked()
        client.connection.flush()
        await wait_all_tasks_blocked()
        statistics = net.server.statistics()
        assert (statistics.unattributed, statistics.never_started) == (3, 3)
        assert statistics.requests == 4


@pytest.fixture
def one_hold(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let only one connection be held at a time, as if no descriptor were free."""
    held = 0
    hold, close = MemorySockets.hold, HeldConnection.close

    def holding(self: MemorySockets, descriptor: int) -> HeldConnection | None:
        nonlocal held
        held += 1
        return hold(self, descriptor) if held == 1 else None

    def closing(self: HeldConnection) -> None:
        nonlocal held
        held -= 1
        close(self)

    monkeypatch.setattr(HeldConnections, "keep", lambda _self, _connection, hold: hold.close())
    monkeypatch.setattr(MemorySockets, "hold", holding)
    monkeypatch.setattr(HeldConnection, "close", closing)


@pytest.mark.usefixtures("one_hold")
async def test_an_eviction_and_a_limit_hold_one_connection_at_a_time(
    autojump_clock: MockClock,
) -> None:
    """A connection that comes while another one is evicted is counted."""
    async with serving(echo, max_connections=2) as net:
        first, second = net.connect(), net.connect()
        assert await first.request(b"x") == [b"x"]
        await wait_all_tasks_blocked()
        sockets = sockets_of(net)
        hold = sockets.hold
        others: list[MemoryClient] = []

        def hold_and_connect(descriptor: int) -> HeldConnection | None:
            del sockets.__dict__["hold"]
            others.extend([net.connect(), net.connect()])
            return hold(descriptor)

        sockets.__dict__["hold"] = hold_and_connect
        assert await net.server.evict(net.server.clients()[0].id)
        await wait_all_tasks_blocked()
        stats = net.server.statistics()
        assert (stats.connections, stats.refused) == (2, 1)
        ended = [client.connection.ended for client in (first, second, *others)]
        assert ended == [True, False, False, True]


@pytest.mark.usefixtures("one_hold")
async def test_limits_hold_one_connection_at_a_time(autojump_clock: MockClock) -> None:
    """In a burst each needs a descriptor, and there may be few."""
    async with serving(echo, max_connections=2) as net:
        for _ in range(10):
            net.connect()
        await wait_all_tasks_blocked()
        stats = net.server.statistics()
        assert (stats.connections, stats.refused) == (2, 8)
