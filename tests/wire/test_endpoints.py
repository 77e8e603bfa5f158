"""Which addresses can be served, and what is said of those that cannot. Real sockets."""

from __future__ import annotations

import errno
import os
import re
import socket
import tempfile
from pathlib import Path

import pytest
import trio
from support.handlers import Worker
from support.serving import serving

import trioreq
from harness.clients import Clients
from trioreq._transport import endpoints
from trioreq._transport.listeners import open_listeners


async def refused(addr: object) -> str:
    """What `serve` says of an address, at once."""
    with trio.fail_after(5), pytest.raises(trioreq.EndpointError) as caught:
        await trioreq.serve(Worker(), addr)  # type: ignore[arg-type]
    return str(caught.value)


@pytest.mark.parametrize("addr", ["tcp://127.0.0.1:0", "tcp://127.0.0.1:*", "tcp://*:0"])
async def test_a_free_port_is_chosen_and_reported(addr: str, clients: Clients) -> None:
    async with serving(Worker(), addr) as server:
        (endpoint,) = server.endpoints
        assert re.fullmatch(r"tcp://[\d.]+:[1-9]\d+", endpoint)
        client = clients.connect(endpoint.replace("0.0.0.0", "127.0.0.1"))
        assert await client.request(b"echo") == [b"re:echo"]


async def test_several_addresses_are_one_server(tmp_path: Path, clients: Clients) -> None:
    addrs = [
        "tcp://127.0.0.1:0",
        f"ipc://{tmp_path}/one",
        f"ipc://{tmp_path}/two",
        f"ipc://@trioreq-{os.getpid()}",
    ]
    async with serving(Worker(), addrs) as server:
        assert server.endpoints[1:] == tuple(addrs[1:])
        for endpoint in server.endpoints:
            assert await clients.connect(endpoint).request(b"echo") == [b"re:echo"]
        assert server.statistics().connections == 4


async def test_ipv6(clients: Clients) -> None:
    if not socket.has_ipv6:
        pytest.fail("this machine has no IPv6, and the server promises it")
    async with serving(Worker(), "tcp://[::1]:0") as server:
        assert server.endpoints[0].startswith("tcp://[::1]:")
        assert await clients.connect(server.endpoints[0], IPV6=1).request(b"echo") == [b"re:echo"]


@pytest.mark.parametrize(
    ("addr", "says"),
    [
        ("inproc://x", "use ipc or tcp"),
        ("udp://127.0.0.1:5555", "only tcp and ipc"),
        ("pgm://x", "only tcp and ipc"),
        ("127.0.0.1:5555", "write it as"),
        ("tcp://", "write it as"),
        ("", "write it as"),
        ("tcp://127.0.0.1", "write it as"),
        ("tcp://127.0.0.1:port", "write it as"),
        ("tcp://127.0.0.1:99999", "write it as"),
        ("tcp://192.0.2.1:5555", "no such address"),
        ("tcp://no.such.host.invalid:5555", "no such address"),
        ("ipc:///no/such/directory/socket", "make it first"),
        ("ipc:///etc/hostname/socket", "not a directory"),
        ("ipc:///tmp/" + "x" * 103, "shorter"),
        ("ipc:///tmp/" + "é" * 52, "shorter"),
        ("ipc://@" + "x" * 107, "shorter"),
        ("ipc:///tmp/\udcff", "is not UTF-8: choose another"),
        ("tcp://h\udcff:5555", "is not UTF-8: choose another"),
        ("ipc:///tmp/a\0b", "write it as"),
        ([], "at least one"),
    ],
)
async def test_an_invalid_address_is_refused_with_advice(addr: object, says: str) -> None:
    assert says in await refused(addr)


@pytest.mark.parametrize("start", ["/", "@"])
async def test_the_longest_names_of_ipc_can_be_served(
    tmp_path: Path, clients: Clients, start: str
) -> None:
    """And none that is longer, which `check` says before anything is bound."""
    name = (f"{tmp_path}/" if start == "/" else f"@{tmp_path}").ljust(107, "x")
    endpoints.check(f"ipc://{name}")
    async with serving(Worker(), f"ipc://{name}"):
        assert await clients.connect(f"ipc://{name}").request(b"echo") == [b"re:echo"]
    with pytest.raises(trioreq.EndpointError, match="too long"):
        endpoints.check(f"ipc://{name}x")


async def test_an_address_in_use_is_refused() -> None:
    async with serving(Worker()) as server:
        assert "in use" in await refused(server.endpoints[0])


