"""Both ends against sockets of libzmq's own. A test takes each step when the last one is seen."""

from __future__ import annotations

import pytest
import trio
import zmq
from support.handlers import Worker
from support.plain import plain_server
from support.serving import LIMIT, serving, until

import trioreq
from harness.clients import Clients
from trioreq._protocol import envelope as wire

# The client.


async def test_client_with_trioreq() -> None:
    worker = Worker()
    async with serving(worker) as server, trioreq.open_client(server.endpoints[0]) as client:
        assert await client.request(b"echo") == b"re:echo"
        with pytest.raises(trioreq.ReplyError) as caught:
            await client.request(b"fail")
        assert caught.value.code == trioreq.Code.HANDLER_FAILED
        async with trio.open_nursery() as nursery:
            nursery.start_soon(client.request, b"wait one")
            await worker.log.wait("started wait one")
            nursery.cancel_scope.cancel()
        await worker.log.wait("cancelled wait one: cancelled")
        with pytest.raises(trioreq.RequestTimeout):
            await client.request(b"wait two", timeout=0.1)
        await worker.log.wait("ended wait two")


async def test_client_with_rep() -> None:
    """A REP socket must never be sent a cancel: to it that looks like a request."""
    with trio.fail_after(LIMIT), plain_server(zmq.REP) as (endpoint, rep):
        async with trioreq.open_client(endpoint) as client, trio.open_nursery() as nursery:

            async def ask(body: bytes) -> None:
                assert await client.request(body) == b"re:" + body

            async with trio.open_nursery() as given_up:  # nothing is known of the server yet
                given_up.start_soon(ask, b"one")
                assert await rep.receive() == [b"one"]
                given_up.cancel_scope.cancel()
            nursery.start_soon(ask, b"two")
            await rep.send(b"re:one")
            assert await rep.receive() == [b"two"]
            await rep.send(b"re:two")
            await until(lambda: client.statistics().replied == 1)

            async with trio.open_nursery() as given_up:  # it is known now
                given_up.start_soon(ask, b"three")
                assert await rep.receive() == [b"three"]
                given_up.cancel_scope.cancel()
            nursery.start_soon(ask, b"four")
            await rep.send(b"re:three")
            assert await rep.receive() == [b"four"]
            await rep.send(b"re:four")
        assert client.statistics().stale == 2


async def test_client_with_rep_and_a_deadline() -> None:
    with trio.fail_after(LIMIT), plain_server(zmq.REP) as (endpoint, rep):
        async with trioreq.open_client(endpoint) as client, trio.open_nursery() as nursery:
            with pytest.raises(trioreq.RequestTimeout):
                await client.request(b"late", timeout=0.1)
            assert await rep.receive() == [b"late"]
            await rep.send(b"re:late")

            async def answer() -> None:
                assert await rep.receive() == [b"next"]
                await rep.send(b"re:next")

            nursery.start_soon(answer)
            assert await client.request(b"next") == b"re:next"


async def test_client_with_router() -> None:
    """A ROUTER that sends envelopes back as they came, in an order of its own."""
    with trio.fail_after(LIMIT), plain_server(zmq.ROUTER) as (endpoint, router):
        async with trioreq.open_client(endpoint) as client, trio.open_nursery() as nursery:

            async def ask(body: bytes) -> None:
                assert await client.request(body, timeout=20) == b"re:" + body

            bodies = [b"one", b"two", b"three"]
            for body in bodies:
                nursery.start_soon(ask, body)
            messages = [await router.receive() for _ in bodies]
            assert sorted(message[-1] for message in messages) == sorted(bodies)
            for routing_id, frame, delimiter, body in reversed(messages):
                header = wire.header_untrusted((frame, delimiter))
                assert header is not None
                assert header.kind == wire.REQUEST
                assert 0 < header.left <= 20_000
                await router.send(routing_id, frame, delimiter, b"re:" + body)


# The server.


async def test_server_with_req(clients: Clients) -> None:
    worker = Worker()
    async with serving(worker) as server:
        req = clients.connect(server.endpoints[0])
        assert await req.request(b"echo") == [b"re:echo"]
        mark, code, text = await req.request(b"fail")
        assert (mark, code) == (b"trioreq-error", b"handler-failed")
        assert text
        assert await req.request(b"echo", b"more") == [b"re:echo"]
        await req.send(b"wait")
        await worker.log.wait("started wait")
        req.close()
        await worker.log.wait("cancelled wait: disconnected")


async def test_server_with_req_relaxed(clients: Clients) -> None:
    worker = Worker()
    async with serving(worker) as server:
        req = clients.connect(server.endpoints[0], REQ_RELAXED=1, REQ_CORRELATE=1)
        await req.send(b"wait")
        await worker.log.wait("started wait")
        assert await req.request(b"echo") == [b"re:echo"]
        await worker.log.wait("cancelled wait: superseded")
        assert server.statistics().connections == 1


@pytest.mark.parametrize("envelope", [(), (b"1",), (b"1", b"\x00\xff", b"three")])
async def test_server_with_dealer(clients: Clients, envelope: tuple[bytes, ...]) -> None:
    worker = Worker()
    async with serving(worker) as server:
        dealer = clients.connect(server.endpoints[0], zmq.DEALER)
        await dealer.send(*envelope, b"", b"wait")
        await worker.log.wait("started wait")
        assert await dealer.request(*envelope, b"", b"echo") == [*envelope, b"", b"re:echo"]
        reply = await dealer.request(*envelope, b"", b"fail")
        assert reply[:-1] == [*envelope, b"", b"trioreq-error", b"handler-failed"]
        worker.release.set()
        assert await dealer.receive() == [*envelope, b"", b"re:wait"]
        reply = await dealer.request(b"no delimiter")
        assert reply[:-1] == [b"", b"trioreq-error", b"malformed"]
