"""Packs, as the server takes and sends them."""

from __future__ import annotations

import math

import trio
from support.handlers import Worker
from support.nets import Net, RawClient
from support.outcomes import outcomes
from support.serving import until

import trioreq
from trioreq._protocol import envelope as wire
from trioreq._protocol import packs
from trioreq._protocol.envelope import Frames, Header

SIZE = 1000


def request(number: int, body: bytes, kind: int = wire.REQUEST) -> Frames:
    return Header(kind, number).pack(), b"", body


async def send(client: RawClient, *messages: Frames, size: int = SIZE) -> None:
    (frames,) = packs.pack(messages, packs.MAX_SIZE, size)
    assert len(frames) == 1
    await client.send_raw(*frames)


async def hear(client: RawClient) -> dict[int, bytes]:
    """The replies of one message, by number."""
    (frame,) = await client.receive_raw()
    pack = packs.unpack_untrusted(frame)
    assert pack is not None
    size, messages = pack
    assert size == packs.MAX_SIZE
    replies = {}
    for header, _, body in messages:
        own = wire.header_untrusted((header, b""))
        assert own is not None
        assert (own.kind, own.left) == (wire.OK, wire.SPEAKS)
        replies[own.correlation] = body
    return replies


async def test_a_pack_is_answered_with_a_pack(net: Net) -> None:
    server = await net.serve(Worker())
    client = await net.connect_dealer()
    await send(client, request(1, b"echo"), request(2, b"echo too"), request(3, b""))
    assert await hear(client) == {1: b"re:echo", 2: b"re:echo too", 3: b"re:"}
    stats = server.statistics()
    assert (stats.requests, stats.replied, stats.replies_sent) == (3, 3, 3)


async def test_plain_functions_take_packs_too(net: Net) -> None:
    def handler(request: trioreq.Request) -> bytes:
        return b"re:" + request.body

    await net.serve(handler, workers=1)
    client = await net.connect_dealer()
    await send(client, *(request(number, b"%d" % number) for number in range(1, 9)))
    replies: dict[int, bytes] = {}
    while len(replies) < 8:
        frames = await client.receive_raw()
        pack = packs.unpack_untrusted(frames[0])
        for header, _, body in [frames] if pack is None else pack[1]:
            own = wire.header_untrusted((header, b""))
            assert own is not None
            replies[own.correlation] = body
    assert replies == {number: b"re:%d" % number for number in range(1, 9)}


async def test_a_client_that_has_sent_no_pack_is_sent_none(net: Net) -> None:
    await net.serve(Worker())
    client = await net.connect_dealer()
    await send(client, request(1, b"echo"), request(2, b"echo"))
    assert await hear(client) == {1: b"re:echo", 2: b"re:echo"}
    other = await net.connect_dealer()  # not before: its accept may read the pack, for two tasks
    await other.send_raw(*request(1, b"echo"))
    await other.send_raw(*request(2, b"echo"))
    for _ in range(2):
        assert len(await other.receive_raw()) == 3


async def test_no_pack_is_larger_than_the_client_takes(net: Net) -> None:
    await net.serve(Worker())
    client = await net.connect_dealer()
    small = packs.HEAD_SIZE + 2 * (packs.OVERHEAD + len(b"re:echo"))
    await send(client, *(request(number, b"echo") for number in range(1, 6)), size=small)
    assert await hear(client) == {1: b"re:echo", 2: b"re:echo"}
    assert await hear(client) == {3: b"re:echo", 4: b"re:echo"}
    assert (await client.receive_raw())[2] == b"re:echo"
    await send(client, request(6, b"echo"), request(7, b"echo"), size=0)
    for _ in range(2):
        assert (await client.receive_raw())[2] == b"re:echo"


async def test_a_request_in_a_pack_is_taken_back_in_the_same(net: Net) -> None:
    worker = Worker()
    server = await net.serve(worker)
    client = await net.connect_dealer()
    await send(
        client,
        request(1, b"wait"),
        request(2, b"echo"),
        request(1, b"", wire.CANCEL),
        request(3, b"echo"),
    )
    assert await hear(client) == {2: b"re:echo", 3: b"re:echo"}
    assert "started wait" not in worker.log.entries
    assert server.statistics().cancelled_by_client == 1


async def test_an_invalid_pack_is_malformed_and_affects_no_other_client(net: Net) -> None:
    server = await net.serve(Worker())
    client = await net.connect_dealer()
    (frame,) = packs.pack([request(1, b"echo"), request(2, b"echo")], SIZE, SIZE)[0]
    await client.send_raw(frame[:-1])
    assert (await client.receive_raw())[:3] == [b"", b"trioreq-error", b"malformed"]
    assert server.statistics().requests == 1
    await send(client, request(1, b"echo"), request(2, b"echo"))
    assert len(await hear(client)) == 2


async def test_behind_a_proxy_no_packs_are_offered(net: Net) -> None:
    await net.serve(Worker())
    client = await net.connect_dealer()
    asks = Header(wire.REQUEST, 1 | wire.WANTS_HELLO).pack()
    await client.send_raw(b"hop", asks, b"", b"echo")
    assert (await client.receive_raw())[3] == b""
    await client.send_raw(asks, b"", b"echo")
    await client.receive_raw()
    assert packs.max_size_untrusted(tuple((await client.receive_raw())[2:])) == packs.MAX_SIZE


async def test_draining_takes_a_pack_to_its_end(net: Net) -> None:
    """What is in it may end the last request, and with that the drain, and be refused after it."""
    worker = Worker()
    server = await net.serve(worker)
    client = await net.connect_dealer()
    await send(client, request(1, b"wait"), request(2, b"echo"))
    assert (await client.receive_raw())[2] == b"re:echo"
    async with trio.open_nursery() as nursery:
        nursery.start_soon(server.drain, math.inf)
        await until(lambda: server._requests.closing)
        await send(client, request(1, b"", wire.CANCEL), request(3, b"echo"))
        header, _, *body = await client.receive_raw()
    own = wire.header_untrusted((header, b""))
    assert own is not None
    assert own.correlation == 3
    assert body[:2] == [b"trioreq-error", b"shutting-down"]
    assert outcomes(server) == {"replied": 1, "cancelled_by_client": 1, "shut_down": 1}
