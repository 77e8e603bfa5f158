"""The server where what only Linux has is missing, as on macOS.

The calls are taken away here; what another system's libzmq reports is made up. A server on another
system was not tried.
"""

from __future__ import annotations

import socket

import pytest
import trio
from support.handlers import Worker
from support.serving import serving, until

from harness.clients import Clients
from trioreq._transport import linux
from trioreq._transport.router import _peer


@pytest.fixture(autouse=True)
def _other_system(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(linux, "LINUX", False)
    monkeypatch.delattr(socket, "TCP_INFO")
    monkeypatch.delattr(socket, "SO_PEERCRED")


async def test_a_server_serves_and_looks_for_no_message_without_end(
    addr: str, clients: Clients
) -> None:
    tasks: list[str] = []

    class Names(trio.abc.Instrument):
        def task_spawned(self, task: trio.lowlevel.Task) -> None:
            tasks.append(task.name)

    trio.lowlevel.add_instrument(Names())
    async with serving(Worker(), addr) as server:
        client = clients.connect(server.endpoints[0])
        assert await client.request(b"echo") == [b"re:echo"]
        client.close()
        await until(lambda: server.statistics().connections == 0)
    assert "monitor" in tasks
    assert "message guard" not in tasks  # it has nothing to look at


async def test_connections_are_limited_and_on_ipc_all_count_as_one_users(
    addr: str, clients: Clients, caplog: pytest.LogCaptureFixture
) -> None:
    async with serving(Worker(), addr, max_connections_per_address=1) as server:
        first = clients.connect(server.endpoints[0])
        assert await first.request(b"echo") == [b"re:echo"]
        second = clients.connect(server.endpoints[0])
        await until(lambda: server.statistics().refused > 0)
        first.close()
        assert await second.request(b"echo") == [b"re:echo"]
    assert ("unknown uid" if addr.startswith("ipc") else "127.0.0.1") in caplog.text


@pytest.mark.parametrize(
    ("address", "uid", "pid"),
    [
        ("localhost:501:20:4711", 501, 4711),
        (
            "localhost:501:20:",
            501,
            None,
        ),  # as from libzmq where the kernel does not report the process
        ("localhost:501::", 501, None),
        ("localhost", None, None),
        ("", None, None),
    ],
)
def test_the_peer_of_an_ipc_address(address: str, uid: int | None, pid: int | None) -> None:
    peer = _peer(1, ("0", address, "REQ", "", ""))
    assert (peer.address, peer.uid, peer.pid) == (address, uid, pid)
