"""Node, which has libzmq, and Java, which has JeroMQ: ZeroMQ rewritten.

A test takes each step when the last one is seen.
"""

from __future__ import annotations

import time
from collections.abc import AsyncIterator

import pytest
import trio
from support.handlers import Worker
from support.programs import Program, open_program
from support.serving import LIMIT, serving

import trioreq
from trioreq._protocol import envelope as wire
from trioreq._protocol import packs
from trioreq._protocol.envelope import Header
from trioreq._protocol.hello import hello_body

HEARTBEAT = 3.0  # seconds; a Java machine that warms up must be able to answer in half of it
SLACK = 0.5  # seconds, for a machine that is busy
FREE = "tcp://127.0.0.1:*"


@pytest.fixture(params=["node", "java"])
def command(request: pytest.FixtureRequest) -> list[str]:
    words: list[str] = request.getfixturevalue(request.param)
    return words


@pytest.fixture
async def program(command: list[str], versions: dict[str, list[str]]) -> AsyncIterator[Program]:
    async with open_program(command) as opened:
        told = await opened.version()
        versions[" ".join(told)] = told
        yield opened


async def test_program_req(program: Program) -> None:
    async with serving(Worker()) as server:
        await program.connect("REQ", server.endpoints[0])
        assert await program.request(b"echo") == [b"re:echo"]
        assert await program.request(b"echo", b"", b"more") == [b"re:echo"]
        mark, code, text = await program.request(b"fail")
        assert (mark, code) == (b"trioreq-error", b"handler-failed")
        assert b"LookupError" in text


async def test_node_req_relaxed(node: list[str]) -> None:
    worker = Worker()
    async with serving(worker) as server, open_program(node) as program:
        await program.connect("REQ", server.endpoints[0], "relaxed", "correlate")
        await program.send(b"wait")
        await worker.log.wait("started wait")
        assert await program.request(b"echo") == [b"re:echo"]
        await worker.log.wait("cancelled wait: superseded")


async def test_program_dealer(program: Program) -> None:
    worker = Worker()
    async with serving(worker) as server:
        await program.connect("DEALER", server.endpoints[0])
        await program.send(b"first", b"", b"wait")
        await worker.log.wait("started wait")
        assert await program.request(b"second", b"", b"echo") == [b"second", b"", b"re:echo"]
        worker.release.set()
        assert await program.receive() == [b"first", b"", b"re:wait"]


async def test_program_with_the_header(program: Program) -> None:
    """Hello, status, cancel and deadline, from a client that has only the specification."""
    worker = Worker()
    async with serving(worker) as server:
        await program.connect("DEALER", server.endpoints[0])
        asked = Header(wire.REQUEST, 1 | wire.WANTS_HELLO).pack()
        hello = Header(wire.OK, wire.WANTS_HELLO, wire.SPEAKS).pack()
        assert await program.request(asked, b"", b"wait one") == [
            hello,
            b"",
            hello_body(packs.MAX_SIZE),
        ]
        await worker.log.wait("started wait one")
        await program.send(Header(wire.CANCEL, 1).pack(), b"", b"")
        await worker.log.wait("cancelled wait one: cancelled")
        await program.send(Header(wire.REQUEST, 2, 100).pack(), b"", b"wait two")
        await worker.log.wait("cancelled wait two: deadline")
        frame, _, *body = await program.request(Header(wire.REQUEST, 3).pack(), b"", b"fail")
        assert frame == Header(1, 3, wire.SPEAKS).pack()
        assert body[:2] == [b"trioreq-error", b"handler-failed"]
        assert server.statistics().replies_sent == 2  # the hello counts


async def test_program_killed(program: Program) -> None:
    worker = Worker()
    async with serving(worker, heartbeat=None) as server:
        await program.connect("REQ", server.endpoints[0])
        await program.send(b"wait")
        await worker.log.wait("started wait")
        program.kill()
        await worker.log.wait("cancelled wait: disconnected")


async def test_program_stopped(program: Program, command: list[str]) -> None:
    """One is stopped; another, which says nothing either, outlives several heartbeats."""
    worker = Worker()
    async with serving(worker, heartbeat=HEARTBEAT) as server, open_program(command) as healthy:
        await healthy.connect("REQ", server.endpoints[0])
        await healthy.send(b"wait healthy")
        await worker.log.wait("started wait healthy")
        silent_since = time.monotonic()
        await program.connect("REQ", server.endpoints[0])
        await program.send(b"wait")
        await worker.log.wait("started wait")
        program.stop()
        stopped = time.monotonic()
        await worker.log.wait("cancelled wait: disconnected")
        assert time.monotonic() - stopped < HEARTBEAT + SLACK
        await trio.sleep(silent_since + 4 * HEARTBEAT - time.monotonic())  # the subject: silence
        worker.release.set()
        assert await healthy.receive() == [b"re:wait healthy"]
        assert server.statistics().cancelled_by_disconnect == 1


async def test_client_with_program_rep(program: Program) -> None:
    with trio.fail_after(LIMIT):
        endpoint = await program.bind("REP", FREE)
        async with trioreq.open_client(endpoint) as client, trio.open_nursery() as nursery:

            async def answer() -> None:
                assert await program.receive() == [b"one"]
                await program.send(b"re:one")

            nursery.start_soon(answer)
            assert await client.request(b"one") == b"re:one"


async def test_client_with_program_router(program: Program) -> None:
    with trio.fail_after(LIMIT):
        endpoint = await program.bind("ROUTER", FREE)
        async with trioreq.open_client(endpoint) as client, trio.open_nursery() as nursery:

            async def ask(body: bytes) -> None:
                assert await client.request(body) == b"re:" + body

            nursery.start_soon(ask, b"one")
            nursery.start_soon(ask, b"two")
            messages = [await program.receive() for _ in range(2)]
            for *envelope, body in reversed(messages):
                await program.send(*envelope, b"re:" + body)
