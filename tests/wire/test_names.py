"""Servers that are known by a host name: which addresses a client tries, and when it looks again.

The names are made up: `getaddrinfo` is replaced, and a name that is silent waits for the end of the
test. Sockets and time are real; everything waits for events, under a limit.
"""

from __future__ import annotations

import errno
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import pytest
import trio
from support.handlers import Worker
from support.serving import serving, until

import trioreq
from trioreq._transport import dealer, dealer_sockets
from trioreq._transport.names import LOOKUPS, Host, LookupFailed, look_up


class Names:
    """Names and their addresses.

    Attributes:
        addresses: Of each name.
        errors: What is raised for a name.
        silent: Names for which no answer comes.
        asked: The names that were looked up, each time.
    """

    def __init__(self) -> None:
        self.addresses: dict[str, list[str]] = {}
        self.errors: dict[str, Exception] = {}
        self.asked: list[str] = []
        self.silent: set[str] = set()
        self.end = threading.Event()
        self._real = socket.getaddrinfo

    def getaddrinfo(self, host: str, port: int, **options: Any) -> list[Any]:
        self.asked.append(host)
        if host in self.silent:
            assert self.end.wait(20)
            raise socket.gaierror(socket.EAI_AGAIN, "Temporary failure in name resolution")
        if host in self.errors:
            raise self.errors[host]
        if host not in self.addresses:
            return self._real(host, port, **options)
        return [
            found
            for address in self.addresses[host]
            for found in self._real(address, port, **options)
        ]


@pytest.fixture
def dns(monkeypatch: pytest.MonkeyPatch) -> Iterator[Names]:
    made = Names()
    monkeypatch.setattr(socket, "getaddrinfo", made.getaddrinfo)
    yield made
    made.end.set()


def port_of(server: trioreq.Server) -> str:
    return server.endpoints[0].rpartition(":")[2]


@pytest.mark.parametrize("at", ["127.0.0.1", "[::1]"])
@pytest.mark.parametrize("addresses", [["::1", "127.0.0.1"], ["127.0.0.1", "::1"]])
async def test_a_server_on_one_of_the_addresses_is_found(
    dns: Names, at: str, addresses: list[str]
) -> None:
    """As ``localhost`` is of both families. libzmq takes the first alone (libzmq#4313)."""
    dns.addresses["both.test"] = addresses
    async with (
        serving(Worker(), f"tcp://{at}:0") as server,
        trioreq.open_client(f"tcp://both.test:{port_of(server)}") as client,
    ):
        assert await client.request(b"echo") == b"re:echo"
        assert server.statistics().connections == 1


@pytest.mark.parametrize(("name", "at"), [("v6.test", "::1"), ("v4.test", "127.0.0.1")])
async def test_a_name_of_one_family(dns: Names, name: str, at: str) -> None:
    """IPv6 is off in libzmq unless it is asked for, for names too (pyzmq#989)."""
    dns.addresses[name] = [at]
    async with (
        serving(Worker(), f"tcp://[{at}]:0" if ":" in at else f"tcp://{at}:0") as server,
        trioreq.open_client(f"tcp://{name}:{port_of(server)}") as client,
    ):
        assert await client.request(b"echo") == b"re:echo"


@pytest.mark.parametrize("host", ["[::1]", "[::1%1]", "[0:0::1]"])
async def test_an_address_in_brackets(host: str) -> None:
    """Also with a zone (pyzmq#1226)."""
    async with (
        serving(Worker(), "tcp://[::1]:0") as server,
        trioreq.open_client(f"tcp://{host}:{port_of(server)}") as client,
    ):
        assert await client.request(b"echo") == b"re:echo"


async def test_a_source_address_stays(dns: Names) -> None:
    dns.addresses["v4.test"] = ["127.0.0.1"]
    peers: list[str] = []

    async def handler(request: trioreq.Request) -> bytes:
        peers.append(request.client.address)
        return b""

    async with (
        serving(handler) as server,
        trioreq.open_client(f"tcp://127.0.0.2:0;v4.test:{port_of(server)}") as client,
    ):
        await client.request(b"x")
    assert peers == ["127.0.0.2"]


