"""Behind a TCP load balancer: HAProxy, as `docs/scaling.md` configures it, before three servers.

Time is real. What makes it deterministic: the servers tell what their handlers do, and the tests
wait for that; whom the balancer sends where is not said.
"""

from __future__ import annotations

import re
import shutil
import socket
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import pytest
import trio
from support.programs import cannot_be_had

import trioreq
from harness.clients import ClientProcess
from harness.servers import ServerProcess, open_server

pytestmark = pytest.mark.slow

LIMIT = 20  # seconds of real time for a test that got stuck
PAGE = Path(__file__).parents[2] / "docs/scaling.md"


def configuration(listener: int, servers: list[ServerProcess]) -> str:
    """The page's, with our listening socket and our servers instead of its addresses."""
    found = re.search(r"^```text\n(.*?)^```$", PAGE.read_text(), re.DOTALL | re.MULTILINE)
    assert found is not None
    text, count = re.subn(r"\bbind :5555$", f"bind fd@{listener}", found[1], flags=re.MULTILINE)
    assert count == 1
    addresses = iter(server.endpoint.removeprefix("tcp://") for server in servers)
    text, count = re.subn(r"10\.0\.0\.\d:5555", lambda _: next(addresses), text)
    assert count == len(servers)
    return text


@asynccontextmanager
async def balanced(tmp_path: Path) -> AsyncIterator[tuple[str, list[ServerProcess]]]:
    """Three servers, and the endpoint that clients of theirs connect to."""
    haproxy = shutil.which("haproxy", path="/usr/sbin:/usr/local/sbin:/usr/bin")
    if haproxy is None:
        cannot_be_had("there is no HAProxy", "apt-get install haproxy")
    with trio.fail_after(LIMIT):
        async with AsyncExitStack() as stack:
            servers = [await stack.enter_async_context(open_server()) for _ in range(3)]
            with socket.create_server(("127.0.0.1", 0)) as listener:
                port = listener.getsockname()[1]
                file = tmp_path / "haproxy.cfg"
                file.write_text(configuration(listener.fileno(), servers))
                process = await trio.lowlevel.open_process(
                    [haproxy, "-db", "-f", str(file)], pass_fds=[listener.fileno()]
                )
            try:
                yield f"tcp://127.0.0.1:{port}", servers
            finally:
                process.kill()
                with trio.CancelScope(shield=True):
                    await process.wait()


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
