"""One message without end: what libzmq does with it, and how a server ends it (docs/hostile.md).

Time is real. What is waited for is what the kernel says it has received, the end of a connection,
and the server's looks, which are counted.
"""

from __future__ import annotations

import ctypes
import logging
import os
import re
import socket
import struct
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import psutil
import pytest
import trio
from support.handlers import Worker
from support.serving import poll, serving, until
from support.stock import ACCEPTED, DISCONNECTED, Stock, open_stock, readable

import trioreq
from harness.clients import Clients
from harness.servers import open_server
from harness.zmtp import MORE, RawPeer, frame, message
from trioreq._protocol.message_guard import EXTRA
from trioreq._protocol.unheard import UnheardGuard
from trioreq._server import guard
from trioreq._server.guard import Guard
from trioreq._transport.linux import KernelCounters

MIB = 2**20
ENDLESS = {
    "frames of 1 MiB": frame(bytes(MIB), MORE),
    "frames of 1,000 bytes": frame(bytes(1000), MORE) * 1000,
    "empty frames": frame(b"", MORE) * 50_000,
}
BYTES_RECEIVED = 128  # its offset in the kernel's struct tcp_info


def memory() -> int:
    """What this process has, once C has given back what it can."""
    ctypes.CDLL(None).malloc_trim(0)
    return int(psutil.Process().memory_info().rss)


def received(descriptor: int) -> int:
    """How much the kernel has received on a connection."""
    with socket.socket(fileno=os.dup(descriptor)) as connection:
        info = connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 256)
    return int(struct.unpack_from("Q", info, BYTES_RECEIVED)[0])


def descriptor_of_the_only(stock: Stock) -> int:
    [descriptor] = [told for event, told in stock.events if event == ACCEPTED]
    return descriptor


@pytest.mark.slow
def test_libzmq_gathers_one_message_without_end_and_a_shutdown_gives_it_back() -> None:
    with open_stock(MAXMSGSIZE=MIB, RCVHWM=1) as stock, RawPeer(stock.endpoint) as peer:
        peer.ask()
        stock.serve_until(lambda: stock.answered == 1)
        peer.enter()
        before = memory()
        part = frame(bytes(MIB), MORE)
        for _ in range(64):
            peer.send(part)
        descriptor = descriptor_of_the_only(stock)
        stock.serve_until(lambda: received(descriptor) > 64 * MIB)
        stock.serve_until(lambda: memory() - before > 48 * MIB)  # the kernel may hold the rest
        assert stock.messages == []  # and it is not reported

        with socket.socket(fileno=os.dup(descriptor)) as connection:
            connection.shutdown(socket.SHUT_RDWR)
        stock.serve_until(lambda: stock.count(DISCONNECTED) == 1)
        stock.serve_until(lambda: not readable(stock.router) and memory() - before < 8 * MIB)
        assert stock.messages == []


@pytest.mark.slow
@pytest.mark.parametrize("kind", ENDLESS)
async def test_a_connection_that_sends_a_message_without_end_is_evicted(
    kind: str, clients: Clients
) -> None:
    with trio.fail_after(30):
        async with open_server(max_message_size=MIB, watchdog=None) as server:
            client = clients.connect(server.endpoint)
            assert await client.request(b"echo") == [b"echo"]
            before = (await server.state())["memory"]
            with RawPeer(server.endpoint) as peer:
                peer.shake_hands()
                ended = trio.Event()
                async with trio.open_nursery() as nursery:

                    @nursery.start_soon
                    async def flood() -> None:
                        sent = await trio.to_thread.run_sync(peer.send_until_end, ENDLESS[kind])
                        assert sent > MIB + EXTRA
                        ended.set()

                    while not ended.is_set():  # and others are served meanwhile
                        assert await client.request(b"echo") == [b"echo"]
            [(_, logged)] = [told for told in server.told if told[0] == "log"]
            assert re.fullmatch(evicted(MIB + EXTRA), logged)
            state = await server.until(lambda state: state["memory"] < before + 8 * MIB)
            assert state["statistics"][0]["evicted"] == 1
            assert state["statistics"][0]["connections"] == 1
            assert await client.request(b"echo") == [b"echo"]


def evicted(room: int) -> str:
    """The line of the log, as a regular expression."""
    return (
        rf"evicted connection \d+ from 127\.0\.0\.1: it has sent more than {room} bytes and no "
        r"complete message; if it is legitimate, raise max_message_size"
    )


