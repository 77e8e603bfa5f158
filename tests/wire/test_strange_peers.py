"""Peers that libzmq's clients would never be: by hand, on real sockets.

Time is real; everything waits for what the other side says.
"""

from __future__ import annotations

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
