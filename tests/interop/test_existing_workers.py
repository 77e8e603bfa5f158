"""trioreq in front of a broker and REP workers in C++, which stay as they are.

The programs are those of docs/existing-workers.md, the one on trioreq too, with other addresses. A
worker works until it is sent a line, and reports what it does. So a test takes each step when the
last one is seen.
"""

from __future__ import annotations

import re
import shutil
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import trio
import trio.testing
from support.programs import cannot_be_had
from support.serving import LIMIT, until

import trioreq
from harness.children import open_process

PAGE = (Path(__file__).parents[2] / "docs/existing-workers.md").read_text()
FRONT, BROKER = "tcp://127.0.0.1:5555", "tcp://127.0.0.1:5556"


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", PAGE, re.DOTALL | re.MULTILINE)


@pytest.fixture(scope="session")
def programs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the page's broker, worker and client, compiled as the page says."""
    if not shutil.which("g++") or not Path("/usr/include/zmq.hpp").exists():
        cannot_be_had("there is no g++ or no cppzmq", "install g++, cppzmq-dev and libzmq3-dev")
    folder = tmp_path_factory.mktemp("cpp")
    names = re.findall(r"^`(\w+\.cpp)`:$", PAGE, re.MULTILINE)
    for name, code in zip(names, blocks("cpp"), strict=True):
        (folder / name).write_text(code)
    (command,) = blocks("sh")
    done = subprocess.run(
        ["bash", "-ec", command], cwd=folder, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
    return folder


@pytest.fixture(autouse=True)
def _told(versions: dict[str, list[str]]) -> None:
    """The versions that C++ programs are compiled with."""
    found = {}
    for header, prefix in (("zmq.hpp", "CPPZMQ"), ("zmq.h", "ZMQ")):
        path = Path("/usr/include", header)
        text = path.read_text() if path.exists() else ""
        found[prefix] = re.findall(rf"^#define {prefix}_VERSION_\w+ (\d+)$", text, re.MULTILINE)
    versions["C++"] = ["C++", *(f"{name} {'.'.join(parts)}" for name, parts in found.items())]


class Worker:
    """A worker, which works until the test lets it reply."""

    def __init__(self, process: trio.Process) -> None:
        self.process = process

    async def reply(self) -> None:
        """Have it end its work."""
        assert self.process.stdin is not None
        await self.process.stdin.send_all(b"\n")


class Client:
    """A client, which asks once."""

    def __init__(self, process: trio.Process) -> None:
        self.process = process

    async def reply(self) -> str:
        """Wait for its reply."""
        assert self.process.stdout is not None
        return b"".join([some async for some in self.process.stdout]).decode().rstrip()


class Place:
    """The broker, two workers, trioreq in front of them, and clients."""

    server: trioreq.Server
    broker: trio.Process

    def __init__(self, programs: Path, folder: Path, nursery: trio.Nursery) -> None:
        self._programs = programs
        self._nursery = nursery
        self.front, self.middle, self.back = (
            f"ipc://{folder}/{name}" for name in ("front", "middle", "back")
        )
        self._report, self._reports = trio.open_memory_channel[tuple[Worker, str]](1000)

    async def start(self, name: str, *arguments: str) -> trio.Process:
        """Start one of the page's programs, which is killed at the end."""
        command = [str(self._programs / name), *arguments]

        async def keep(task_status: trio.TaskStatus[trio.Process]) -> None:
            async with open_process(command) as process:
                task_status.started(process)
                await trio.sleep_forever()

        process: trio.Process = await self._nursery.start(keep)
        return process

    async def start_worker(self) -> Worker:
        """Start a worker, and listen to it."""
        worker = Worker(await self.start("worker", self.back))

        async def listen() -> None:
            assert worker.process.stdout is not None
            rest = b""
            async for some in worker.process.stdout:
                *lines, rest = (rest + some).split(b"\n")
                for line in lines:
                    await self._report.send((worker, line.decode()))

        self._nursery.start_soon(listen)
        return worker

    async def report(self) -> str:
        """Wait for the next report of a worker."""
        _, line = await self._reports.receive()
        return line

    async def reported(self, expected: str) -> Worker:
        """Wait for what a worker reports next."""
        worker, line = await self._reports.receive()
        assert line == expected
        return worker

    async def ask(self, name: str) -> Client:
        """Start a client, and wait until trioreq has its request."""
        requests = self.server.statistics().requests
        client = Client(await self.start("client", self.front, name))
        await until(lambda: self.server.statistics().requests == requests + 1)
        return client

    async def kill(self, client: Client) -> None:
        """Kill a client, and wait until trioreq has detected it."""
        connections = self.server.statistics().connections
        client.process.kill()
        await until(lambda: self.server.statistics().connections == connections - 1)

    async def start_workers(self) -> None:
        """Start two workers; each has had a request of the broker's when this returns."""
        for _ in range(2):
            await self.start_worker()
        connected: set[Worker] = set()
        while len(connected) < 2:
            client = Client(await self.start("client", self.middle, "nobody"))
            worker = await self.reported("works for nobody")
            await worker.reply()
            await self.reported("has replied to nobody")
            assert await client.reply() == "a reply for nobody"
            connected.add(worker)

    @asynccontextmanager
    async def running(
        self, monkeypatch: pytest.MonkeyPatch, old: str = "", new: str = ""
    ) -> AsyncIterator[None]:
        """Run the page's program in this process, changed as the arguments say."""
        serving = trio.Event()

        async def serve(*arguments: Any, **options: Any) -> None:
            async with trioreq.open_server(*arguments, **options) as self.server:
                serving.set()
                await trio.sleep_forever()

        monkeypatch.setattr(trioreq, "serve", serve)
        monkeypatch.setattr(trio, "run", self._nursery.start_soon)
        program = self.program()
        assert old in program
        exec(program.replace(old, new) if old else program, {})
        await serving.wait()
        try:
            yield
        finally:
            self.broker.kill()  # so that no handler waits in its shield
            await until(lambda: not self.server.statistics().running)

    def program(self) -> str:
        """The page's program, with this place's addresses."""
        (program,) = blocks("python")
        return program.replace(FRONT, self.front).replace(BROKER, self.middle)


@pytest.fixture
async def place(programs: Path, tmp_path: Path) -> AsyncIterator[Place]:
    """The broker and the workers run."""
    with trio.fail_after(LIMIT):
        async with trio.open_nursery() as nursery:
            place = Place(programs, tmp_path, nursery)
            place.broker = await place.start("broker", place.middle, place.back)
            await place.start_workers()
            yield place
            nursery.cancel_scope.cancel()


async def test_workers_answer(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    async with place.running(monkeypatch):
        for name in ("alice", "bob", "carol"):
            client = await place.ask(name)
            worker = await place.reported(f"works for {name}")
            await worker.reply()
            assert await client.reply() == f"a reply for {name}"
            await place.reported(f"has replied to {name}")


async def test_client_killed_while_it_waits(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    async with place.running(monkeypatch):
        alice = await place.ask("alice")
        worker = await place.reported("works for alice")
        await place.ask("bob")
        await place.reported("works for bob")
        carol = await place.ask("carol")
        dave = await place.ask("dave")
        assert place.server.statistics().waiting == 2
        await place.kill(carol)
        await worker.reply()
        assert await alice.reply() == "a reply for alice"
        await place.reported("has replied to alice")
        assert await place.reported("works for dave") is worker
        await worker.reply()
        assert await dave.reply() == "a reply for dave"
        stats = place.server.statistics()
        assert (stats.never_started, stats.cancelled_by_disconnect) == (1, 0)


async def test_client_killed_while_a_worker_works(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with place.running(monkeypatch):
        alice = await place.ask("alice")
        worker = await place.reported("works for alice")
        await place.ask("bob")
        other = await place.reported("works for bob")
        carol = await place.ask("carol")
        await place.kill(alice)
        stats = place.server.statistics()
        assert (stats.cancelled_by_disconnect, stats.running, stats.waiting) == (1, 2, 1)
        await worker.reply()
        await place.reported("has replied to alice")
        assert await place.reported("works for carol") is worker
        await worker.reply()
        assert await carol.reply() == "a reply for carol"
        stats = place.server.statistics()
        assert (stats.replied, stats.replies_sent, stats.running) == (1, 1, 1)
        await place.reported("has replied to carol")
        await other.reply()
        await place.reported("has replied to bob")


async def test_without_the_shield(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    """A worker works for carol, whose client was killed while the request was in the broker."""
    async with place.running(monkeypatch, "shield=True", "shield=False"):
        alice = await place.ask("alice")
        worker = await place.reported("works for alice")
        await place.ask("bob")
        other = await place.reported("works for bob")
        carol = await place.ask("carol")
        await place.kill(alice)
        await until(lambda: place.server.statistics().waiting == 0)
        await trio.testing.wait_all_tasks_blocked()  # carol's request is in the broker
        await place.kill(carol)
        await until(lambda: place.server.statistics().running == 1)
        assert place.server.statistics().cancelled_by_disconnect == 2
        await worker.reply()
        await other.reply()  # the broker has put carol behind either of them
        assert {await place.report() for _ in range(3)} == {
            "has replied to alice",
            "has replied to bob",
            "works for carol",
        }


async def test_worker_killed(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    async with place.running(monkeypatch, "timeout=60", "timeout=0.5"):
        alice = await place.ask("alice")
        worker = await place.reported("works for alice")
        worker.process.kill()
        assert await alice.reply() == "trioreq-error"
        stats = place.server.statistics()
        assert (stats.failed, stats.running) == (1, 0)


async def test_broker_killed(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    async with place.running(monkeypatch):
        alice = await place.ask("alice")
        await place.reported("works for alice")
        place.broker.kill()
        assert await alice.reply() == "trioreq-error"
        assert place.server.statistics().failed == 1


async def test_interrupt(place: Place, tmp_path: Path) -> None:
    """Ctrl-C answers the clients at once; the program ends when the worker has replied."""
    # Also if a shell has started the tests with Ctrl-C ignored.
    heed = "import signal\nsignal.signal(signal.SIGINT, signal.default_int_handler)\n"
    program = (sys.executable, "-c", heed + place.program())
    stderr = await trio.open_file(tmp_path / "stderr", "w")
    async with stderr, open_process(program, stderr.wrapped) as process:
        alice = Client(await place.start("client", place.front, "alice"))
        worker = await place.reported("works for alice")
        process.send_signal(signal.SIGINT)
        assert await alice.reply() == "trioreq-error"
        assert process.returncode is None
        await worker.reply()
        assert await process.wait() == -signal.SIGINT