class Looks:
    """The looks that a server has taken.

    Attributes:
        number: How many.
    """

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.number = 0
        look = Guard.look

        def counted(looking: Guard, *arguments: Any) -> None:
            look(looking, *arguments)
            self.number += 1

        monkeypatch.setattr(Guard, "look", counted)
        monkeypatch.setattr(guard, "PAUSE", 0.001)
        monkeypatch.setattr(guard, "BRIEF", 0.001)

    async def more(self, server: trioreq.Server) -> None:
        """Wait until it has checked all connections once more, or there are none."""
        enough = self.number + 2
        await until(lambda: self.number >= enough or not server.statistics().connections)


@pytest.fixture
def looks(monkeypatch: pytest.MonkeyPatch) -> Looks:
    return Looks(monkeypatch)


@pytest.mark.slow
async def test_a_connection_that_has_sent_a_request_and_then_trickles_is_evicted_too(
    looks: Looks, caplog: pytest.LogCaptureFixture
) -> None:
    worker = Worker()
    part = frame(bytes(32 * 1024), MORE)
    async with serving(worker, max_message_size=32 * 1024) as server:
        with RawPeer(server.endpoints[0]) as peer:
            await trio.to_thread.run_sync(peer.shake_hands)
            peer.send(message(b"", b"wait"))
            await worker.log.wait("started wait")
            parts = 0
            while server.statistics().connections:
                peer.send(part)
                parts += 1
                await looks.more(server)  # never more than one part between two of them
            assert len(part) * parts > EXTRA
            assert len(part) * parts < 2 * EXTRA
            await trio.to_thread.run_sync(peer.read_end)
        await worker.log.wait("cancelled wait: disconnected")
        assert server.statistics().evicted == 1
        assert server.statistics().cancelled_by_disconnect == 1
    [record] = [record for record in caplog.records if record.levelno == logging.WARNING]
    assert re.fullmatch(evicted(32 * 1024 + EXTRA), record.getMessage())


def honest(size: int, frames: int) -> bytes:
    """A message of as many bytes on the wire, to the byte, as one may have."""
    room = MIB + EXTRA - len(message(b"", *[bytes(size)] * frames))
    whole = message(b"", *[bytes(size)] * frames, bytes(room - (9 if room > 300 else 2)))
    assert len(whole) == MIB + EXTRA
    return whole


