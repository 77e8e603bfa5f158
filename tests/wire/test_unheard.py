"""Connections that libzmq ignores, since another one has their routing id. Real sockets.

Time is real. What is waited for is what the server or a peer says, and the kernel's counts.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import trio
import zmq
from support.handlers import Worker
from support.serving import serving, until

import trioreq
from harness.zmtp import MORE, RawPeer, command, frame, message
from trioreq._protocol.unheard import SIZES
from trioreq._protocol.zap import Mechanism
from trioreq._transport.linux import KernelCounters

pytestmark = pytest.mark.slow

HEARTBEAT = 1.0  # seconds: a PING after half of it
KEYS = trioreq.KeyPair.generate()


async def count_frames(request: trioreq.Request) -> bytes:
    return b"%d" % len(request.frames)


async def admit_all(applicant: trioreq.Applicant) -> str:
    return ""


OPTIONS: dict[str, dict[str, Any]] = {
    "NULL": {},
    "PLAIN": {"plain_insecure": True, "admit": admit_all},
    "CURVE": {"curve": trioreq.CurveServer(KEYS, {KEYS.public: "user"})},
}


@pytest.fixture
def context() -> Iterator[zmq.Context[zmq.Socket[bytes]]]:
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    yield context
    context.destroy(linger=0)


def connect(
    context: zmq.Context[zmq.Socket[bytes]],
    server: trioreq.Server,
    mechanism: str,
    routing_id: bytes = b"the-same",
    **options: int,
) -> zmq.Socket[bytes]:
    peer = context.socket(zmq.DEALER)
    peer.linger = 0
    if routing_id:
        peer.identity = routing_id
    for name, value in options.items():
        setattr(peer, name, value)
    if mechanism == "PLAIN":
        peer.plain_username = peer.plain_password = b"user"
    if mechanism == "CURVE":
        peer.curve_serverkey = peer.curve_publickey = KEYS.public.encode()
        peer.curve_secretkey = KEYS.secret.encode()
    peer.connect(server.endpoints[0])
    return peer


async def ask(peer: zmq.Socket[bytes], body: bytes, timeout: float = 20) -> bytes | None:
    """The last frame of what comes back; None if nothing does."""
    peer.send_multipart([b"", body])
    if await trio.to_thread.run_sync(peer.poll, round(timeout * 1000)):
        return peer.recv_multipart()[-1]
    return None


@pytest.mark.parametrize("mechanism", SIZES)
async def test_the_second_connection_with_a_routing_id_in_use_is_evicted(
    mechanism: Mechanism,
    context: zmq.Context[zmq.Socket[bytes]],
    caplog: pytest.LogCaptureFixture,
) -> None:
    async with serving(Worker(), heartbeat=HEARTBEAT, **OPTIONS[mechanism]) as server:
        first = connect(context, server, mechanism)
        assert await ask(first, b"echo") == b"re:echo"
        second = connect(context, server, mechanism, reconnect_ivl=60_000)
        if mechanism == "PLAIN":  # its handshake must have been seen to end
            await until(lambda: server.statistics().connections == 2)
            *_, connection = server._router.connections
            await until(lambda: connection.silence is not None)
        second.send_multipart([b"", b"a request" * 10])
        await until(lambda: server.statistics().evicted == 1)
        assert server.statistics().connections == 1
        assert await ask(first, b"echo") == b"re:echo"
        first.close()
        second.close()
    (line,) = [r.getMessage() for r in caplog.records if "evicted" in r.getMessage()]
    assert line.startswith("evicted connection ")
    assert "another connection has the same routing id" in line


async def test_a_client_whose_line_was_cut_is_heard_when_its_old_connection_has_ended(
    context: zmq.Context[zmq.Socket[bytes]],
) -> None:
    """libzmq#778, libzmq#2019: the new connection is ignored permanently, and looks connected."""
    async with serving(Worker(), heartbeat=2 * HEARTBEAT) as server:
        with RawPeer(server.endpoints[0]) as cut:
            await trio.to_thread.run_sync(cut.shake_hands, b"DEALER", b"the-same")
            cut.send(message(b"", b"wait"))
            await until(lambda: server.statistics().running == 1)
            # From here it is silent: it answers no PING. It has connected again before that shows.
            again = connect(context, server, "NULL", reconnect_ivl=10)
            assert await ask(again, b"echo" * 20, timeout=1) is None
            await until(lambda: server.statistics().evicted == 1)
            assert server.statistics().cancelled_by_disconnect == 1  # the old one's request
            assert await ask(again, b"echo") == b"re:echo"
            again.close()
        assert server.statistics().evicted == 1


