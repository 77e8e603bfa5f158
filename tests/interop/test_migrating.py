"""The gateway in place of a proxy: REP workers and REQ clients in C++, which are those of the page.

A worker works until it is sent a line, and reports what it does. So a test takes each step when the
last one is seen.
"""

from __future__ import annotations

import re
import shlex
import shutil
import signal
import subprocess
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import trio
from support.programs import cannot_be_had
from support.served import ended, served
from support.serving import LIMIT, serving, until

import trioreq
from harness.children import Child, open_child

PAGE = (Path(__file__).parents[2] / "docs/migrating.md").read_text()
WAIT = 60_000  # ms that a client waits for its reply, if the test is not about that


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", PAGE, re.DOTALL | re.MULTILINE)


@pytest.fixture(scope="session")
def programs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the page's worker and client, compiled as the page says, and of its errors."""
    if not shutil.which("g++") or not Path("/usr/include/zmq.hpp").exists():
        cannot_be_had("there is no g++ or no cppzmq", "install g++, cppzmq-dev and libzmq3-dev")
    folder = tmp_path_factory.mktemp("cpp")
    for name, code in zip(("worker.cpp", "client.cpp"), blocks("cpp"), strict=True):
        (folder / name).write_text(code)
    (folder / "errors.py").write_text(blocks("python")[0])
    done = subprocess.run(
        ["bash", "-ec", blocks("sh")[0]], cwd=folder, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
    return folder


class Place:
    """The workers, and a gateway's server in this process."""

    server: trioreq.Server

    def __init__(self, programs: Path, folder: Path, stack: AsyncExitStack) -> None:
        self._programs = programs
        self._folder = folder
        self._stack = stack
        self.workers: list[Child] = []

    async def start(self, name: str, *arguments: object) -> Child:
        command = [str(self._programs / name), *map(str, arguments)]
        return await self._stack.enter_async_context(open_child(command))

    async def serve(self, workers: int, **options: Any) -> None:
        endpoints = [f"ipc://{self._folder}/{number}" for number in range(workers)]
        self.workers = [await self.start("worker", endpoint) for endpoint in endpoints]
        gateway = await self._stack.enter_async_context(trioreq.open_gateway(endpoints, **options))
        errors: dict[str, Any] = {}
        exec((self._programs / "errors.py").read_text(), errors)
        self.server = await self._stack.enter_async_context(
            serving(gateway, error_reply=errors["error_reply"])
        )

    async def ask(self, name: str, wait: int = WAIT) -> Child:
        """Start a client, and wait until the server has its request."""
        requests = self.server.statistics().requests
        client = await self.start("client", self.server.endpoints[0], name, wait)
        await until(lambda: self.server.statistics().requests == requests + 1)
        return client


@asynccontextmanager
async def opened(programs: Path, folder: Path) -> AsyncIterator[Place]:
    with trio.fail_after(LIMIT):
        async with AsyncExitStack() as stack:
            yield Place(programs, folder, stack)


async def test_the_workers_behind_the_gateway(programs: Path, tmp_path: Path) -> None:
    """As the page starts them, with other addresses."""
    (command,) = [line for line in blocks("sh")[1].splitlines() if "trioreq-server" in line]
    for port in (5556, 5557):
        command = command.replace(f"tcp://127.0.0.1:{port}", f"ipc://{tmp_path}/{port}")
    _, *options = shlex.split(command.replace("127.0.0.1:5555", "127.0.0.1:0"))
    async with opened(programs, tmp_path) as place:
        workers = [await place.start("worker", f"ipc://{tmp_path}/{n}") for n in (5556, 5557)]
        async with served(programs, *options, handler="") as server:
            (front,) = await server.serving()
            for _ in workers:
                await server.line(": connected")
            clients = []
            for worker, name in zip(workers, ("alice", "bob"), strict=True):
                clients.append(await place.start("client", front, name, WAIT))
                assert await worker.read_line() == f"works for {name}"
            assert await workers[0].ask() == "has replied to alice"
            assert await clients[0].read_line() == "a reply for alice"
            workers[1].kill()
            error = "ERROR handler-failed: the connection to the worker was lost"
            assert (await clients[1].read_line()).startswith(error)
            server.process.send_signal(signal.SIGTERM)
            assert await ended(server) == 0


async def test_a_client_times_out_while_its_request_waits(programs: Path, tmp_path: Path) -> None:
    async with opened(programs, tmp_path) as place:
        await place.serve(1)
        (worker,) = place.workers
        alice = await place.ask("alice")
        assert await worker.read_line() == "works for alice"
        bob, carol = await place.ask("bob", 100), await place.ask("carol")
        assert await bob.read_line() == "timeout"
        await until(lambda: place.server.statistics().never_started == 1)
        assert await worker.ask() == "has replied to alice"
        assert await alice.read_line() == "a reply for alice"
        assert await worker.read_line() == "works for carol"
        assert await worker.ask() == "has replied to carol"
        assert await carol.read_line() == "a reply for carol"


async def test_a_client_aborts_while_a_worker_processes_its_request(
    programs: Path, tmp_path: Path
) -> None:
    async with opened(programs, tmp_path) as place:
        await place.serve(1)
        (worker,) = place.workers
        alice, bob = await place.ask("alice"), await place.ask("bob")
        assert await worker.read_line() == "works for alice"
        alice.process.send_signal(signal.SIGABRT)
        await until(lambda: place.server.statistics().cancelled_by_disconnect == 1)
        statistics = place.server.statistics()
        assert (statistics.running, statistics.waiting) == (1, 1)
        assert await worker.ask() == "has replied to alice"
        assert await worker.read_line() == "works for bob"
        assert place.server.statistics().replies_dropped == 1
        assert await worker.ask() == "has replied to bob"
        assert await bob.read_line() == "a reply for bob"


async def test_a_worker_is_killed(programs: Path, tmp_path: Path) -> None:
    async with opened(programs, tmp_path) as place:
        await place.serve(2, retries=1, connect_timeout=0.2)
        alice = await place.ask("alice")
        assert await place.workers[0].read_line() == "works for alice"
        place.workers[0].kill()
        assert await place.workers[1].read_line() == "works for alice"
        place.workers[1].kill()
        assert (await alice.read_line()).startswith("ERROR handler-failed: ")
        bob = await place.ask("bob")
        assert await bob.read_line() == "ERROR no-worker: there is no connection to any worker"
