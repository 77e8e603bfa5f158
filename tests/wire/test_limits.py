"""`max_message_size` is in the user's bytes, whatever libzmq counts beside them. Real sockets.

The least sizes are those of stock libzmq sockets: one byte less, and none connects.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
import trio
import zmq
from support.handlers import Worker
from support.serving import serving, until

import trioreq
from harness.clients import Clients
from trioreq._protocol import packs
from trioreq._protocol.frame_sizes import LEAST_AT_CLIENT, LEAST_AT_SERVER
from trioreq._protocol.zap import Mechanism

pytestmark = pytest.mark.slow

SERVER, ALICE = trioreq.KeyPair.generate(), trioreq.KeyPair.generate()
CURVE = trioreq.CurveClient(SERVER.public, ALICE)
SIDES = [("NULL", "server"), ("CURVE", "server"), ("NULL", "client"), ("CURVE", "client")]


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


async def echo(request: trioreq.Request) -> list[bytes]:
    return list(request.frames)


@asynccontextmanager
async def open_client(
    mechanism: str, side: str, size: int
) -> AsyncIterator[tuple[trioreq.Server, trioreq.Client]]:
    """A server and a client, of which one has the limit."""
    at_server: dict[str, Any] = {"max_message_size": size} if side == "server" else {}
    at_client: dict[str, Any] = {"max_message_size": size} if side == "client" else {}
    if mechanism == "CURVE":
        at_client["curve"] = CURVE
    async with (
        serving(echo, **SERVERS[mechanism], **at_server) as server,
        trioreq.open_client(server.endpoints[0], **at_client) as client,
    ):
        yield server, client


@pytest.mark.parametrize("mechanism", SERVERS)
@pytest.mark.parametrize("size", [300, 100_000])
async def test_a_frame_of_a_stock_client_may_have_the_limit_and_no_more(
    mechanism: str, size: int, clients: Clients
) -> None:
    async with serving(Worker(), **SERVERS[mechanism], max_message_size=size) as server:
        client = clients.connect(server.endpoints[0], zmq.DEALER, **STOCK[mechanism])
        for body in (b"echo".ljust(size - 33), b"echo".ljust(size - 32), b"echo".ljust(size)):
            await client.send(b"", body, bytes(size))
            assert await client.receive() == [b"", b"re:" + body]
        await client.send(b"", b"echo".ljust(size + 1))
        await until(lambda: server.statistics().connections == 0)
        assert server.statistics().requests == 3


@pytest.mark.parametrize(("mechanism", "side"), SIDES)
async def test_a_frame_of_open_client_may_have_the_limit_and_no_more(
    mechanism: str, side: str
) -> None:
    size = 2000
    async with open_client(mechanism, side, size) as (_, client):
        for frames in ([bytes(size)], [bytes(size - 32)], [bytes(size), b"", bytes(size)]):
            assert await client.request_multipart(frames) == frames
        with pytest.raises(trioreq.ConnectionLost):
            await client.request(bytes(size + 1))
        assert await client.request(bytes(size)) == bytes(size)


@pytest.mark.parametrize(("mechanism", "side"), SIDES)
async def test_a_pack_may_have_the_limit(mechanism: str, side: str) -> None:
    """Each side says how large, and the other makes packs of just that size."""
    size = packs.HEAD_SIZE + 10 * (packs.OVERHEAD + 12)
    bodies = [b"%012d" % number for number in range(1000)]
    async with open_client(mechanism, side, size) as (_, client):
        assert await client.request_many(bodies) == bodies
        assert client.statistics().connections == 1


@pytest.mark.parametrize("mechanism", SERVERS)
@pytest.mark.parametrize("kind", [zmq.REQ, zmq.DEALER])
async def test_stock_clients_connect_with_the_least_size_of_a_server(
    mechanism: Mechanism, kind: int, clients: Clients
) -> None:
    least = LEAST_AT_SERVER[mechanism]
    async with serving(Worker(), **SERVERS[mechanism], max_message_size=least) as server:
        client = clients.connect(server.endpoints[0], kind, **STOCK[mechanism])
        await client.send(*([b"echo"] if kind == zmq.REQ else [b"", b"echo"]))
        assert (await client.receive())[-1] == b"re:echo"


@pytest.mark.parametrize(("mechanism", "side"), SIDES)
async def test_open_client_connects_with_the_least_size(mechanism: Mechanism, side: str) -> None:
    least = (LEAST_AT_SERVER if side == "server" else LEAST_AT_CLIENT)[mechanism]
    async with open_client(mechanism, side, least) as (_, client):
        assert await client.request(bytes(least)) == bytes(least)
        bodies = [b"%d" % number for number in range(100)]
        assert await client.request_many(bodies) == bodies
        assert client.statistics().connections == 1


@pytest.mark.parametrize("mechanism", SERVERS)
async def test_less_than_the_least_size_is_refused_at_once(mechanism: Mechanism) -> None:
    """As libzmq's own limit: with less, no client could connect (libzmq#4436)."""
    least = LEAST_AT_SERVER[mechanism]
    says = f"max_message_size must be from {least} to .* with {mechanism}, .* got {least - 1}"
    with pytest.raises(ValueError, match=says):
        await trioreq.serve(
            echo, "tcp://127.0.0.1:0", **SERVERS[mechanism], max_message_size=least - 1
        )


@pytest.mark.parametrize("curve", [None, CURVE])
async def test_less_than_the_least_size_of_a_client_is_refused_at_once(
    curve: trioreq.CurveClient | None,
) -> None:
    least = LEAST_AT_CLIENT["NULL" if curve is None else "CURVE"]
    with pytest.raises(ValueError, match=f"max_message_size must be from {least} to"):
        async with trioreq.open_client(
            "tcp://127.0.0.1:5555", max_message_size=least - 1, curve=curve
        ):
            pass


@pytest.mark.parametrize("mechanism", SERVERS)
async def test_no_dealer_connects_below_the_least_size(
    mechanism: Mechanism, monkeypatch: pytest.MonkeyPatch, clients: Clients
) -> None:
    """So it is not larger than it need be."""
    least = LEAST_AT_SERVER[mechanism]
    monkeypatch.setitem(LEAST_AT_SERVER, mechanism, 1)
    async with serving(Worker(), **SERVERS[mechanism], max_message_size=least - 1) as server:
        client = clients.connect(
            server.endpoints[0], zmq.DEALER, **STOCK[mechanism], RECONNECT_IVL=1
        )
        await client.send(b"", b"echo")
        await until(lambda: server._router._table.epoch >= 6)  # it came and went three times
        assert server.statistics().requests == 0


@pytest.mark.parametrize("mechanism", LEAST_AT_CLIENT)
async def test_no_client_connects_below_its_least_size(
    mechanism: Mechanism, monkeypatch: pytest.MonkeyPatch
) -> None:
    least = LEAST_AT_CLIENT[mechanism]
    monkeypatch.setitem(LEAST_AT_CLIENT, mechanism, 1)
    async with open_client(mechanism, "client", least - 1) as (server, client):
        with pytest.raises((trioreq.NotConnected, trioreq.Refused)):
            await client.request(b"", timeout=1)
        assert server.statistics().requests == 0
