"""One client has one address, on whatever socket it comes. Real sockets, and a real kernel.

Clients of IPv4 on a socket of IPv6 have addresses such as ``::ffff:127.0.0.1`` for the kernel.
"""

from __future__ import annotations

import logging
import subprocess
import sys
from collections.abc import Sequence

import pytest
import trio
from support.handlers import Worker
from support.serving import serving, until

import trioreq
from harness import cable
from harness.clients import Clients
from harness.zmtp import RawPeer

BANNED = {"127.0.0.9"}


def port(endpoint: str) -> str:
    return endpoint.rpartition(":")[2]


async def whoami(request: trioreq.Request) -> bytes:
    return request.client.address.encode()


@pytest.mark.parametrize("addr", ["tcp://[::]:0", "tcp://[::ffff:127.0.0.1]:0"])
async def test_a_client_of_ipv4_has_the_same_address_on_a_socket_of_ipv6(
    addr: str, clients: Clients, caplog: pytest.LogCaptureFixture
) -> None:
    asked: list[str] = []

    async def admit(applicant: trioreq.Applicant) -> str | None:
        await trio.lowlevel.checkpoint()
        asked.append(applicant.address)
        return None if applicant.address in BANNED else ""

    caplog.set_level(logging.INFO)
    async with serving(whoami, addr, admit=admit) as server:
        endpoint = f"tcp://127.0.0.1:{port(server.endpoints[0])}"
        assert await clients.connect(endpoint).request(b"") == [b"127.0.0.1"]
        with RawPeer(endpoint, "127.0.0.9") as banned:
            banned.ask()
            await until(lambda: server.statistics().refused == 1)
        assert asked == ["127.0.0.1", "127.0.0.9"]
        [connection] = [one for one in server._router.connections if one.peer is not None]
        server._router.evict(connection, "a test evicts it")
    assert "refused 127.0.0.9: admit refused it" in caplog.messages
    assert f"evicted connection {connection.id} from 127.0.0.1: a test evicts it" in caplog.messages
    assert "ffff" not in caplog.text


async def test_the_meaning_of_an_address_does_not_depend_on_the_others(clients: Clients) -> None:
    """As with IPv6 for the whole socket, where 127.0.0.1 was bound as ::ffff:127.0.0.1."""
    addrs: Sequence[str] = ("tcp://127.0.0.1:0", "tcp://[::1]:0", "tcp://*:0")
    async with serving(whoami, addrs) as server:
        four, six, every = server.endpoints
        assert [one.rpartition(":")[0] for one in server.endpoints] == [
            "tcp://127.0.0.1",
            "tcp://[::1]",
            "tcp://0.0.0.0",
        ]
        assert await clients.connect(four).request(b"") == [b"127.0.0.1"]
        assert await clients.connect(six, IPV6=1).request(b"") == [b"::1"]
        every = f"tcp://127.0.0.1:{port(every)}"
        assert await clients.connect(every).request(b"") == [b"127.0.0.1"]


async def test_one_address_has_one_limit_on_all_sockets() -> None:
    addrs: Sequence[str] = ("tcp://[::]:0", "tcp://127.0.0.1:0")
    async with serving(whoami, addrs, max_connections_per_address=1) as server:
        mapped, plain = (f"tcp://127.0.0.1:{port(endpoint)}" for endpoint in server.endpoints)
        with RawPeer(mapped) as first:
            await trio.to_thread.run_sync(first.shake_hands)
            with RawPeer(plain) as second:
                await trio.to_thread.run_sync(second.read_end)
            with RawPeer(plain, "127.0.0.2") as other:
                await trio.to_thread.run_sync(other.shake_hands)
        assert server.statistics().refused == 1


async def test_an_ipv4_endpoint_is_written_as_such() -> None:
    async with serving(Worker(), "tcp://[::ffff:127.0.0.1]:0") as server:
        assert server.endpoints[0].startswith("tcp://127.0.0.1:")
    async with serving(Worker(), "tcp://::1:0") as server:  # no brackets
        assert server.endpoints[0].startswith("tcp://[::1]:")


LINK_LOCAL = """
import zmq, trio, trioreq

async def handler(request):
    return request.client.address.encode()

async def admit(applicant):
    return applicant.address

async def main():
    async with trio.open_nursery() as nursery:
        server = await nursery.start(
            lambda task_status: trioreq.serve(
                handler, "tcp://[fe80::1%lo]:0", admit=admit, task_status=task_status
            )
        )
        with zmq.Context() as context, context.socket(zmq.DEALER) as client:
            client.linger, client.ipv6, client.rcvtimeo = 0, 1, 10_000
            client.connect(server.endpoints[0])
            client.send_multipart([b"", b""])
            _, address = await trio.to_thread.run_sync(client.recv_multipart)
            [connection] = server._router.connections
            held = server._sockets.hold(connection.descriptor)
            print(server.endpoints[0].rpartition(":")[0], address.decode())
            print(connection.peer.user_id, held.address)
            held.close()
        nursery.cancel_scope.cancel()

trio.run(main)
"""


IPV6_ONLY = """
import trio, trioreq

async def handler(request):
    return b""

async def main():
    async with trio.open_nursery() as nursery:
        print((await nursery.start(trioreq.serve, handler, "tcp://lo:5555")).endpoints)
        nursery.cancel_scope.cancel()

trio.run(main)
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("more", "program", "says"),
    [
        (
            "ip address add fe80::1/64 dev lo nodad",
            LINK_LOCAL,
            "tcp://[fe80::1%lo] fe80::1%lo\nfe80::1%lo fe80::1%lo\n",
        ),
        ("ip address delete 127.0.0.1/8 dev lo", IPV6_ONLY, "('tcp://[::1]:5555',)\n"),
    ],
    ids=["a link-local address has its zone everywhere", "a name may have IPv6 addresses only"],
)
def test_in_a_network_of_its_own(more: str, program: str, says: str) -> None:
    """A name with IPv6 addresses alone: pyzmq#989 has it for clients."""
    if reason := cable.why_not():
        pytest.skip(reason)
    shell = f'ip link set lo up && {more} && exec "$@"'
    ran = subprocess.run(
        ["unshare", "-n", "sh", "-c", shell, "sh", sys.executable, "-c", program],
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert (ran.stdout, ran.returncode) == (says, 0), ran.stderr
