"""Peers that announce a routing id which is libzmq's to give: it aborts a stock ROUTER.

Servers are processes of their own. Each peer waits for the server's READY, and the forger's
message has its echo before the next peer comes, so libzmq has taken its id in by then.
"""

from __future__ import annotations

import signal
from pathlib import Path

import pytest
import trio
from support.stock import open_stock

from harness.servers import open_router, open_server
from harness.zmtp import LIMIT, RawPeer, message

FIRST = 0x6B8B4567
"""The first automatic routing id of every process that has not seeded C's rand()."""


def ask(peer: RawPeer, routing_id: bytes = b"") -> None:
    """Come in under an id, and get an answer."""
    peer.shake_hands(b"DEALER", routing_id)
    peer.send(message(b"", b"hello"))
    assert [peer.read_frame(), peer.read_frame()] == [b"", b"hello"]


def attack(endpoint: str) -> None:
    """Take the first automatic id and the 15 after it, and let another peer connect."""
    forgers = [RawPeer(endpoint) for _ in range(16)]
    try:
        for number, forger in enumerate(forgers):
            ask(forger, b"\0" + (FIRST + number).to_bytes(4, "big"))
        with RawPeer(endpoint) as victim:
            ask(victim)
    finally:
        for forger in forgers:
            forger.close()


@pytest.mark.slow
async def test_a_forged_id_aborts_a_stock_router(tmp_path: Path) -> None:
    """If this fails, libzmq is mended: good, and docs/hostile.md is to be changed."""
    file = tmp_path / "stderr"
    with trio.fail_after(2 * LIMIT), file.open("w") as stderr:
        async with open_router(stderr) as router:
            with pytest.raises(ConnectionResetError):
                await trio.to_thread.run_sync(attack, router.endpoint)
            assert await router.process.wait() == -signal.SIGABRT
    assert "Assertion failed" in file.read_text()


@pytest.mark.slow
async def test_the_same_does_nothing_to_a_server() -> None:
    with trio.fail_after(2 * LIMIT):
        async with open_server(kind="echo") as server:
            await trio.to_thread.run_sync(attack, server.endpoint)
            assert (await server.state())["statistics"][0]["replied"] == 17


def test_a_guessed_routing_id_is_not_visible_in_the_zap_request_or_the_messages() -> None:
    """If this fails, there is a way to refuse one: docs/hostile.md says that there is none."""
    forged = b"\0abcd"
    with open_stock() as stock, RawPeer(stock.endpoint) as peer:
        peer.ask(b"DEALER", forged)
        assert stock.gate.poll(round(LIMIT * 1000))
        [question] = stock.read_gate()
        assert not any(forged in frame for frame in question)
        stock.answer(question)
        peer.enter()
        peer.send(message(b"hello"))
        stock.serve_until(lambda: len(stock.messages) == 1)
        assert stock.routing_ids == [forged]
        assert stock.messages[0][0].get("Identity") == ""