async def test_an_address_is_not_looked_up(dns: Names) -> None:
    assert await look_up(Host("tcp://", "127.0.0.1", 5555)) == ["tcp://127.0.0.1:5555"]
    assert await look_up(Host("tcp://", "::1", 5555)) == ["tcp://[::1]:5555"]
    assert not dns.asked


async def test_a_zone_is_the_number_of_an_interface() -> None:
    number = socket.if_nametoindex("lo")
    assert await look_up(Host("tcp://", "fe80::1%lo", 5555)) == [f"tcp://[fe80::1%{number}]:5555"]


async def test_a_name_is_looked_up_again_for_the_next_connection(dns: Names) -> None:
    """A service that has moved is found (kazoo#794, libzmq#2297)."""
    dns.addresses["moves.test"] = ["127.0.0.1"]
    async with serving(Worker(), "tcp://127.0.0.1:0") as first:
        port = port_of(first)
        async with (
            serving(Worker(), f"tcp://127.0.0.2:{port}") as second,
            trioreq.open_client(f"tcp://moves.test:{port}") as client,
        ):
            await client.request(b"echo")
            assert first.statistics().connections == 1
            dns.addresses["moves.test"] = ["127.0.0.2"]
            await first.drain(0)
            assert await client.request(b"echo") == b"re:echo"
            assert second.statistics().connections == 1


@contextmanager
def black_hole(address: str, port: int) -> Iterator[None]:
    """Let nothing answer there: the kernel drops what comes for a listener whose queue is full."""
    with ExitStack() as stack:
        listener = stack.enter_context(socket.socket())
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((address, port))
        listener.listen(0)
        for _ in range(2):
            filler = stack.enter_context(socket.socket())
            filler.setblocking(False)
            filler.connect_ex((address, port))
        yield


@pytest.mark.slow
async def test_the_next_address_is_tried_beside_one_that_does_not_answer(dns: Names) -> None:
    dns.addresses["both.test"] = ["127.0.0.2", "127.0.0.1"]
    async with serving(Worker()) as server:
        port = port_of(server)
        with black_hole("127.0.0.2", int(port)), trio.fail_after(3):
            async with trioreq.open_client(f"tcp://both.test:{port}") as client:
                assert await client.request(b"echo") == b"re:echo"


