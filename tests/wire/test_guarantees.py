"""The guarantees, where only real sockets can show them; `tests/contract` has the rest.

Time is real. What makes it deterministic: a test kills or stops a client only after its handler
has said that it runs, and waits for what the handler or the server says next.
"""

from __future__ import annotations

import ctypes
import socket
import threading
import time
from contextlib import ExitStack

import psutil
import pytest
import trio
import zmq
from support.handlers import ThreadWorker, Worker
from support.serving import poll, serving, until

import trioreq
from harness.clients import ClientProcess, Clients, ClientSocket, open_client_process
from harness.zmtp import LIMIT, RawPeer, message
from trioreq._server.reader import CATCH_UP
from trioreq._server.threads import ThreadPool
from trioreq._transport import server_sockets
from trioreq._transport.router import BATCH, MESSAGE
from trioreq._transport.routing_ids import PROBE

pytestmark = pytest.mark.slow


def gone(server: trioreq.Server) -> bool:
    return server.statistics().connections == 0


async def test_g2_a_late_message_is_not_taken_for_the_next_holders_of_its_descriptor(
    addr: str,
) -> None:
    worker = Worker()
    async with serving(worker, addr) as server:
        router = server._router
        dead = RawPeer(server.endpoints[0])
        await trio.to_thread.run_sync(dead.shake_hands)
        (descriptor,) = router._table._holders
        # From here the event loop is blocked: the message waits in the ROUTER, unread.
        dead.send(message(b"", b"echo"))
        dead.close()
        assert poll(router._monitor)
        with RawPeer(server.endpoints[0]) as heir:
            assert heir.socket.recv(1)  # libzmq has accepted, and the monitor has the event
            router.read_monitor()
            assert list(router._table._holders) == [descriptor]
            await until(lambda: server.statistics().requests == 1)
            stats = server.statistics()
            assert (stats.unattributed, stats.never_started) == (1, 1)
    assert not worker.log.entries


async def test_g2_the_holder_of_the_routing_id_is_checked_when_a_reply_is_handed_over(
    addr: str, clients: Clients, handed_over: list[bytes]
) -> None:
    """The old client has disconnected and the new one connected while the event loop was busy.

    Whether the ZAP handler or the reader is next is chance: so it is done a number of times.
    """

    async def handler(request: trioreq.Request) -> bytes:
        if request.body == b"old":
            await trio.lowlevel.checkpoint()
            old.close()
            heirs.append(clients.connect(endpoint, zmq.DEALER, b"the-same-id"))
            # The ZAP handler cannot answer while the loop is busy, so the heir comes no further
            # than its handshake: but the old one's end waits in the monitor, unread.
            time.sleep(0.05)  # noqa: ASYNC251
        return b"re:" + request.body

    heirs: list[ClientSocket] = []
    async with serving(handler, addr) as server:
        (endpoint,) = server.endpoints
        for number in range(1, 16):
            old = clients.connect(endpoint, zmq.DEALER, b"the-same-id")
            await old.send(b"", b"old")
            await until(lambda: len(heirs) == number and server.statistics().running == 0)  # noqa: B023
            assert server.statistics().replies_dropped == number
            with trio.fail_after(5):
                assert await heirs[-1].request(b"", b"new") == [b"", b"re:new"]
            heirs[-1].close()
            await until(lambda: gone(server))
    assert [frame for frame in handed_over if (frame,) != PROBE] == [b"re:new"] * 15


async def test_g2_a_client_that_reconnects_under_its_own_routing_id_is_heard(addr: str) -> None:
    """Its last message on the old connection is unread when the new one asks to be accepted."""
    async with serving(Worker(), addr) as server:
        router = server._router
        old = RawPeer(server.endpoints[0])
        await trio.to_thread.run_sync(old.shake_hands, b"DEALER", b"the-same-id")
        old.send(message(b"", b"echo"))
        await until(lambda: server.statistics().replied == 1)
        # From here the event loop is blocked.
        old.send(message(b"", b"last words"))
        old.close()
        assert poll(router._monitor)
        with RawPeer(server.endpoints[0]) as new:
            new.ask(b"DEALER", b"the-same-id")
            assert poll(server._admission._zap._socket)
            while not server._admission.answer():
                time.sleep(0.001)  # noqa: ASYNC251  # no other task is to run, only libzmq's thread
            new.enter()  # else libzmq has it wait in line
            new.send(message(b"", b"echo"))
            await until(lambda: server.statistics().replied == 2)
        assert server.statistics().never_started == 1