@pytest.mark.parametrize("heartbeat_ivl", [0, 50])
@pytest.mark.parametrize("mechanism", SIZES)
async def test_an_idle_connection_is_not_ended(
    mechanism: Mechanism, heartbeat_ivl: int, context: zmq.Context[zmq.Socket[bytes]]
) -> None:
    """Not under an id that is in use, and not with heartbeats of its own."""
    async with serving(Worker(), heartbeat=HEARTBEAT, **OPTIONS[mechanism]) as server:
        first = connect(context, server, mechanism)
        assert await ask(first, b"echo") == b"re:echo"
        idle = [
            connect(context, server, mechanism, name, heartbeat_ivl=heartbeat_ivl)
            for name in (b"the-same", b"another", b"")
        ]
        await until(lambda: server.statistics().connections == 4)
        until_then = trio.current_time() + 3
        while trio.current_time() < until_then:
            assert await ask(first, b"echo") == b"re:echo"
        assert server.statistics().evicted == 0
        for peer in idle[1:]:
            assert await ask(peer, b"echo") == b"re:echo"
        for peer in (first, *idle):
            peer.close()


async def test_a_first_message_that_takes_its_time_is_waited_for() -> None:
    """Its frames come slowly, and PINGs are answered between them."""
    part = frame(bytes(500), MORE)

    def send_slowly(peer: RawPeer) -> None:
        peer.send(frame(b"", MORE))
        for _ in range(6):  # for three times the patience
            assert peer.read_frame().startswith(b"\x04PING")
            peer.send(part + command(b"PONG") + part)
        peer.send(frame(b"last"))
        while peer.read_frame().startswith(b"\x04PING"):
            peer.send(command(b"PONG"))

    async with serving(count_frames, heartbeat=HEARTBEAT) as server:
        with RawPeer(server.endpoints[0]) as peer:
            await trio.to_thread.run_sync(peer.shake_hands, b"DEALER", b"slow")
            await trio.to_thread.run_sync(send_slowly, peer)
            assert await trio.to_thread.run_sync(peer.read_frame) == b"13"
        assert server.statistics().evicted == 0


@pytest.mark.parametrize("heartbeats", [False, True])
@pytest.mark.parametrize("kind", [zmq.REQ, zmq.DEALER])
@pytest.mark.parametrize("mechanism", SIZES)
async def test_handshakes_and_heartbeats_have_the_sizes_that_the_guard_assumes(
    mechanism: Mechanism, kind: int, heartbeats: bool, context: zmq.Context[zmq.Socket[bytes]]
) -> None:
    sizes = SIZES[mechanism]
    counters = KernelCounters()
    options = {"heartbeat": 0.8 if heartbeats else None} | OPTIONS[mechanism]
    async with serving(Worker(), **options) as server:
        peer = connect(context, server, mechanism, b"", heartbeat_ivl=0)
        await until(lambda: server.statistics().connections == 1)
        (connection,) = server._router.connections
        await until(lambda: connection not in server._router.handshakes)

        def traffic() -> tuple[int, int]:
            counted = None
            while counted is None:
                counted = counters.traffic(connection.descriptor)
            return counted

        received, sent = traffic()
        while sent < sizes.sent:
            received, sent = traffic()
        assert sent == sizes.sent
        assert received >= (sizes.complete or 0)
        if heartbeats:
            while sent == sizes.sent:
                later, sent = traffic()
            assert sent == sizes.sent + sizes.ping
            while later == received:
                later, _ = traffic()
            assert later == received + sizes.pong
        peer.close()
