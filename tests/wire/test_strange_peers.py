"""Peers that libzmq's clients would never be: by hand, on real sockets.

Time is real; everything waits for what the other side says.
"""

from __future__ import annotations

import pytest
import trio
from support.handlers import Worker
from support.serving import serving, until

from harness.clients import Clients
from harness.zmtp import GREETING, RawPeer, message, ready


async def test_a_peer_that_does_not_say_what_it_is_is_served(addr: str, clients: Clients) -> None:
    async with serving(Worker(), addr) as server:
        client = clients.connect(server.endpoints[0])
        with RawPeer(server.endpoints[0]) as peer:
            peer.send(GREETING + ready([]))
            await trio.to_thread.run_sync(peer.enter)
            peer.send(message(b"", b"echo"))
            assert await client.request(b"echo") == [b"re:echo"]
            await until(lambda: server.statistics().replied == 2)


@pytest.mark.parametrize(("size", "answered"), [(255, True), (256, False), (100_000, False)])
async def test_a_peer_with_a_long_routing_id_is_evicted(
    addr: str, caplog: pytest.LogCaptureFixture, size: int, answered: bool
) -> None:
    """Libzmq accepts any, and copies it for each message."""
    async with serving(Worker(), addr) as server:
        with RawPeer(server.endpoints[0]) as peer:
            await trio.to_thread.run_sync(peer.shake_hands, b"DEALER", b"x" * size)
            peer.send(message(b"", b"echo"))
            if answered:
                await until(lambda: server.statistics().replied == 1)
            else:
                await trio.to_thread.run_sync(peer.read_end)
                stats = server.statistics()
                assert (stats.evicted, stats.connections, stats.replied) == (1, 0, 0)
                assert f"its routing id has {size} bytes" in caplog.text


async def test_a_routing_id_may_begin_with_a_zero_byte(addr: str) -> None:
    """As those do that libzmq makes, which it never uses again."""
    async with serving(Worker(), addr) as server:
        with RawPeer(server.endpoints[0]) as peer:
            await trio.to_thread.run_sync(peer.shake_hands, b"DEALER", b"\0\0\0\7")
            peer.send(message(b"", b"echo"))
            await until(lambda: server.statistics().replied == 1)
            assert server._router.own_routing_ids == 1
