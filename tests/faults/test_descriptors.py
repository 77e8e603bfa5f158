"""More clients than there are file descriptors: new ones are closed until there is room.

Left to itself libzmq 4.3.5 stays alive at the limit, but tries to accept without a pause: a
processor is busy with it, those who come hang, and the program can open no file.

Time is real. What makes it deterministic: the kernel gives the lowest free descriptor, so the
number of those who find room is known up to what the server's own process has open.
"""

from __future__ import annotations

from contextlib import ExitStack

import pytest
import trio

from harness.clients import open_clients
from harness.servers import open_server
from harness.zmtp import RawPeer, message

pytestmark = pytest.mark.slow

LIMIT = 20  # seconds of real time for a test that got stuck
MOST = 100  # descriptors
WITH_FEW = ("sh", "-c", f'ulimit -n {MOST} && exec "$@"', "sh")


def is_let_in(endpoint: str) -> RawPeer | None:
    """Connect; None if the server ends it."""
    peer = RawPeer(endpoint)
    try:
        peer.shake_hands()
    except ConnectionResetError:
        peer.close()
        return None
    return peer


async def test_newcomers_are_turned_away_until_there_is_room() -> None:
    with trio.fail_after(LIMIT), open_clients() as clients, ExitStack() as stack:
        async with open_server(inside=WITH_FEW) as server:

            async def come() -> RawPeer | None:
                peer = await trio.to_thread.run_sync(is_let_in, server.endpoint)
                return peer and stack.enter_context(peer)

            peers = []
            while peer := await come():
                peers.append(peer)
            assert MOST / 3 < len(peers) < MOST
            assert [await come() for _ in range(MOST)] == [None] * MOST
            told = [text for word, text in server.told if word == "log"]
            assert "new connections are closed until some are free" in told[0]
            assert len(told) < MOST / 2  # and not a line for each

            # Those who are in are served, and the process can still open files.
            peers[0].send(message(b"", b"echo"))
            assert [peers[0].read_frame(), peers[0].read_frame()] == [b"", b"echo"]
            state = await server.state()
            assert state["descriptors"] < MOST
            assert state["statistics"][0]["connections"] == len(peers)

            # A client of libzmq comes back by itself until there is room.
            patient = clients.connect(server.endpoint)
            await patient.send(b"echo")
            busy = state["processor"]
            await trio.sleep(1)
            assert (await server.state())[
                "processor"
            ] - busy < 0.5  # libzmq does not retry without a pause
            for peer in peers[1:20]:
                peer.close()
            assert await patient.receive() == [b"echo"]
            assert await come() is not None