async def test_the_first_address_that_answers_is_taken_and_no_other(
    dns: Names, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also if it took so long that the others were tried as well."""
    monkeypatch.setattr(dealer_sockets, "NEXT_ADDRESS", 0.0)
    dns.addresses["both.test"] = ["127.0.0.1", "127.0.0.2"]
    async with serving(Worker()) as first:
        port = port_of(first)
        async with (
            serving(Worker(), f"tcp://127.0.0.2:{port}") as second,
            trioreq.open_client(f"tcp://both.test:{port}") as client,
        ):
            for _ in range(3):
                assert await client.request(b"echo") == b"re:echo"
            await until(
                lambda: first.statistics().connections + second.statistics().connections == 1
            )
            assert {first.statistics().replied, second.statistics().replied} == {0, 3}


@pytest.mark.slow
async def test_a_name_none_of_whose_addresses_answers_is_looked_up_again(
    dns: Names, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dealer, "NO_ANSWER", 0.1)
    dns.addresses["moves.test"] = ["127.0.0.2"]
    async with serving(Worker()) as server:
        port = port_of(server)
        endpoint = f"tcp://moves.test:{port}"
        with black_hole("127.0.0.2", int(port)):
            async with trioreq.open_client(endpoint, connect_timeout=0.5) as client:
                with pytest.raises(trioreq.NotConnected, match=r"tried .*: nothing answers"):
                    await client.request(b"echo")
                dns.addresses["moves.test"] = ["127.0.0.1"]
                await until(lambda: client.timings is not None)
                assert await client.request(b"echo") == b"re:echo"


async def test_an_address_where_the_handshake_fails_is_the_last_of_the_next_try(
    dns: Names,
) -> None:
    """Such as one where something else listens."""
    dns.addresses["both.test"] = ["127.0.0.2", "127.0.0.1"]
    async with serving(Worker()) as server, trio.open_nursery() as nursery:
        port = port_of(server)
        other = trio.socket.socket()
        await other.bind(("127.0.0.2", int(port)))
        other.listen()

        @nursery.start_soon
        async def close_each() -> None:
            while True:
                (await other.accept())[0].close()

        async with trioreq.open_client(f"tcp://both.test:{port}") as client:
            assert await client.request(b"echo") == b"re:echo"
        nursery.cancel_scope.cancel()
        other.close()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("error", "number", "says"),
    [
        (socket.gaierror, socket.EAI_NONAME, "does not exist .*: is it spelled right"),
        (socket.gaierror, socket.EAI_NODATA, "does not exist .*: is it spelled right"),
        (socket.gaierror, socket.EAI_AGAIN, "cannot be looked up .*: does the name server"),
        (OSError, errno.EMFILE, "cannot be looked up: "),  # EAI_SYSTEM
    ],
)
async def test_a_name_without_an_address_is_reported(
    dns: Names, error: type[OSError], number: int, says: str
) -> None:
    """And is looked up again: a service may be given its name later than its clients start."""
    dns.errors["wrong.test"] = error(number, "as the system says")
    async with (
        serving(Worker()) as server,
        trioreq.open_client(f"tcp://wrong.test:{port_of(server)}", connect_timeout=0.3) as client,
    ):
        with pytest.raises(trioreq.NotConnected, match=f"the name 'wrong.test' {says}") as caught:
            await client.request(b"x")
        assert "in 0.3 s" in str(caught.value)
        assert "as the system says" in str(caught.value)
        del dns.errors["wrong.test"]
        dns.addresses["wrong.test"] = ["127.0.0.1"]
        await until(lambda: client.timings is not None)
        assert await client.request(b"echo") == b"re:echo"


async def test_a_lookup_without_a_thread_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    async def fail(*_: Any, **__: Any) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(trio.to_thread, "run_sync", fail)
    with pytest.raises(LookupFailed, match="can't start new thread"):
        await look_up(Host("tcp://", "name.test", 5555))


@pytest.mark.slow
async def test_without_a_listener_the_error_has_the_addresses(dns: Names) -> None:
    dns.addresses["both.test"] = ["::1", "127.0.0.1"]
    async with trioreq.open_client("tcp://both.test:1", connect_timeout=0.3) as client:
        with pytest.raises(
            trioreq.NotConnected,
            match=r"tried tcp://\[::1\]:1, tcp://127.0.0.1:1: does a server listen there",
        ):
            await client.request(b"x")


@pytest.mark.slow
async def test_a_name_server_that_does_not_answer_blocks_nothing(dns: Names) -> None:
    """As it does where libzmq looks names up (libzmq#2961, libzmq#3243)."""
    dns.silent.add("silent.test")
    with trio.fail_after(2):
        async with trioreq.open_client("tcp://silent.test:5555", connect_timeout=0.1) as client:
            with pytest.raises(trioreq.NotConnected, match="is being looked up"):
                await client.request(b"x")
            with pytest.raises(trioreq.NotConnected, match="is being looked up"):
                await client.request(b"x", timeout=0.1)
            with trio.move_on_after(0.1):
                await client.request(b"x")
    assert dns.asked == ["silent.test"]


@pytest.mark.slow
async def test_lookups_that_were_abandoned_take_a_bounded_number_of_threads(dns: Names) -> None:
    dns.silent.add("silent.test")

    async def open_and_leave() -> None:
        with trio.move_on_after(0.3):
            async with trioreq.open_client("tcp://silent.test:5555"):
                await trio.sleep_forever()

    with trio.fail_after(5):
        async with trio.open_nursery() as nursery:
            for _ in range(LOOKUPS + 4):
                nursery.start_soon(open_and_leave)
        assert len(dns.asked) == LOOKUPS
        limiter = trio.to_thread.current_default_thread_limiter()
        assert limiter.borrowed_tokens == 0  # threads of the program's own are not affected


INTERRUPTED = """
import socket, threading
import trio, trioreq

def getaddrinfo(*args, **options):
    print("looked up", flush=True)
    threading.Event().wait()

socket.getaddrinfo = getaddrinfo

async def main():
    async with trioreq.open_client("tcp://silent.test:5555", connect_timeout=None) as client:
        await client.request(b"x")

trio.run(main)
"""


@pytest.mark.slow
def test_ctrl_c_ends_a_client_whose_name_server_is_silent() -> None:
    with subprocess.Popen(
        [sys.executable, "-c", INTERRUPTED],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "looked up\n"
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=10)
    assert errors.endswith("KeyboardInterrupt\n"), errors
