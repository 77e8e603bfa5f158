"""Commands that libzmq 4.3.5 accepts, though it should not: docs/hostile.md has what they cost.

Each reply is waited for. If one of these tests fails, libzmq is mended: good, and docs/hostile.md
is to be changed.
"""

from __future__ import annotations

import trio
from support.handlers import Worker
from support.serving import serving

from harness.zmtp import RawPeer, command, message


async def test_a_ping_without_its_ttl_is_answered_with_bytes_beyond_it() -> None:
    def ping(endpoint: str) -> bytes:
        with RawPeer(endpoint) as peer:
            peer.shake_hands()
            peer.send(command(b"PING"))
            return peer.read_frame()

    async with serving(Worker()) as server:
        answer = await trio.to_thread.run_sync(ping, server.endpoints[0])
    assert answer.startswith(b"\x04PONG")
    assert len(answer) == len(b"\x04PONG") + 16


async def test_a_handshake_may_have_any_number_of_properties() -> None:
    properties = [(b"%05d" % number, b"") for number in range(20_000)]

    def ask(endpoint: str) -> list[bytes]:
        with RawPeer(endpoint) as peer:
            peer.shake_hands(b"DEALER", b"", *properties)
            peer.send(message(b"", b"echo"))
            return [peer.read_frame(), peer.read_frame()]

    async with serving(Worker()) as server:
        assert await trio.to_thread.run_sync(ask, server.endpoints[0]) == [b"", b"re:echo"]
