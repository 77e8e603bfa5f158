"""A client whose frame is too large is named in the log, and no other is. Real sockets.

libzmq reports nothing of such a frame. What makes the tests deterministic: a peer that has been
disconnected has left the server's statistics, and the log line comes before that.
"""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import pytest
import trio
import zmq
from support.handlers import Worker
from support.serving import serving, until

import trioreq
from harness.clients import ClientProcess, Clients
from harness.zmtp import GREETING, RawPeer, frame, message, ready
from trioreq._protocol.handshakes import Failure

pytestmark = pytest.mark.slow

SIZE = 10_000
SERVER, ALICE = trioreq.KeyPair.generate(), trioreq.KeyPair.generate()


async def anybody(applicant: trioreq.Applicant) -> str:
    await trio.lowlevel.checkpoint()
    return "somebody"


SERVERS: dict[str, dict[str, Any]] = {
    "NULL": {},
    "PLAIN": {"plain_insecure": True, "admit": anybody},
    "CURVE": {"curve": trioreq.CurveServer(SERVER, {ALICE.public: "alice"})},
}
STOCK: dict[str, dict[str, Any]] = {
    "NULL": {},
    "PLAIN": {"PLAIN_USERNAME": b"me", "PLAIN_PASSWORD": b"word"},
    "CURVE": {
        "CURVE_SERVERKEY": SERVER.public.encode(),
        "CURVE_PUBLICKEY": ALICE.public.encode(),
        "CURVE_SECRETKEY": ALICE.secret.encode(),
    },
}


def lines(caplog: pytest.LogCaptureFixture) -> list[str]:
    """What the log says of connections that were cut off."""
    return [text for text in caplog.messages if "ended by libzmq" in text]


ON_TCP = (
    "connection 1{} from 127.0.0.1 was ended by libzmq in the middle of a message: is a frame "
    f"larger than max_message_size ({SIZE} bytes)?"
)
ON_IPC = (  # where the kernel does not say when something has come
    f"connection 1{{}} from uid {os.getuid()} was ended by libzmq: is a frame larger than "
    f"max_message_size ({SIZE} bytes), or has its client not answered heartbeats?"
)


