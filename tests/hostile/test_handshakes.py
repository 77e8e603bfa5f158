"""Peers that stop in the middle of their handshake, and frames that claim to be huge.

Time is real. What is waited for is the other side's end of a connection.
"""

from __future__ import annotations

import psutil
import pytest
import trio
from support.handlers import Worker
from support.serving import serving, until

from harness.clients import Clients
from harness.servers import open_server
from harness.zmtp import GREETING, LONG, SIGNATURE, RawPeer, command, frame, ready
from trioreq._transport import server_sockets

READY = ready([(b"Socket-Type", b"DEALER")])
STAGES = [
    b"",
    SIGNATURE[:1],
    SIGNATURE,
    SIGNATURE + b"\x03",
    GREETING[:30],
    GREETING,
    (GREETING + READY)[:-3],
    GREETING + b"\x06" + (2**20).to_bytes(8, "big") + b"\x05READY",
    SIGNATURE + b"\x01",  # ZMTP 2.0
]
"""Where one can stop and be waited for."""
PATIENCE = 1.0  # seconds for a handshake, in this test


@pytest.mark.slow
async def test_a_peer_that_stops_in_the_handshake_is_disconnected(
    clients: Clients, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server_sockets, "HANDSHAKE", PATIENCE)
    async with serving(Worker()) as server:
        client = clients.connect(server.endpoints[0])
        assert await client.request(b"echo") == [b"re:echo"]
        peers: list[RawPeer] = []
        try:
            for number in range(1000):
                peers.append(RawPeer(server.endpoints[0]))
                peers[-1].send(STAGES[number % len(STAGES)])
            begun = trio.current_time()
            await until(lambda: server.statistics().connections > len(STAGES))
            while server.statistics().connections > 1:
                assert await client.request(b"echo") == [b"re:echo"]  # it costs others nothing
            assert trio.current_time() - begun < PATIENCE + 3
            for peer in peers:
                peer.read_end()
        finally:
            for peer in peers:
                peer.close()
        statistics = server.statistics()
        assert statistics.requests == statistics.replied


@pytest.mark.slow
@pytest.mark.parametrize("claim", [2**24 + 1, 2**33, 2**40, 2**63, 2**64 - 1])
async def test_a_header_that_claims_too_much_costs_nothing(claim: int) -> None:
    async with open_server(kind="echo") as server:
        process = psutil.Process(server.process.pid)
        with RawPeer(server.endpoint) as peer:
            peer.shake_hands()
            peer.socket.settimeout(3)  # long before the heartbeat would end it
            before = process.memory_info()
            peer.send(b"%c%b" % (LONG, claim.to_bytes(8, "big")) + bytes(1000))
            peer.read_end()
            after = process.memory_info()
        assert after.rss - before.rss < 2**20
        assert after.vms - before.vms < 2**24
        assert (await server.state())["statistics"][0]["requests"] == 0


@pytest.mark.slow
async def test_a_frame_of_the_most_is_served() -> None:
    async with open_server(kind="echo") as server:
        with RawPeer(server.endpoint) as peer:
            peer.shake_hands()
            peer.send(frame(b"", 1) + frame(bytes(2**24)))
            peer.read_frame()
            assert len(peer.read_frame()) == 2**24


@pytest.mark.parametrize(
    "bytes_", [command(b"INITIATE"), command(b"HELLO"), command(b"PING", b"\0\0")]
)
async def test_a_command_out_of_order_ends_the_connection(bytes_: bytes) -> None:
    async with serving(Worker()) as server:
        with RawPeer(server.endpoints[0]) as peer:
            peer.send(GREETING + bytes_)
            await trio.to_thread.run_sync(peer.read_end)
        await until(lambda: server.statistics().connections == 0)
