"""JeroMQ 0.3: ZeroMQ rewritten in Java, with ZMTP 2 as the newest protocol that it speaks.

The server accepts only ZMTP 3. A proxy of libzmq's speaks both, and there it can be used.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from unittest import mock

import pytest
import trio
from support.handlers import Worker
from support.plain import proxied
from support.programs import Program, open_program
from support.serving import LIMIT, serving, until

import trioreq
from harness.clients import Clients
from trioreq._protocol import envelope as wire
from trioreq._protocol.connection_table import Connection, ConnectionTable
from trioreq._protocol.envelope import Header
from trioreq._protocol.hello import hello_body


@pytest.fixture
async def program(old_java: list[str], versions: dict[str, list[str]]) -> AsyncIterator[Program]:
    async with open_program(old_java) as opened:
        told = await opened.version()
        versions[" ".join(told)] = told
        yield opened


async def test_old_java_is_refused(program: Program, clients: Clients) -> None:
    """None of its attempts succeeds, and it affects no other client."""
    tries = 0
    disconnected = ConnectionTable.disconnected

    def spy(self: ConnectionTable, descriptor: int) -> Connection | None:
        nonlocal tries
        tries += 1
        return disconnected(self, descriptor)

    worker = Worker()
    with mock.patch.object(ConnectionTable, "disconnected", spy):
        async with serving(worker) as server:
            await program.connect("REQ", server.endpoints[0])
            await program.send(b"echo java")
            await until(lambda: tries >= 3)
            assert await clients.connect(server.endpoints[0]).request(b"echo") == [b"re:echo"]
            assert worker.log.count("started echo java") == 0


async def test_old_java_req_behind_a_proxy(program: Program) -> None:
    async with serving(Worker()) as server:
        with proxied(server.endpoints[0]) as endpoint:
            await program.connect("REQ", endpoint)
            assert await program.request(b"echo") == [b"re:echo"]
            assert await program.request(b"echo", b"", b"more") == [b"re:echo"]
            mark, code, text = await program.request(b"fail")
            assert (mark, code) == (b"trioreq-error", b"handler-failed")
            assert b"LookupError" in text


async def test_old_java_with_the_header_behind_a_proxy(program: Program) -> None:
    """Hello, status, cancel and deadline, from a client that has only the specification."""
    worker = Worker()
    async with serving(worker) as server:
        with proxied(server.endpoints[0]) as endpoint:
            await program.connect("DEALER", endpoint)
            asked = Header(wire.REQUEST, 1 | wire.WANTS_HELLO).pack()
            hello = Header(wire.OK, wire.WANTS_HELLO, wire.SPEAKS).pack()
            assert await program.request(asked, b"", b"wait one") == [hello, b"", hello_body(0)]
            await worker.log.wait("started wait one")
            await program.send(Header(wire.CANCEL, 1).pack(), b"", b"")
            await worker.log.wait("cancelled wait one: cancelled")
            await program.send(Header(wire.REQUEST, 2, 100).pack(), b"", b"wait two")
            await worker.log.wait("cancelled wait two: deadline")
            reply = await program.request(Header(wire.REQUEST, 3).pack(), b"", b"fail")
            assert reply[0] == Header(1, 3, wire.SPEAKS).pack()
            assert reply[1:4] == [b"", b"trioreq-error", b"handler-failed"]


@pytest.mark.parametrize("end", ["kill", "stop"])
async def test_old_java_disconnects_behind_a_proxy(program: Program, end: str) -> None:
    """The proxy hides it; the server's ceiling ends the work."""
    worker = Worker()
    async with serving(worker, timeout=1, heartbeat=0.3) as server:
        with proxied(server.endpoints[0]) as endpoint:
            await program.connect("REQ", endpoint)
            await program.send(b"wait")
            await worker.log.wait("started wait")
            getattr(program, end)()
            await worker.log.wait("cancelled wait: deadline")
            assert server.statistics().connections == 1


async def test_client_with_old_java_rep(program: Program) -> None:
    """A server of ZMTP 2 is none to the client: it needs the handshake of ZMTP 3."""
    with trio.fail_after(LIMIT):
        endpoint = await program.bind("REP", "tcp://127.0.0.1:*")
        async with trioreq.open_client(endpoint, connect_timeout=0.5) as client:
            with pytest.raises(trioreq.NotConnected):
                await client.request(b"echo")