@pytest.mark.parametrize("mechanism", SERVERS)
@pytest.mark.parametrize("excess", [1, 10 * SIZE, 3_000_000])
@pytest.mark.parametrize("before", [0, 1], ids=["at once", "after a request"])
async def test_a_client_that_sends_a_frame_that_is_too_large_is_logged(
    mechanism: str,
    excess: int,
    before: int,
    addr: str,
    clients: Clients,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Its client waits forever, and libzmq reports nothing."""
    async with serving(Worker(), addr, max_message_size=SIZE, **SERVERS[mechanism]) as server:
        client = clients.connect(
            server.endpoints[0], zmq.DEALER, RECONNECT_IVL=-1, **STOCK[mechanism]
        )
        for _ in range(before):
            await client.send(b"", b"echo")
            assert await client.receive() == [b"", b"re:echo"]
        await client.send(b"", bytes(SIZE + excess))
        await until(lambda: server._router._table.epoch == 2)
        names = {"NULL": "", "PLAIN": " of somebody", "CURVE": " of alice"}
        name = names[mechanism] if before else ""
        assert lines(caplog) == [(ON_TCP if addr.startswith("tcp") else ON_IPC).format(name)]
        assert server.statistics().connections == 0
        assert server.statistics().handshakes_failed == 0


async def test_on_ipc_there_is_one_cause_without_heartbeats(
    tmp_path: Path, clients: Clients, caplog: pytest.LogCaptureFixture
) -> None:
    address = f"ipc://{tmp_path}/socket"
    async with serving(Worker(), address, max_message_size=SIZE, heartbeat=None) as server:
        client = clients.connect(server.endpoints[0], RECONNECT_IVL=-1)
        await client.send(bytes(SIZE + 1))
        await until(lambda: server._router._table.epoch == 2)
    assert lines(caplog) == [ON_TCP.format("").replace("127.0.0.1", f"uid {os.getuid()}")]


async def test_a_frame_of_open_client_is_logged_too(caplog: pytest.LogCaptureFixture) -> None:
    async with (
        serving(Worker(), max_message_size=SIZE) as server,
        trioreq.open_client(server.endpoints[0]) as client,
    ):
        with pytest.raises(trioreq.ConnectionLost):
            await client.request(bytes(SIZE + 1))
        await until(lambda: bool(lines(caplog)))


async def test_such_lines_are_bounded(caplog: pytest.LogCaptureFixture) -> None:
    async with serving(Worker(), max_message_size=SIZE) as server:
        for number in range(50):
            with RawPeer(server.endpoints[0]) as peer:
                await trio.to_thread.run_sync(peer.shake_hands)
                peer.send(frame(bytes(SIZE + 1)))
                await trio.to_thread.run_sync(peer.read_end)
                await until(lambda gone=2 * number + 2: server._router._table.epoch >= gone)  # type: ignore[misc]
    assert 0 < len(lines(caplog)) < 25


async def test_a_client_that_is_killed_while_it_sends_is_not(
    addr: str, peer: ClientProcess, caplog: pytest.LogCaptureFixture
) -> None:
    """A frame that is permitted, of which a part has come."""
    worker = Worker()
    async with serving(worker, addr) as server:
        await peer.connect(server.endpoints[0], "DEALER")
        await peer.send("", "wait")
        await worker.log.wait("started wait")
        with RawPeer(server.endpoints[0]) as partial:
            await trio.to_thread.run_sync(partial.shake_hands)
            partial.send(message(b"", bytes(2**20))[:-1])
        await until(lambda: server.statistics().connections == 1)
        with RawPeer(server.endpoints[0]) as partial:
            await trio.to_thread.run_sync(partial.shake_hands)
            partial.send(message(b"", bytes(2**20))[:-1])
            partial.reset()
        await until(lambda: server.statistics().connections == 1)
        await peer.send("", "x" * 10_000_000)
        peer.kill()
        await until(lambda: server.statistics().connections == 0)
    assert not lines(caplog)


@pytest.mark.parametrize(
    "said",
    [
        b"GET / HTTP/1.1\r\n" + bytes(20_000),
        GREETING.replace(b"NULL", b"OTHR") + bytes(20_000),
        GREETING + frame(b"\x05HELLO" + bytes(50), 4),
        GREETING + frame(bytes(SIZE + 1)),
    ],
    ids=["http", "mechanism", "command", "frame"],
)
async def test_a_failed_handshake_is_not(
    said: bytes, addr: str, caplog: pytest.LogCaptureFixture
) -> None:
    async with serving(Worker(), addr, max_message_size=SIZE) as server:
        with RawPeer(server.endpoints[0]) as peer:
            await until(lambda: server.statistics().connections == 1)  # it is held from now on
            peer.send(said)
            await trio.to_thread.run_sync(peer.read_end)
        await until(lambda: server._router._table.epoch == 2)
    assert not lines(caplog)


@pytest.mark.parametrize(
    ("kind", "routing_id"),
    [(b"PUSH", b""), (b"DEALER", b"x" * SIZE)],
    ids=["type", "routing id"],
)
async def test_a_handshake_that_fails_late_is_logged_once(
    kind: bytes, routing_id: bytes, addr: str, caplog: pytest.LogCaptureFixture
) -> None:
    """The peer has all that the server sends in a handshake, which so looks as if it were over."""
    async with serving(Worker(), addr, max_message_size=SIZE) as server:
        with RawPeer(server.endpoints[0]) as peer:
            peer.send(GREETING)
            await trio.to_thread.run_sync(peer.enter)
            peer.send(ready([(b"Socket-Type", kind), (b"Identity", routing_id)]))
            await trio.to_thread.run_sync(peer.read_end)
            await until(lambda: server._router._table.epoch == 2)
        assert server.statistics().handshakes_failed == 1
    (line,) = [text for text in caplog.messages if "failed:" in text]
    assert line.endswith(Failure.FOREIGN.value)
    assert not lines(caplog)


@pytest.mark.parametrize("mechanism", SERVERS)
async def test_a_refused_connection_is_not_logged(
    mechanism: str, clients: Clients, caplog: pytest.LogCaptureFixture
) -> None:
    async def nobody(_: trioreq.Applicant) -> None:
        await trio.lowlevel.checkpoint()

    options = SERVERS[mechanism] | {"admit": nobody}
    if mechanism == "CURVE":
        options["curve"] = trioreq.CurveServer(SERVER)
    async with serving(Worker(), max_message_size=SIZE, **options) as server:
        client = clients.connect(server.endpoints[0], RECONNECT_IVL=-1, **STOCK[mechanism])
        await client.send(b"echo")
        await until(lambda: server._router._table.epoch == 2)
    assert not lines(caplog)


async def test_a_client_that_falls_silent_is_not(
    addr: str, peer: ClientProcess, caplog: pytest.LogCaptureFixture
) -> None:
    """But on ipc, where the line names both causes."""
    async with serving(Worker(), addr, heartbeat=0.5, max_message_size=SIZE) as server:
        await peer.connect(server.endpoints[0])
        await peer.send("echo")
        assert await peer.receive() == ["re:echo"]
        os.kill(peer.pid, signal.SIGSTOP)
        await until(lambda: server._router._table.epoch == 2)
    assert lines(caplog) == ([] if addr.startswith("tcp") else [ON_IPC.format("")])


async def test_a_client_that_is_evicted_is_not(
    clients: Clients, caplog: pytest.LogCaptureFixture
) -> None:
    async with serving(Worker()) as server:
        client = clients.connect(server.endpoints[0], RECONNECT_IVL=-1)
        assert await client.request(b"echo") == [b"re:echo"]
        [connection] = server._router.connections
        server._router.evict(connection, "a test evicts it")
        await until(lambda: server._router._table.epoch == 2)
    assert not lines(caplog)