async def test_g3_requests_still_unread_when_their_client_is_killed_are_never_started(
    addr: str, peer: ClientProcess
) -> None:
    worker = Worker()
    async with serving(worker, addr) as server:
        await peer.connect(server.endpoints[0], "DEALER")
        await peer.send("", "echo first")
        assert await peer.receive() == ["", "re:echo first"]
        # From here the event loop is blocked, until libzmq has seen the end of the client.
        for _ in range(20):
            peer.send_blocking("", "echo")
        peer.kill_blocking()
        router = server._router
        assert poll(router._monitor)
        await until(lambda: gone(server) and not router._socket.readable())
        stats = server.statistics()
        assert stats.replied == 1
        assert stats.never_started == stats.requests - 1 > 0  # the last may die with the client
        assert "started echo" not in worker.log.entries


async def test_g5_memory_and_descriptors_are_given_back(
    addr: str, clients: Clients, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a client that never reads had waiting is freed when it goes."""

    async def handler(request: trioreq.Request) -> bytes:
        return request.body * 2**20

    process = psutil.Process()
    monkeypatch.setattr(server_sockets, "IN_LIBZMQ", 20)
    async with serving(handler, addr, send_queue=200, heartbeat=None) as server:
        warm = clients.connect(server.endpoints[0])
        await warm.request(b"x")
        descriptors = process.num_fds()

        def memory() -> int:
            ctypes.CDLL(None).malloc_trim(0)  # what is free already, and C has kept, is not held
            return int(process.memory_info().rss)

        resident = memory()
        async with open_client_process() as peer:
            await peer.connect(server.endpoints[0], "DEALER", RCVHWM=1)
            for _ in range(150):
                await peer.send("", "x")
            await until(lambda: server.statistics().replied == 151)
            assert server.statistics().replies_waiting > 50
            held = memory() - resident
            assert held < 150 * 2**20
            assert held > 50 * 2**20
        await until(lambda: server.statistics().connections == 1)
        while memory() - resident > 20 * 2**20:
            await warm.request(b"x")  # the ROUTER handles its commands, and frees
        assert process.num_fds() <= descriptors
        stats = server.statistics()
        assert stats.replies_sent + stats.replies_dropped == stats.replied


async def test_g6_connections_are_accepted_however_long_the_monitor_is_not_read() -> None:
    async with serving(Worker()) as server:
        host, _, port = server.endpoints[0].removeprefix("tcp://").partition(":")
        for _ in range(3000):  # the event loop is blocked; libzmq's I/O thread must not be
            with socket.create_connection((host, int(port)), timeout=5) as client:
                assert client.recv(1) == b"\xff"  # the greeting, which the I/O thread sends
        await until(lambda: gone(server))


async def test_g6_no_client_delays_another(
    addr: str, peer: ClientProcess, clients: Clients
) -> None:
    """One floods and never reads, one is stopped, one fills all turns: others are answered."""
    worker = Worker()
    options = {"max_in_flight": 4, "max_queued_per_client": 2, "send_queue": 5000}
    async with serving(worker, addr, **options) as server:
        flood = clients.connect(server.endpoints[0], zmq.DEALER, RCVHWM=1, SNDHWM=100_000)
        for _ in range(5000):  # more than libzmq would hold, were they not read
            await flood.send(b"", b"wait")
        await worker.log.wait("started wait", 4)
        await until(lambda: server.statistics().overloaded == 5000 - 6)
        await peer.connect(server.endpoints[0])
        await peer.send("wait")
        await until(lambda: server.statistics().waiting == 3)
        peer.kill()  # is seen, although all turns are taken
        await until(lambda: server.statistics().never_started == 1)
        flood.close()  # is seen, although it had flooded
        await until(lambda: server.statistics().cancelled_by_disconnect == 4)
        client = clients.connect(server.endpoints[0])
        assert await client.request(b"echo") == [b"re:echo"]


async def test_g6_a_reply_that_is_not_accepted_does_not_put_the_reader_to_sleep(
    addr: str, clients: Clients, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A send that fails looks at the socket too, and may eat the edge of what has come."""

    async def handler(request: trioreq.Request) -> bytes:
        if request.body == b"last":
            await until(lambda: server._router._socket._asleep)
            await other.send(b"echo")
            time.sleep(0.1)  # noqa: ASYNC251  # it arrives while the event loop is blocked
        return b"re:" + request.body.ljust(2**20)

    monkeypatch.setattr(server_sockets, "IN_LIBZMQ", 1)
    async with serving(handler, addr, heartbeat=None) as server:
        other = clients.connect(server.endpoints[0])
        await other.request(b"echo")
        full = clients.connect(server.endpoints[0], zmq.DEALER, RCVHWM=1, RCVBUF=4096)
        while server.statistics().replies_waiting < 10:
            requests = server.statistics().requests
            await full.send(b"", b"fill")
            await until(lambda: server.statistics().requests > requests)  # noqa: B023
        await full.send(b"", b"last")
        with trio.fail_after(5):
            assert (await other.receive())[0].startswith(b"re:echo")
        assert server.statistics().replies_waiting > 10


async def test_g6_a_reply_does_not_wait_for_what_its_thread_does_next() -> None:
    """Nor for another thread, if none is free to say that it is ready."""
    slow = ThreadWorker()
    begun = threading.Event()

    def handle(request: trioreq.Request) -> bytes:
        if request.body == b"quick":
            assert begun.wait(LIMIT)  # the other thread is taken
            return b"done"
        begun.set()
        return slow(request)

    async with serving(handle, "tcp://127.0.0.1:0", workers=2) as server:

        def ask() -> None:
            with RawPeer(server.endpoints[0]) as peer:
                peer.shake_hands()
                bodies = (b"quick", b"wait a", b"wait b")
                peer.send(b"".join(message(b"", body) for body in bodies))
                assert [peer.read_frame(), peer.read_frame()] == [b"", b"done"]

        await trio.to_thread.run_sync(ask)
        await slow.log.wait("cancelled wait b: disconnected")


async def test_g6_what_admission_leaves_in_the_router_is_read(addr: str) -> None:
    """It reads the ROUTER before it accepts a connection, and not without end."""
    many = BATCH // MESSAGE * CATCH_UP // 4
    async with serving(Worker(), addr, max_queued_per_client=8 * many) as server:
        router = server._router
        with ExitStack() as stack:
            peers = [stack.enter_context(RawPeer(server.endpoints[0])) for _ in range(8)]
            for peer in peers:
                await trio.to_thread.run_sync(peer.shake_hands)
                peer.send(message(b"", b"echo"))
            await until(lambda: server.statistics().replied == 8)
            await trio.testing.wait_all_tasks_blocked(0.01)  # the reader is not about to look
            assert router._socket._asleep
            # From here the event loop is blocked.
            for peer in peers:
                assert [peer.read_frame(), peer.read_frame()] == [b"", b"re:echo"]
                peer.send(message(b"", b"wait") * many)  # a reply would be a look too
                peer.wait_read()
            server._catch_up()  # as when a new connection asks just now
            with trio.fail_after(10):
                await until(lambda: server.statistics().requests == 8 * (many + 1))


async def test_ipc_reports_the_user_and_process_of_a_client(
    peer: ClientProcess, tmp_path: object
) -> None:
    seen: list[trioreq.Peer] = []

    async def handler(request: trioreq.Request) -> bytes:
        seen.append(request.client)
        return b""

    async with serving(handler, f"ipc://{tmp_path}/socket") as server:
        await peer.connect(server.endpoints[0])
        await peer.send("x")
        await peer.receive()
    assert seen[0].pid == peer.pid
    assert seen[0].uid == psutil.Process(peer.pid).uids().real
    assert seen[0].socket_type == "REQ"


async def test_g6_messages_that_arrive_while_requests_are_answered_are_read(
    addr: str, clients: Clients, monkeypatch: pytest.MonkeyPatch
) -> None:
    def handler(request: trioreq.Request) -> bytes:
        return request.body

    late: list[object] = []
    prepare_to_sleep = ThreadPool._prepare_to_sleep
    async with serving(handler, addr) as server:
        router = server._router
        # Two: to send and wait on one socket in the same thread would consume its own edge.
        client, other = (clients.connect(server.endpoints[0], zmq.DEALER) for _ in range(2))

        def spy(self: ThreadPool) -> bool:
            some = prepare_to_sleep(self)
            if not late and not router._socket._asleep:
                late.append(other.raw.send_multipart([b"", b"late"]))
                assert poll(router._socket)  # that eats the edge, as a send does
                return True
            return some

        for either in (client, other):
            assert (await either.request(b"", b"first"))[-1] == b"first"
        monkeypatch.setattr(ThreadPool, "_prepare_to_sleep", spy)
        # A malformed request is answered at once: no thread is at work that could wake the loop.
        assert (await client.request(b"no delimiter"))[1] == b"trioreq-error"
        with trio.fail_after(LIMIT):
            assert (await other.receive())[-1] == b"late"
