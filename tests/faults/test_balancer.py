"""Behind a TCP load balancer: HAProxy, as `docs/scaling.md` configures it, before three servers.

Time is real. What makes it deterministic: the servers tell what their handlers do, and the tests
wait for that; whom the balancer sends where is not said.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import pytest
import trio
from support.programs import cannot_be_had

import trioreq
from harness.balancer import find_haproxy, open_balancer
from harness.clients import ClientProcess
from harness.measurements.rolling import behind_haproxy
from harness.servers import ServerProcess, open_server

pytestmark = pytest.mark.slow

LIMIT = 20  # seconds of real time for a test that got stuck


@asynccontextmanager
async def balanced(tmp_path: Path) -> AsyncIterator[tuple[str, list[ServerProcess]]]:
    """Three servers, and the endpoint that clients of theirs connect to."""
    needs_haproxy()
    with trio.fail_after(LIMIT):
        async with AsyncExitStack() as stack:
            servers = [await stack.enter_async_context(open_server()) for _ in range(3)]
            endpoints = [server.endpoint for server in servers]
            yield await stack.enter_async_context(open_balancer(tmp_path, endpoints)), servers


def needs_haproxy() -> None:
    if find_haproxy() is None:
        cannot_be_had("there is no HAProxy", "apt-get install haproxy")


async def who_works(servers: list[ServerProcess], name: str) -> ServerProcess:
    """Wait until one of them has started the work of this name; returns which."""
    workers: list[ServerProcess] = []

    async def look(server: ServerProcess, cancel: trio.CancelScope) -> None:
        await server.wait("started", name)
        workers.append(server)
        cancel.cancel()

    async with trio.open_nursery() as nursery:
        for server in servers:
            nursery.start_soon(look, server, nursery.cancel_scope)
    (worker,) = workers
    return worker


async def test_a_killed_client_is_seen_through_the_balancer(
    tmp_path: Path, peer: ClientProcess
) -> None:
    async with balanced(tmp_path) as (endpoint, servers):
        await peer.connect(endpoint)
        await peer.send("wait for its end")
        worker = await who_works(servers, "for its end")
        peer.kill()
        await worker.wait("disconnected", "for its end")
        assert [len(server.told) for server in servers if server is not worker] == [0, 0]


async def test_the_clients_of_a_killed_server_come_to_the_others(tmp_path: Path) -> None:
    names = [str(number) for number in range(6)]

    async def ask(endpoint: str, name: str) -> None:
        async with trioreq.open_client(endpoint, retries=5) as client:
            await client.request(b"wait " + name.encode())

    async with balanced(tmp_path) as (endpoint, servers), trio.open_nursery() as nursery:
        works = {}
        for name in names:
            nursery.start_soon(ask, endpoint, name)
            works[name] = await who_works(servers, name)
        killed = servers.pop()
        lost = [name for name in names if works[name] is killed]
        assert len(lost) == 2  # leastconn
        killed.kill()
        for name in lost:
            await who_works(servers, name)
        nursery.cancel_scope.cancel()


async def test_a_rolling_restart_behind_the_balancer_loses_nothing() -> None:
    """The short form of `python -m benchmarks rolling`."""
    needs_haproxy()
    with trio.fail_after(60):
        report = await behind_haproxy(1, clients=20, plain_clients=5, pause=0.05)
    assert (report.restarts, report.lost, report.twice, report.hung) == (2, 0, 0, 0), f"{report}"
