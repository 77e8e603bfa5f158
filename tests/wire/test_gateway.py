"""`open_gateway` in front of REP and ROUTER servers, which know nothing of trioreq.

Workers and clients are processes, which take each step when the test says so. A worker is told to
receive, and then holds the request until it is told what to send.
"""

from __future__ import annotations

import signal
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import trio
import trio.testing
from support.served import ended, served
from support.serving import LIMIT, serving, until

import trioreq
from harness.clients import ClientProcess, open_client_process

pytestmark = pytest.mark.slow

FAILED = ["trioreq-error", "handler-failed"]


class Place:
    """Workers, a gateway, its server, and clients."""

    def __init__(self, stack: AsyncExitStack) -> None:
        self.stack = stack
        self.workers: list[ClientProcess] = []
        self.endpoints: list[str] = []
        self.server: trioreq.Server

    async def process(self) -> ClientProcess:
        return await self.stack.enter_async_context(open_client_process())

    async def serve(self, endpoints: Sequence[str], **options: Any) -> None:
        gateway = await self.stack.enter_async_context(trioreq.open_gateway(endpoints, **options))
        self.server = await self.stack.enter_async_context(serving(gateway))

    async def client(self, kind: str = "REQ") -> ClientProcess:
        client = await self.process()
        await client.connect(self.server.endpoints[0], kind)
        return client

    async def ask(self, *frames: str) -> ClientProcess:
        """Send a request on a new connection, and wait until the server has it."""
        requests = self.server.statistics().requests
        client = await self.client()
        await client.send(*frames)
        await until(lambda: self.server.statistics().requests == requests + 1)
        return client

    async def kill(self, client: ClientProcess) -> None:
        """Kill a client, and wait until the server has detected it."""
        connections = self.server.statistics().connections
        client.kill()
        await until(lambda: self.server.statistics().connections == connections - 1)


@asynccontextmanager
async def place(*kinds: str, **options: Any) -> AsyncIterator[Place]:
    """Workers of these kinds of socket, and a gateway in front of them if there are any."""
    with trio.fail_after(LIMIT):
        async with AsyncExitStack() as stack:
            made = Place(stack)
            for kind in kinds:
                made.workers.append(await made.process())
                made.endpoints.append(await made.workers[-1].bind(kind))
            if kinds:
                await made.serve(made.endpoints, **options)
            yield made


@pytest.mark.parametrize("kind", ["REP", "ROUTER", "DEALER"])
async def test_frames_are_forwarded_unchanged(kind: str) -> None:
    async with place(kind) as here:
        (worker,) = here.workers
        client = await here.ask("one", "", "three")
        *envelope, first, second, third = await worker.receive()
        assert [first, second, third] == ["one", "", "three"]
        # As behind a proxy: the ROUTER's own routing id, that of the client, and the delimiter.
        assert len(envelope) == {"REP": 0, "ROUTER": 3, "DEALER": 2}[kind]
        assert not envelope or envelope[-1] == ""
        await worker.send(*envelope, "", "two")
        assert await client.receive() == ["", "two"]


async def test_a_router_has_several_requests_and_replies_in_any_order() -> None:
    async with place("ROUTER", in_flight=2) as here:
        (worker,) = here.workers
        clients = [await here.ask(name) for name in ("alice", "bob", "carol")]
        requests = [await worker.receive() for _ in range(2)]
        assert here.server.statistics().waiting == 1
        for request in reversed(requests):
            await worker.send(*request)
        await worker.send(*await worker.receive())
        for client, name in zip(clients, ("alice", "bob", "carol"), strict=True):
            assert await client.receive() == [name]


async def test_a_request_goes_to_the_worker_with_the_fewest() -> None:
    async with place("REP", "REP") as here:
        clients = [await here.ask(name) for name in ("alice", "bob", "carol")]
        statistics = here.server.statistics()
        assert (statistics.running, statistics.waiting) == (2, 1)  # one request for each
        for worker, name in zip(here.workers, ("alice", "bob"), strict=True):
            assert await worker.receive() == [name]
        await here.workers[1].send("for bob")  # so it is the one with the fewest
        assert await here.workers[1].receive() == ["carol"]
        assert await clients[1].receive() == ["for bob"]


async def test_a_request_whose_client_has_disconnected_is_never_forwarded() -> None:
    async with place("REP") as here:
        (worker,) = here.workers
        alice, bob, carol = [await here.ask(name) for name in ("alice", "bob", "carol")]
        assert await worker.receive() == ["alice"]
        await here.kill(bob)
        await worker.send("for alice")
        assert await alice.receive() == ["for alice"]
        assert await worker.receive() == ["carol"]
        await worker.send("for carol")
        assert await carol.receive() == ["for carol"]
        assert here.server.statistics().never_started == 1


async def test_a_disconnected_clients_request_keeps_its_slot_and_its_reply_is_dropped() -> None:
    async with place("REP") as here:
        (worker,) = here.workers
        alice, bob = await here.ask("alice"), await here.ask("bob")
        assert await worker.receive() == ["alice"]
        await here.kill(alice)
        statistics = here.server.statistics()
        assert (statistics.cancelled_by_disconnect, statistics.running, statistics.waiting) == (
            (1, 1, 1)
        )
        await worker.send("for alice")
        assert await worker.receive() == ["bob"]
        await worker.send("for bob")
        assert await bob.receive() == ["for bob"]
        assert here.server.statistics().replies_dropped == 1