def send_often(peer: RawPeer, data: bytes, times: int) -> None:
    for _ in range(times):
        peer.send(data)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("one", "times"),
    [
        (message(b"", b"x"), 200_000),
        (honest(1000, 1500), 300),
        (honest(MIB - 1000, 1), 1500),  # more than 2 GiB
    ],
    ids=["small", "many frames", "large"],
)
async def test_a_connection_that_sends_whole_messages_is_never_evicted(
    one: bytes, times: int, looks: Looks, clients: Clients
) -> None:
    """Also if the loop stands still meanwhile, and with looks all the time."""

    async def handler(request: trioreq.Request) -> bytes:
        if request.body == b"block":
            time.sleep(1)  # noqa: ASYNC251  # this is the point
        return b""

    options: dict[str, Any] = {
        "max_message_size": MIB,
        "max_queued_per_client": 10**6,
        "send_queue": 10**6,  # the peer does not read its replies
        "stall_timeout": None,
        "watchdog": None,
    }
    async with serving(handler, **options) as server:
        client = clients.connect(server.endpoints[0])
        with RawPeer(server.endpoints[0]) as peer:
            await trio.to_thread.run_sync(peer.shake_hands)
            async with trio.open_nursery() as nursery:
                nursery.start_soon(partial(trio.to_thread.run_sync, send_often, peer, one, times))
                await until(lambda: server.statistics().requests > times // 10)
                await client.send(b"block")
            await until(lambda: server.statistics().requests == times + 1)
            await looks.more(server)  # a fast machine may have read everything before the first
            assert server.statistics().evicted == 0
            assert server.statistics().connections == 2


async def test_messages_that_have_arrived_are_read_before_any_eviction() -> None:
    """The loop does not turn from here to the last look, so nothing is read in between."""
    async with serving(Worker(), max_message_size=1000) as server:
        router, counters = server._router, KernelCounters()
        looking = Guard(router, counters, UnheardGuard("NULL", 10, 15), server._catch_up)
        with RawPeer(server.endpoints[0]) as peer:
            await trio.to_thread.run_sync(peer.shake_hands)
            [connection] = router.connections
            handshake, _ = counters.read_by_owner(connection.descriptor)
            one = message(b"", *[bytes(1000)] * 300)
            for sent in range(1, 5):  # watched, beyond the room with the second more, and on
                peer.send(one)
                end = time.monotonic() + 5
                while counters.read_by_owner(connection.descriptor)[0] < handshake + sent * len(
                    one
                ):
                    assert time.monotonic() < end
                looking.look([connection])
                assert (connection in router.guard.watched) is (sent < 4)
            assert server.statistics().evicted == 0
            assert server.statistics().connections == 1
            await until(lambda: server.statistics().requests == 4)


async def test_a_descriptor_that_is_another_ones_by_now_is_left_alone(
    looks: Looks, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It disconnects just before the eviction, and the next client has its descriptor."""
    async with serving(Worker(), max_message_size=1000) as server:
        (endpoint,) = server.endpoints
        router = server._router
        hold = router._sockets.hold
        held: list[int] = []
        peer = RawPeer(endpoint)
        newcomers: list[RawPeer] = []

        def hold_late(descriptor: int) -> Any:
            monkeypatch.setattr(router._sockets, "hold", hold)
            peer.close()
            assert poll(router._monitor)
            newcomers.append(RawPeer(endpoint))
            newcomers[0].ask()
            assert poll(router._sockets.zap)
            held.append(descriptor)
            return hold(descriptor)

        await trio.to_thread.run_sync(peer.shake_hands)
        await until(lambda: [one.address for one in router.connections] == ["127.0.0.1"])
        monkeypatch.setattr(router._sockets, "hold", hold_late)
        while not held:
            peer.send(frame(bytes(1000), MORE) * 50)
            await looks.more(server)
        with newcomers[0] as newcomer:
            router._sockets.zap.nudge()  # the poll above has eaten its edge
            await trio.to_thread.run_sync(newcomer.enter)
            newcomer.send(message(b"", b"echo"))
            assert await trio.to_thread.run_sync(newcomer.read_frame) == b""
            assert await trio.to_thread.run_sync(newcomer.read_frame) == b"re:echo"
            assert [one.descriptor for one in router.connections] == held  # the same one
            assert server.statistics().evicted == 0
            assert server.statistics().connections == 1


async def test_on_ipc_endless_messages_are_not_detected(looks: Looks, tmp_path: Path) -> None:
    """What is promised for tcp is not for ipc: the kernel does not count the bytes there."""
    async with serving(Worker(), f"ipc://{tmp_path}/x", max_message_size=1000) as server:
        with RawPeer(server.endpoints[0]) as peer:
            await trio.to_thread.run_sync(peer.shake_hands)
            for _ in range(100):
                peer.send(frame(bytes(1000), MORE) * 50)
                await looks.more(server)
            peer.send(frame(b""))  # it does end, after 5 MB
            await until(lambda: server.statistics().requests == 1)
            assert server.statistics().evicted == 0


@pytest.fixture
def pair() -> Iterator[tuple[socket.socket, socket.socket]]:
    with (
        socket.create_server(("127.0.0.1", 0)) as listener,
        socket.create_connection(listener.getsockname()) as near,
    ):
        far, _ = listener.accept()
        with far:
            yield near, far


def test_the_kernel_counts_bytes_received_and_bytes_read(
    pair: tuple[socket.socket, socket.socket],
) -> None:
    near, far = pair
    counters = KernelCounters()
    assert (counters.received(far.fileno()), counters.read_by_owner(far.fileno())) == (0, (0, 0))
    near.sendall(bytes(1000))
    assert len(far.recv(600)) == 600
    far.recv(400, socket.MSG_PEEK | socket.MSG_WAITALL)
    assert (counters.received(far.fileno()), counters.read_by_owner(far.fileno())) == (
        1000,
        (600, 600),
    )


def test_where_the_kernel_counts_nothing_it_is_0() -> None:
    counters = KernelCounters()
    near, far = socket.socketpair()
    with near, far:
        near.sendall(b"x")
        descriptor = far.fileno()
        assert counters.received(descriptor) == 0
    assert counters.received(descriptor) == 0  # it is closed
    assert counters.read_by_owner(descriptor) == (0, 0)


def test_the_kernel_counts_the_memory() -> None:
    assert abs(KernelCounters().memory() - psutil.Process().memory_info().rss) < 2 * MIB
