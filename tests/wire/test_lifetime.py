"""How the server begins and ends, on real sockets: what it leaves behind, and Ctrl-C.

Time is real; everything waits for events, under a limit.
"""

from __future__ import annotations

import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import psutil
import pytest
import trio
import zmq
from support.handlers import Worker
from support.serving import serving, until

import trioreq
from harness.clients import ClientProcess, Clients, open_clients
from harness.zmtp import LIMIT
from trioreq._transport import linux
from trioreq._transport.server_sockets import LINGER, BoundSockets

pytestmark = pytest.mark.slow


async def test_a_slow_client_delays_the_end_for_a_bounded_time(
    addr: str, peer: ClientProcess
) -> None:
    async def handler(request: trioreq.Request) -> bytes:
        return b"x" * 2**22

    async with serving(handler, addr) as server:
        await peer.connect(server.endpoints[0], "DEALER", RCVHWM=1)
        for _ in range(10):
            await peer.send("", "x")
        await until(lambda: server.statistics().replied == 10)
        peer.stop()
        before = time.monotonic()
    assert time.monotonic() - before < 5


def threads() -> int:
    """How many threads there are for plain functions."""
    return sum(thread.name == "trioreq" for thread in threading.enumerate())


async def test_threads_that_wait_for_work_end_with_the_server(addr: str, clients: Clients) -> None:
    together = threading.Barrier(3)

    def handler(request: trioreq.Request) -> bytes:
        together.wait(LIMIT)
        return b"done"

    async with serving(handler, addr, workers=3) as server:
        client = clients.connect(server.endpoints[0], zmq.DEALER)
        for _ in range(3):
            await client.send(b"", b"x")
        for _ in range(3):
            assert (await client.receive())[-1] == b"done"
        assert threads() == 3
    with trio.fail_after(LIMIT):
        while threads():  # noqa: ASYNC110  # there is no event for them
            await trio.sleep(0.01)