async def test_a_stale_ipc_file_is_taken_over_and_that_of_a_live_server_is_not(
    tmp_path: Path, clients: Clients
) -> None:
    path = tmp_path / "socket"
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(path))
    assert path.is_socket()
    async with serving(Worker(), f"ipc://{path}"):
        assert "in use" in await refused(f"ipc://{path}")
        assert await clients.connect(f"ipc://{path}").request(b"echo") == [b"re:echo"]
    assert not path.exists()


async def test_a_path_that_is_chosen_is_absolute_and_removed(
    tmp_path: Path, clients: Clients, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where TMPDIR is not set, libzmq's own choice is relative to the working directory."""
    monkeypatch.chdir(tmp_path)
    for name in ("TMPDIR", "TEMPDIR", "TMP"):
        monkeypatch.delenv(name, raising=False)
    async with serving(Worker(), ["ipc://*", "ipc://*"]) as server:
        paths = [Path(endpoint.removeprefix("ipc://")) for endpoint in server.endpoints]
        assert all(path.is_absolute() and path.is_socket() for path in paths)
        assert len(set(paths)) == 2
        assert not list(await trio.Path(tmp_path).iterdir())
        monkeypatch.chdir("/")
        for endpoint in server.endpoints:
            assert await clients.connect(endpoint).request(b"echo") == [b"re:echo"]
    assert not any(path.parent.exists() for path in paths)


async def test_a_path_without_room_is_reported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "none"))
    assert "make it first" in await refused("ipc://*")
    long = tmp_path / ("x" * 100)
    long.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(long))
    assert "shorter" in await refused("ipc://*")
    with pytest.raises(trioreq.EndpointError, match="shorter"), open_listeners(["ipc://*"], [], 2):
        pass  # trioreq-server --processes
    assert not list(await trio.Path(long).iterdir())


async def test_a_live_server_with_a_full_backlog_is_not_replaced(tmp_path: Path) -> None:
    path = tmp_path / "socket"
    with socket.socket(socket.AF_UNIX) as busy, socket.socket(socket.AF_UNIX) as first:
        busy.bind(str(path))
        busy.listen(0)
        first.connect(str(path))
        assert "in use" in await refused(f"ipc://{path}")


async def test_a_file_that_is_not_a_socket_is_not_touched(tmp_path: Path) -> None:
    path = tmp_path / "precious"
    path.write_text("data")
    assert "not a socket" in await refused(f"ipc://{path}")
    assert path.read_text() == "data"


async def test_the_file_of_a_successor_is_not_removed(tmp_path: Path) -> None:
    path = tmp_path / "socket"
    async with serving(Worker(), f"ipc://{path}"):
        path.unlink()
        path.write_text("another's")
    assert path.read_text() == "another's"


async def test_the_first_addresses_are_given_back_if_a_later_one_fails(tmp_path: Path) -> None:
    path = tmp_path / "socket"
    assert "only tcp" in await refused([f"ipc://{path}", "udp://x"])
    assert not path.exists()


def test_errors_without_advice_have_the_systems_text() -> None:
    assert "Too many open files" in endpoints.explain("tcp://x", errno.EMFILE)


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"workers": 0}, ValueError),
        ({"workers": 2.5}, TypeError),
        ({"max_in_flight": 0}, ValueError),
        ({"max_queued_per_client": -1}, ValueError),
        ({"timeout": 0}, ValueError),
        ({"timeout": "1"}, TypeError),
        ({"timeout": float("nan")}, ValueError),
        ({"heartbeat": -1}, ValueError),
        ({"heartbeat": True}, TypeError),
        ({"max_message_size": 0}, ValueError),
        ({"send_queue": 0}, ValueError),
        ({"send_queue": 2**31}, ValueError),
    ],
)
async def test_options_are_checked_before_anything_is_bound(
    options: dict[str, object], error: type[Exception]
) -> None:
    (name,) = options
    with pytest.raises(error, match=name):
        await trioreq.serve(Worker(), "tcp://127.0.0.1:0", **options)  # type: ignore[arg-type]


async def test_a_handler_is_callable() -> None:
    with pytest.raises(TypeError, match="function of a request"):
        await trioreq.serve(b"no", "tcp://127.0.0.1:0")  # type: ignore[arg-type]


async def test_a_frame_over_the_limit_costs_its_sender_the_connection(clients: Clients) -> None:
    async with serving(Worker(), max_message_size=1000) as server:
        greedy, modest = clients.connect(server.endpoints[0]), clients.connect(server.endpoints[0])
        assert await greedy.request(b"echo" + b"x" * 900)
        await greedy.send(b"echo" + b"x" * 1000)
        assert await modest.request(b"echo") == [b"re:echo"]
        assert server.statistics().requests == 2
