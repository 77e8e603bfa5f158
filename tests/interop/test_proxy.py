"""A ROUTER/DEALER proxy in front of the server: all clients share one connection there.

No test waits for a time to pass, but for deadlines and heartbeats that are its subject.
"""

from __future__ import annotations

import sys

import pytest
import trio
import zmq
from support.handlers import Worker
from support.plain import proxied
from support.serving import serving

import trioreq
from harness.clients import Clients, open_client_process


async def test_proxy_carries_requests_errors_and_envelopes(clients: Clients) -> None:
    async with serving(Worker()) as server:
        with proxied(server.endpoints[0]) as endpoint:
            async with trioreq.open_client(endpoint) as client:
                assert await client.request(b"echo") == b"re:echo"
                with pytest.raises(trioreq.ReplyError) as caught:
                    await client.request(b"fail")
                assert caught.value.code == trioreq.Code.HANDLER_FAILED
                req = clients.connect(endpoint)
                assert await req.request(b"echo") == [b"re:echo"]
                dealer = clients.connect(endpoint, zmq.DEALER)
                await dealer.send(b"no delimiter")  # its answer has no way back
                assert await dealer.request(b"1", b"", b"echo") == [b"1", b"", b"re:echo"]
            stats = server.statistics()
            assert (stats.connections, stats.malformed) == (1, 1)


async def test_proxy_carries_cancels() -> None:
    """Both clients name their requests alike; the cancel of one is not the other's."""
    worker = Worker()
    async with serving(worker) as server:
        with proxied(server.endpoints[0]) as endpoint:
            async with (
                trioreq.open_client(endpoint) as one,
                trioreq.open_client(endpoint) as two,
                trio.open_nursery() as nursery,
            ):

                async def ask(client: trioreq.Client, body: bytes) -> None:
                    assert await client.request(body) == b"re:" + body

                nursery.start_soon(ask, two, b"wait two")
                await worker.log.wait("started wait two")
                async with trio.open_nursery() as given_up:
                    given_up.start_soon(ask, one, b"wait one")
                    await worker.log.wait("started wait one")
                    given_up.cancel_scope.cancel()
                await worker.log.wait("cancelled wait one: cancelled")
                worker.release.set()
            stats = server.statistics()
            assert (stats.connections, stats.cancelled_by_client, stats.replied) == (1, 1, 1)


async def test_proxy_carries_deadlines() -> None:
    worker = Worker()
    async with serving(worker) as server:
        with proxied(server.endpoints[0]) as endpoint:
            async with trioreq.open_client(endpoint) as client:
                with pytest.raises(trioreq.RequestTimeout, match="has not answered"):
                    await client.request(b"wait", timeout=0.1)
                await worker.log.wait("ended wait")
                assert await client.request(b"echo") == b"re:echo"
                assert client.statistics().stale == 0


async def test_proxy_carries_the_servers_ceiling() -> None:
    async with serving(Worker(), timeout=0.1) as server:
        with proxied(server.endpoints[0]) as endpoint:
            async with trioreq.open_client(endpoint) as client:
                with pytest.raises(trioreq.RequestTimeout, match="answered"):
                    await client.request(b"wait", timeout=20)


CLIENT = """
import sys, trio, trioreq

async def main():
    async with trioreq.open_client(sys.argv[1]) as client:
        await client.request(b"wait", timeout=1)

trio.run(main)
"""


async def test_proxy_hides_a_client_that_is_killed() -> None:
    """The proxy's connection stays. What ends the work is the deadline that came with it."""
    worker = Worker()
    async with serving(worker) as server:
        with proxied(server.endpoints[0]) as endpoint:
            process = await trio.lowlevel.open_process([sys.executable, "-c", CLIENT, endpoint])
            try:
                await worker.log.wait("started wait")
            finally:
                process.kill()
                with trio.CancelScope(shield=True):
                    await process.wait()
            await worker.log.wait("cancelled wait: deadline")
            assert server.statistics().connections == 1


async def test_proxy_hides_a_plain_client_that_is_killed_until_the_ceiling() -> None:
    worker = Worker()
    async with serving(worker, timeout=1) as server, open_client_process() as peer:
        with proxied(server.endpoints[0]) as endpoint:
            await peer.connect(endpoint)
            await peer.send("wait")
            await worker.log.wait("started wait")
            peer.kill()
            await worker.log.wait("cancelled wait: deadline")


async def test_proxy_that_ends_ends_the_work_of_all_behind_it(clients: Clients) -> None:
    worker = Worker()
    async with serving(worker) as server:
        with proxied(server.endpoints[0]) as endpoint:
            for body in (b"wait one", b"wait two"):
                await clients.connect(endpoint).send(body)
            await worker.log.wait("started wait one")
            await worker.log.wait("started wait two")
        await worker.log.wait("cancelled wait one: disconnected")
        await worker.log.wait("cancelled wait two: disconnected")