def test_the_linger_is_set_before_an_address_is_bound(
    addr: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A connection that breaks just then takes what its listener was bound with.

    With libzmq's own, which is none, one such end in a thousand lasted forever.
    """
    bound = []
    bind = BoundSockets._bind

    def spy(self: BoundSockets, addr: str) -> str:
        bound.append(self._router.linger)
        return bind(self, addr)

    monkeypatch.setattr(BoundSockets, "_bind", spy)

    async def main() -> None:
        async with serving(Worker(), addr) as server:
            assert server.endpoints

    trio.run(main)
    assert bound == [round(LINGER * 1000)]


@pytest.mark.parametrize("how", ["cancel", "drain"])
async def test_nothing_stays_behind(addr: str, how: str) -> None:
    """No task, descriptor or ipc file; and no thread but the idle ones that trio keeps a while."""
    process = psutil.Process()

    async def once() -> None:
        worker = Worker()
        async with serving(worker, addr) as server:
            with open_clients() as clients:
                client, dies_with_it = (clients.connect(server.endpoints[0]) for _ in range(2))
                assert await client.request(b"echo") == [b"re:echo"]
                await dies_with_it.send(b"wait")
                await worker.log.wait("started wait")
            if how == "drain":
                await server.drain(1)

    await once()  # makes what is made once and kept, such as trio's own thread
    tasks = trio.lowlevel.current_statistics().tasks_living
    descriptors = process.num_fds()
    threads = threading.active_count()
    for _ in range(5):
        await once()
    assert trio.lowlevel.current_statistics().tasks_living == tasks
    assert process.num_fds() == descriptors
    assert threading.active_count() <= threads
    assert not Path(addr.removeprefix("ipc://")).exists()  # noqa: ASYNC240  # a look, no wait


SERVER = """
import signal, sys, time, trio, trioreq

def show(*_):
    tasks = [trio.lowlevel.current_root_task()]
    for task in tasks:
        print(task.name, [frame.f_code.co_name for frame, _ in task.iter_await_frames()],
              file=sys.stderr, flush=True)
        for nursery in task.child_nurseries:
            tasks.extend(nursery.child_tasks)

signal.signal(signal.SIGUSR1, show)

async def wait(request):
    if request.body == b"ping":
        return b"pong"
    try:
        await trio.sleep_forever()
    finally:
        print("cancelled", request.cancel_reason, flush=True)

def spin(request):
    if request.body == b"ping":
        return b"pong"
    try:
        while True:
            trioreq.check_cancelled()
            time.sleep(0.001)
    except trioreq.RequestCancelled as cancelled:
        print("cancelled", cancelled.reason, flush=True)
        raise

async def busy(request):
    print("started", flush=True)
    while True:
        pass

async def main():
    async with trio.open_nursery() as nursery:
        server = await nursery.start(trioreq.serve, globals()[sys.argv[1]], sys.argv[2])
        print(server.endpoints[0], flush=True)

if sys.argv[3] == "direct":
    print("ipc://" + sys.argv[2].removeprefix("ipc://"), flush=True)
    trio.run(trioreq.serve, globals()[sys.argv[1]], sys.argv[2])
else:
    trio.run(main)
"""


@pytest.mark.parametrize("kind", ["wait", "spin", "busy"])
@pytest.mark.parametrize("call", ["direct", "nursery"])
async def test_ctrl_c_ends_all_of_it_and_comes_out_as_keyboard_interrupt(
    kind: str, call: str, clients: Clients, tmp_path: Path
) -> None:
    path = tmp_path / "socket"
    with trio.fail_after(30):
        process = await trio.lowlevel.open_process(
            [sys.executable, "-X", "faulthandler", "-c", SERVER, kind, f"ipc://{path}", call],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
        )
        assert process.stdout is not None
        assert process.stderr is not None
        out = b""
        async with process.stdout, process.stderr:
            try:
                while b"\n" not in out:
                    out += await process.stdout.receive_some()
                client = clients.connect(f"ipc://{path}", zmq.DEALER)
                await client.send(b"", b"x")
                if kind == "busy":
                    while b"started" not in out:
                        out += await process.stdout.receive_some()
                else:  # answered in turn: when this one is, the first is at work
                    assert await client.request(b"", b"ping") == [b"", b"pong"]
                process.send_signal(signal.SIGINT)
                assert (await client.receive())[1:3] == [b"trioreq-error", b"shutting-down"]
                while more := await process.stdout.receive_some():
                    out += more
                errors = b""
                while more := await process.stderr.receive_some():
                    errors += more
                await process.wait()
            finally:
                if process.returncode is None:  # what it shows on standard error tells why
                    for number in (signal.SIGUSR1, signal.SIGINT, signal.SIGABRT):
                        process.send_signal(number)
                        with trio.move_on_after(1, shield=True):
                            while more := await process.stderr.receive_some():
                                sys.stderr.write(more.decode())
                        sys.stderr.write(f"-- after {number.name}\n")
                    process.kill()
                    with trio.CancelScope(shield=True):
                        await process.wait()
    if kind != "busy":
        assert b"cancelled shutdown" in out
    assert "KeyboardInterrupt" in errors.decode()
    if call == "direct":  # nothing around it, not even an ExceptionGroup
        assert process.returncode == -signal.SIGINT
        assert errors.decode().splitlines()[-1] == "KeyboardInterrupt"
        assert "Group" not in errors.decode()
    assert not path.exists()


async def test_the_loop_is_not_blocked_while_the_last_words_go_out(peer: ClientProcess) -> None:
    """The linger runs in a thread."""

    async def handler(request: trioreq.Request) -> bytes:
        return b"x" * 2**22

    async with serving(handler) as server:
        await peer.connect(server.endpoints[0], "DEALER", RCVHWM=1)
        for _ in range(10):
            await peer.send("", "x")
        await until(lambda: server.statistics().replied == 10)
        peer.stop()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(server.drain, 0)
            longest = 0.0
            while nursery.child_tasks:
                before = trio.current_time()
                await trio.sleep(0.001)
                longest = max(longest, trio.current_time() - before)
        assert longest < 0.4


def test_two_servers_in_two_threads_do_not_meet() -> None:
    """Each has a Context of its own, so each has its own gate."""
    results: list[bytes] = []

    async def main() -> None:
        async with serving(Worker()) as server:
            await trio.to_thread.run_sync(ask, server.endpoints[0])

    def ask(endpoint: str) -> None:
        with zmq.Context() as context, context.socket(zmq.REQ) as client:
            client.connect(endpoint)
            client.send(b"echo")
            results.append(client.recv())

    threads = [threading.Thread(target=trio.run, args=(main,)) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert results == [b"re:echo", b"re:echo"]


def test_importing_makes_no_socket_thread_or_log_output() -> None:
    code = "import os, threading, {}; print(threading.active_count(), os.listdir('/proc/self/fd'))"
    ours, theirs = (
        subprocess.run(
            [sys.executable, "-c", code.format(modules)], capture_output=True, check=True
        )
        for modules in ("trioreq", "zmq, trio")
    )
    assert ours.stdout == theirs.stdout
    assert not ours.stderr


# A drain.


def refused(endpoint: str) -> bool:
    """Whether the system refuses a connection, as it does without a listener."""
    transport, _, rest = endpoint.partition("://")
    try:
        if transport == "ipc":
            with socket.socket(socket.AF_UNIX) as client:
                client.connect(rest)
        else:
            host, _, port = rest.rpartition(":")
            socket.create_connection((host.strip("[]"), int(port)), timeout=LIMIT).close()
    except (ConnectionRefusedError, FileNotFoundError):
        return True
    return False


async def test_a_drain_refuses_connections_and_finishes_those_that_there_are(
    tmp_path: Path, clients: Clients
) -> None:
    """On all addresses. A balancer's check fails, and an established connection is not affected."""
    worker = Worker()
    addresses = ["tcp://127.0.0.1:0", "tcp://[::1]:0", f"ipc://{tmp_path}/socket"]
    async with serving(worker, addresses) as server:
        assert not any(map(refused, server.endpoints))
        present = [clients.connect(endpoint, IPV6=1) for endpoint in server.endpoints]
        for client in present:
            await client.send(b"wait")
        await worker.log.wait("started wait", 3)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(server.drain, LIMIT)
            await until(lambda: server._requests.closing)
            assert all(map(refused, server.endpoints))
            worker.release.set()
            for client in present:
                assert await client.receive() == [b"re:wait"]


async def test_where_the_system_cannot_refuse_connections_they_are_closed_at_once(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, clients: Clients
) -> None:
    worker = Worker()
    monkeypatch.setattr(linux, "LINUX", False)
    async with serving(worker) as server:
        present = clients.connect(server.endpoints[0])
        await present.send(b"wait")
        await worker.log.wait("started wait")
        async with trio.open_nursery() as nursery:
            nursery.start_soon(server.drain, LIMIT)
            await until(lambda: server._requests.closing)
            host, _, port = server.endpoints[0].removeprefix("tcp://").rpartition(":")
            stream = await trio.open_tcp_stream(host, int(port))
            with trio.fail_after(LIMIT):
                while await stream.receive_some():  # libzmq's greeting may come first
                    pass
            await stream.aclose()
            await until(lambda: server.statistics().refused == 1)
            worker.release.set()
            assert await present.receive() == [b"re:wait"]
    assert "the server drains" in caplog.text
