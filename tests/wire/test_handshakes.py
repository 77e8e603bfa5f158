"""Peers that fail their handshake: what is counted, and what the log says. Real sockets.

Time is real. What is waited for is the server's count.
"""

from __future__ import annotations

import logging
import socket
from collections.abc import Callable
from typing import Any

import pytest
import trio
import zmq
from support.handlers import Worker
from support.serving import serving, until

import trioreq
from harness.clients import Clients
from harness.zmtp import GREETING, SIGNATURE, RawPeer, command, ready
from trioreq._protocol.handshakes import Failure
from trioreq._transport import limited_log, server_sockets

KEYS, OTHERS = trioreq.KeyPair.generate(), trioreq.KeyPair.generate()
HTTP = b"GET / HTTP/1.1\r\nHost: example.org\r\nUser-Agent: a browser\r\n\r\n"
TLS = b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(506)


@pytest.fixture(autouse=True)
def all_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each failure has its line in the log."""
    monkeypatch.setattr(limited_log, "EVERY", 0.0)


def failures(caplog: pytest.LogCaptureFixture, level: int = logging.WARNING) -> list[str]:
    return [
        record.getMessage()
        for record in caplog.records
        if "handshake with" in record.getMessage() and record.levelno == level
    ]


def curve(server_key: str) -> Callable[[zmq.Socket[bytes]], None]:
    def set_keys(peer: zmq.Socket[bytes]) -> None:
        peer.curve_serverkey = server_key.encode()
        peer.curve_publickey = KEYS.public.encode()
        peer.curve_secretkey = KEYS.secret.encode()

    return set_keys


def plain(peer: zmq.Socket[bytes]) -> None:
    peer.plain_username, peer.plain_password = b"user", b"password"


def null(peer: zmq.Socket[bytes]) -> None:
    pass


async def admit_all(applicant: trioreq.Applicant) -> str:
    return ""


async def fail_with(
    server: trioreq.Server, kind: int, set_options: Callable[[zmq.Socket[bytes]], None]
) -> None:
    """Connect a peer of libzmq's until the server has counted a failure."""
    failed = server.statistics().handshakes_failed
    with zmq.Context() as context, context.socket(kind) as peer:
        peer.linger = 0
        peer.reconnect_ivl = 10
        set_options(peer)
        peer.connect(server.endpoints[0])
        await until(lambda: server.statistics().handshakes_failed > failed)


@pytest.mark.parametrize(
    "kind", [zmq.SUB, zmq.XSUB, zmq.PUB, zmq.PUSH, zmq.PULL, zmq.PAIR, zmq.REP]
)
async def test_a_socket_of_the_wrong_type_is_counted_and_logged(
    addr: str, kind: int, caplog: pytest.LogCaptureFixture
) -> None:
    """libzmq#3697: such a peer connects again and again, and no side gets the reason."""
    async with serving(Worker(), addr) as server:
        while not failures(caplog):  # the peer may be the first to see it
            await fail_with(server, kind, null)
    expected = (Failure.FOREIGN.value, Failure.BROKEN_OFF.value)
    assert all(line.endswith(expected) for line in failures(caplog))