async def test_the_request_of_a_killed_worker_fails(caplog: pytest.LogCaptureFixture) -> None:
    async with place("REP") as here:
        (worker,) = here.workers
        client = await here.ask("alice")
        await worker.receive()
        worker.kill()
        assert (await client.receive())[:2] == FAILED
        assert here.server.statistics().running == 0
    lost = f"worker {here.endpoints[0]}: the connection was lost"
    assert [r.message for r in caplog.records if r.levelname == "WARNING"] == [lost]


async def test_with_retries_another_worker_has_the_request_of_a_killed_one() -> None:
    async with place("REP", "REP", retries=1) as here:
        client = await here.ask("alice")
        await here.workers[0].receive()
        here.workers[0].kill()
        assert await here.workers[1].receive() == ["alice"]
        await here.workers[1].send("for alice")
        assert await client.receive() == ["for alice"]


async def test_nothing_is_retried_for_a_client_that_has_disconnected() -> None:
    async with place("REP", "REP", retries=1) as here:
        alice = await here.ask("alice")
        await here.workers[0].receive()
        await here.kill(alice)
        here.workers[0].kill()
        await until(lambda: here.server.statistics().running == 0)
        await here.ask("bob")
        assert await here.workers[1].receive() == ["bob"]


async def test_a_worker_that_is_stopped_fails_its_request_and_is_used_again() -> None:
    async with place("REP", heartbeat=0.6) as here:
        (worker,) = here.workers
        alice = await here.ask("alice")
        await worker.receive()
        worker.stop()
        assert (await alice.receive())[:2] == FAILED
        worker.resume()
        await worker.send("for alice")  # which is sent to no connection
        bob = await here.ask("bob")
        assert await worker.receive() == ["bob"]
        await worker.send("for bob")
        assert await bob.receive() == ["for bob"]


async def test_requests_wait_for_a_worker_and_then_for_their_turn(tmp_path: Path) -> None:
    endpoint = f"ipc://{tmp_path}/worker"
    async with place() as here:
        await here.serve([endpoint, endpoint + "-2"])
        clients = [await here.ask(name) for name in ("alice", "bob", "carol")]
        assert here.server.statistics().waiting == 1
        await here.kill(clients[0])
        worker = await here.process()
        await worker.bind("REP", endpoint)
        assert await worker.receive() == ["bob"]
        await here.kill(clients[2])  # it waits for the second worker
        dave = await here.ask("dave")
        await worker.send("for bob")
        assert await clients[1].receive() == ["for bob"]
        assert await worker.receive() == ["dave"]
        await worker.send("for dave")
        assert await dave.receive() == ["for dave"]


async def test_requests_fail_when_there_is_no_worker_for_too_long(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    endpoint = f"ipc://{tmp_path}/worker"
    async with place() as here:
        await here.serve([endpoint], connect_timeout=0.3)
        for _ in range(2):
            client = await here.ask("alice")
            assert (await client.receive())[:2] == ["trioreq-error", "no-worker"]
    (line,) = [r.message for r in caplog.records if r.levelname == "WARNING"]
    assert line.startswith(f"worker: no connection to {endpoint} in 0.3 s: does a server listen")


async def test_a_gateway_that_is_closed_forwards_nothing() -> None:
    async with trioreq.open_gateway("tcp://127.0.0.1:1") as gateway:
        pass
    request = trioreq.Request(trioreq.Peer(1, "", "REQ"), (b"",))
    with pytest.raises(trio.ClosedResourceError):
        await gateway(request)


async def test_a_drain_lets_a_forwarded_request_end() -> None:
    async with place("REP") as here, trio.open_nursery() as nursery:
        (worker,) = here.workers
        client = await here.ask("alice")
        await worker.receive()
        nursery.start_soon(here.server.drain, LIMIT)
        await trio.testing.wait_all_tasks_blocked()
        await worker.send("for alice")
        assert await client.receive() == ["for alice"]


async def test_a_server_that_stops_waits_for_no_worker() -> None:
    """Neither with a client that is connected, nor with one that is not."""
    async with place("REP", "REP") as here:
        await here.kill(await here.ask("alice"))
        bob = await here.ask("bob")
        for worker in here.workers:
            await worker.receive()
        await here.server.drain(0)
        assert (await bob.receive())[:2] == ["trioreq-error", "shutting-down"]


async def test_trioreq_server_forwards_and_ends_though_a_worker_is_busy(tmp_path: Path) -> None:
    options = ("--bind", "tcp://127.0.0.1:0", "--grace", "0.1", "--forward")
    async with open_client_process() as worker, open_client_process() as client:
        endpoint = await worker.bind("REP")
        async with served(tmp_path, *options, endpoint, handler="") as server:
            await client.connect((await server.serving())[0])
            for name in ("alice", "bob"):
                await client.send(name)
                assert await worker.receive() == [name]
                if name == "alice":
                    await worker.send("for alice")
                    assert await client.receive() == ["for alice"]
            server.process.send_signal(signal.SIGTERM)
            assert (await client.receive())[:2] == ["trioreq-error", "shutting-down"]
            assert await ended(server) == 0