@pytest.mark.parametrize(
    "bytes_", [HTTP, TLS, b"hello\n", SIGNATURE + b"\x01\x05", b"\x01\x00"], ids=repr
)
async def test_another_protocol_is_counted_and_logged(
    addr: str, bytes_: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    async with serving(Worker(), addr) as server:
        for number in range(1, 4):
            with RawPeer(server.endpoints[0]) as peer:
                peer.send(bytes_)
                await until(lambda: server.statistics().handshakes_failed == number)  # noqa: B023
        assert server.statistics().connections == 0
    lines = failures(caplog)
    assert len(lines) == 3
    assert all(Failure.FOREIGN.value in line for line in lines)


async def test_the_address_is_that_of_the_peer(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async with serving(Worker()) as server:
        with RawPeer(server.endpoints[0], "127.0.0.7") as peer:
            await until(lambda: server.statistics().connections == 1)
            peer.send(HTTP)
            await until(lambda: server.statistics().handshakes_failed == 1)
    assert failures(caplog) == [f"handshake with 127.0.0.7 failed: {Failure.FOREIGN.value}"]


MECHANISMS: dict[str, dict[str, Any]] = {
    "NULL": {},
    "PLAIN": {"plain_insecure": True, "admit": admit_all},
    "CURVE": {"curve": trioreq.CurveServer(KEYS, {KEYS.public: "user"})},
}


@pytest.mark.parametrize(
    ("mechanism", "set_options"),
    [
        ("NULL", plain),
        ("NULL", curve(KEYS.public)),
        ("PLAIN", null),
        ("PLAIN", curve(KEYS.public)),
        ("CURVE", null),
        ("CURVE", plain),
    ],
)
async def test_another_mechanism_is_counted_and_logged(
    mechanism: str,
    set_options: Callable[[zmq.Socket[bytes]], None],
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Whichever side sees it first. If the client does, what is known may be no more than that."""
    caplog.set_level(logging.DEBUG)
    async with serving(Worker(), **MECHANISMS[mechanism]) as server:
        await fail_with(server, zmq.DEALER, set_options)
    expected = (Failure.MECHANISM, Failure.BROKEN_OFF, Failure.LEFT)
    lines = failures(caplog) + failures(caplog, logging.DEBUG)
    assert lines
    assert all(line.endswith(tuple(why.value for why in expected)) for line in lines)


async def test_a_mechanism_that_the_server_sees_first_is_logged(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async with serving(Worker()) as server:
        with RawPeer(server.endpoints[0]) as peer:
            peer.send(GREETING.replace(b"NULL\0", b"CURVE"))
            await until(lambda: server.statistics().handshakes_failed == 1)
    (line,) = failures(caplog)
    assert line.endswith(Failure.MECHANISM.value)


async def test_the_wrong_key_of_the_server_is_counted_and_logged(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async with serving(Worker(), **MECHANISMS["CURVE"]) as server:
        await fail_with(server, zmq.DEALER, curve(OTHERS.public))
    lines = failures(caplog)
    assert lines
    assert all(Failure.KEYS.value in line for line in lines)


@pytest.mark.parametrize("bytes_", [command(b"INITIATE"), command(b"PING", b"\0\0")], ids=repr)
async def test_a_command_out_of_order_is_counted_and_logged(
    addr: str, bytes_: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    async with serving(Worker(), addr) as server:
        with RawPeer(server.endpoints[0]) as peer:
            peer.send(GREETING + bytes_)
            await until(lambda: server.statistics().handshakes_failed == 1)
    (line,) = failures(caplog)
    assert Failure.MALFORMED.value in line


@pytest.mark.parametrize("bytes_", [b"", SIGNATURE, GREETING], ids=["nothing", "half", "greeting"])
async def test_a_handshake_that_takes_too_long_is_counted_and_logged(
    addr: str,
    bytes_: bytes,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(server_sockets, "HANDSHAKE", 0.1)
    async with serving(Worker(), addr) as server:
        with RawPeer(server.endpoints[0]):  # so that libzmq has had another error before
            pass
        await until(lambda: server.statistics().handshakes_failed == 1)
        with RawPeer(server.endpoints[0]) as peer:
            peer.send(bytes_)
            await until(lambda: server.statistics().handshakes_failed == 2)
    (line,) = failures(caplog)
    assert Failure.TIMED_OUT.value in line


@pytest.mark.parametrize("resets", [False, True])
async def test_a_health_check_is_counted_and_not_warned_of(
    addr: str, resets: bool, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    async with serving(Worker(), addr) as server:
        for number in range(1, 21):
            with RawPeer(server.endpoints[0]) as peer:
                if resets and peer.socket.family == socket.AF_INET:
                    peer.reset()
            await until(lambda: server.statistics().handshakes_failed == number)  # noqa: B023
    assert failures(caplog) == []
    assert len(failures(caplog, logging.DEBUG)) == 20


async def test_a_peer_that_closes_during_the_handshake_is_logged(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async with serving(Worker()) as server:
        with RawPeer(server.endpoints[0]) as peer:
            peer.send(GREETING[:20])
            looked = server._router._table
            await until(lambda: [c.spoke for c in looked] == [True])
        await until(lambda: server.statistics().handshakes_failed == 1)
    (line,) = failures(caplog)
    assert Failure.BROKEN_OFF.value in line


async def test_accepted_refused_and_evicted_connections_are_not_counted(
    clients: Clients, addr: str, caplog: pytest.LogCaptureFixture
) -> None:
    async def admit(applicant: trioreq.Applicant) -> str | None:
        return None if refusing else ""

    refusing = False
    async with serving(Worker(), addr, admit=admit, max_connections=2) as server:
        endpoint = server.endpoints[0]
        client = clients.connect(endpoint)
        assert await client.request(b"echo") == [b"re:echo"]
        with RawPeer(endpoint) as idle:
            await trio.to_thread.run_sync(idle.shake_hands)
            with RawPeer(endpoint) as beyond:
                await trio.to_thread.run_sync(beyond.read_end)
        await until(lambda: server.statistics().connections == 1)
        assert server.statistics().refused == 1
        assert not server._router.handshakes._open
        refusing = True
        for greeting in (GREETING, GREETING + ready([(b"Socket-Type", b"DEALER")])):
            with RawPeer(endpoint) as refused:
                refused.send(greeting)
                await trio.to_thread.run_sync(refused._read, len(GREETING))
                body = await trio.to_thread.run_sync(refused.read_frame)
                assert body.startswith(b"\x05ERROR")
            await until(lambda: server.statistics().connections == 1)
        assert server.statistics().refused == 3
        assert server.statistics().handshakes_failed == 0
    assert failures(caplog) == []


async def test_many_failures_have_a_line_a_second(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(limited_log, "EVERY", 1e9)
    async with serving(Worker()) as server:
        for _ in range(100):
            with RawPeer(server.endpoints[0]) as peer:
                peer.send(HTTP)
        await until(lambda: server.statistics().handshakes_failed == 100)
    assert len(failures(caplog)) == 1


@pytest.mark.slow
async def test_failures_among_healthy_and_idle_clients_are_counted_exactly(
    clients: Clients, addr: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All at the same time, so that libzmq's reports of success can be of any of them."""
    monkeypatch.setattr(server_sockets, "HANDSHAKE", 1.0)
    async with serving(Worker(), addr) as server:
        endpoint = server.endpoints[0]
        busy = [clients.connect(endpoint) for _ in range(20)]
        idle = [clients.connect(endpoint, zmq.DEALER) for _ in range(20)]
        strangers = []
        for number in range(60):
            strangers.append(RawPeer(endpoint))
            strangers[-1].send([HTTP, TLS, b"", GREETING][number % 4])
        async with trio.open_nursery() as nursery:
            for client in busy:
                nursery.start_soon(client.request, b"echo")
        for peer in strangers:
            peer.close()
        await until(lambda: server.statistics().handshakes_failed == 60)
        await until(lambda: server.statistics().connections == 40)
        await until(lambda: not server._router.handshakes._open)
        for client in busy + idle:
            client.close()
        await until(lambda: server.statistics().connections == 0)
        assert server.statistics().handshakes_failed == 60
        assert not server._router.handshakes._open
