"""The servers that are compared. Each echoes, and each is a process of its own.

    python -m benchmarks.servers NAME [--cpu N] [--trace]

prints the port that it listens on (tcp, on 127.0.0.1), and serves until it is killed. When it is
sent SIGUSR1 it prints one line of JSON about its memory (see `tell_memory`).
"""

from __future__ import annotations

import argparse
import asyncio
import ctypes
import gc
import importlib.util
import json
import os
import resource
import signal
import socket
import sys
import threading
import tracemalloc
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

from harness.processes import end_with_parent, pin, python_module, read_line, running

ADDRESS = "tcp://127.0.0.1:0"
GRPC_METHOD = "/benchmark/echo"


def listening(port: int) -> None:
    """Tell the parent where."""
    print(port, flush=True)


def _bound(socket_: Any) -> int:
    """Bind a zmq socket to a free port."""
    import zmq

    socket_.bind(ADDRESS)
    endpoint: bytes = socket_.getsockopt(zmq.LAST_ENDPOINT)
    return int(endpoint.rstrip(b"\0").rpartition(b":")[2])


# pyzmq, with nothing around it


def raw() -> None:
    """Three receives and three sends a request, in one thread."""
    import zmq

    router = zmq.Context().socket(zmq.ROUTER)
    listening(_bound(router))
    recv, send, more = router.recv, router.send, zmq.SNDMORE
    while True:
        routing_id = recv()
        empty = recv()
        body = recv()
        send(routing_id, more)
        send(empty, more)
        send(body)


def raw_multipart() -> None:
    """The same with the multipart calls."""
    import zmq

    router = zmq.Context().socket(zmq.ROUTER)
    listening(_bound(router))
    while True:
        router.send_multipart(router.recv_multipart())


def proxy(workers: int = 4) -> None:
    """A ROUTER, a DEALER and REP workers in threads, as the guide to ZeroMQ has it."""
    import zmq

    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()

    def work() -> None:
        worker = context.socket(zmq.REP)
        worker.connect("inproc://workers")
        while True:
            worker.send(worker.recv())

    front, back = context.socket(zmq.ROUTER), context.socket(zmq.DEALER)
    back.bind("inproc://workers")
    for _ in range(workers):
        threading.Thread(target=work, daemon=True).start()
    listening(_bound(front))
    zmq.proxy(front, back)


# asyncio


def zmq_asyncio(*, tasks: bool) -> None:
    """One coroutine that receives, and sends by itself or in a task for each request."""
    import zmq
    import zmq.asyncio

    async def main() -> None:
        router = zmq.asyncio.Context().socket(zmq.ROUTER)
        listening(_bound(router))
        running: set[asyncio.Task[object]] = set()

        async def answer(message: list[bytes]) -> None:
            await router.send_multipart(message)

        while True:
            message = await router.recv_multipart()
            if tasks:
                task = asyncio.create_task(answer(message))
                running.add(task)
                task.add_done_callback(running.discard)
            else:
                await router.send_multipart(message)

    asyncio.run(main())


def aiozmq() -> None:
    """A protocol of aiozmq that writes what it is given."""
    import aiozmq
    import zmq

    class Echo(aiozmq.ZmqProtocol):  # type: ignore[misc]
        def connection_made(self, transport: Any) -> None:
            self.transport = transport

        def msg_received(self, message: list[bytes]) -> None:
            self.transport.write(message)

    async def main() -> None:
        transport, _ = await aiozmq.create_zmq_connection(Echo, zmq.ROUTER, bind=ADDRESS)
        (endpoint,) = transport.bindings()
        listening(int(endpoint.rpartition(":")[2]))
        await asyncio.Event().wait()

    asyncio.run(main())


def grpc_aio() -> None:
    """A unary method on bytes."""
    import grpc
    import grpc.aio

    async def echo(request: bytes, _context: object) -> bytes:
        return request

    async def main() -> None:
        server = grpc.aio.server()
        handlers = {"echo": grpc.unary_unary_rpc_method_handler(echo)}
        server.add_generic_rpc_handlers(
            (grpc.method_handlers_generic_handler("benchmark", handlers),)
        )
        port = server.add_insecure_port("127.0.0.1:0")
        await server.start()
        listening(port)
        await server.wait_for_termination()

    asyncio.run(main())


# trio


def pynng(contexts: int = 256) -> None:
    """A Rep0 with many contexts, each in a task."""
    import pynng
    import trio

    async def serve_one(context: Any) -> None:
        while True:
            await context.asend(await context.arecv())

    async def main() -> None:
        with socket.create_server(("127.0.0.1", 0)) as free:
            port = free.getsockname()[1]
        with pynng.Rep0(listen=f"tcp://127.0.0.1:{port}") as rep:
            listening(port)
            async with trio.open_nursery() as nursery:
                for _ in range(contexts):
                    nursery.start_soon(serve_one, rep.new_context())

    trio.run(main)


def naive_trio(*, threads: bool) -> None:
    """What one writes first: a task for each request, with a scope to cancel it by.

    With `threads`, each request runs in `trio.to_thread.run_sync`.
    """
    import trio
    import zmq

    def echo(body: bytes) -> bytes:
        return body

    async def main() -> None:
        router = zmq.Context().socket(zmq.ROUTER)
        listening(_bound(router))

        async def answer(message: list[bytes]) -> None:
            with trio.CancelScope():
                if threads:
                    message[-1] = await trio.to_thread.run_sync(echo, message[-1])
                router.send_multipart(message)
            read()  # a send may eat the descriptor's news of what has come meanwhile

        def read() -> None:
            while int(router.getsockopt(zmq.EVENTS)) & zmq.POLLIN:
                nursery.start_soon(answer, router.recv_multipart())

        async with trio.open_nursery() as nursery:
            read()
            while True:
                await trio.lowlevel.wait_readable(router.fileno())
                read()

    trio.run(main)


def ours(*, plain: bool) -> None:
    """trioreq, with its defaults."""
    import trio

    import trioreq

    async def echo(request: trioreq.Request) -> bytes:
        return request.body

    def plain_echo(request: trioreq.Request) -> bytes:
        return request.body

    async def main() -> None:
        async with trio.open_nursery() as nursery:
            handler = plain_echo if plain else echo
            server = await nursery.start(trioreq.serve, handler, ADDRESS)
            listening(int(server.endpoints[0].rpartition(":")[2]))

    trio.run(main)


@dataclass(frozen=True)
class Contestant:
    """A server that can be started by its name."""

    name: str
    serve: Callable[[], None]
    needs: str = "zmq"  # a module
    protocol: str = "zmtp"  # what its clients speak

    @property
    def installed(self) -> bool:
        """Whether it can be started here."""
        return importlib.util.find_spec(self.needs) is not None


RAW, ASYNC, PLAIN = "raw", "trioreq async", "trioreq plain"
CONTESTANTS = {
    contestant.name: contestant
    for contestant in [
        Contestant(RAW, raw),
        Contestant("raw-multipart", raw_multipart),
        Contestant("proxy", proxy),
        Contestant("zmq.asyncio", lambda: zmq_asyncio(tasks=False)),
        Contestant("zmq.asyncio tasks", lambda: zmq_asyncio(tasks=True)),
        Contestant("aiozmq", aiozmq, "aiozmq"),
        Contestant("pynng", pynng, "pynng", "sp"),
        Contestant("grpc.aio", grpc_aio, "grpc", "grpc"),
        Contestant("naive trio", lambda: naive_trio(threads=False)),
        Contestant("naive trio threads", lambda: naive_trio(threads=True)),
        Contestant(ASYNC, lambda: ours(plain=False)),
        Contestant(PLAIN, lambda: ours(plain=True)),
    ]
}


def chosen(only: Iterable[str] | None) -> list[Contestant]:
    """Those that are wanted (None for all) and installed here, with `raw` among them."""
    found = []
    for name, contestant in CONTESTANTS.items():
        if only is not None and name not in (RAW, *only):
            continue
        if contestant.installed:
            found.append(contestant)
        else:
            print(f"left out: {name}, since {contestant.needs} is not installed", file=sys.stderr)
    return found


@dataclass(frozen=True)
class Serving:
    """A server that runs."""

    contestant: Contestant
    pid: int
    port: int
    read_line: Callable[[], str]

    def memory(self) -> dict[str, int]:
        """What `tell_memory` tells."""
        os.kill(self.pid, signal.SIGUSR1)
        told: dict[str, int] = json.loads(self.read_line())
        return told


@contextmanager
def serving(
    name: str, *, cpu: int | None = None, files: int = 0, trace: bool = False
) -> Iterator[Serving]:
    """Run a server; see `main` for what the options are."""
    arguments = ["--files", str(files)]
    arguments += ["--cpu", str(cpu)] if cpu is not None else []
    arguments += ["--trace"] if trace else []
    with running(python_module("benchmarks.servers", name, *arguments)) as process:
        port = int(read_line(process))
        yield Serving(CONTESTANTS[name], process.pid, port, lambda: read_line(process))


def tell_memory(_signal: int, _frame: FrameType | None) -> None:
    """Print the bytes that Python has in use (if it is traced), and those of the process.

    What is free is given back to the system first, so that a figure says what is held.
    """
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    told = {
        "python": tracemalloc.get_traced_memory()[0],
        "resident": pages * os.sysconf("SC_PAGESIZE"),
    }
    print(json.dumps(told), flush=True)


def allow_files(count: int) -> None:
    """Let this process open so many files.

    Raises:
        SystemExit: The system does not allow it.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < count:
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (count, max(hard, count)))
        except (ValueError, OSError) as error:
            raise SystemExit(
                f"the server needs {count} open files, and the system allows {hard} (ulimit -n)"
            ) from error


def main() -> None:
    """Be one of the servers."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("name", choices=CONTESTANTS)
    parser.add_argument("--cpu", type=int, help="the processor to stay on")
    parser.add_argument("--files", type=int, default=0, help="open files to allow")
    parser.add_argument("--trace", action="store_true", help="let tracemalloc count")
    options = parser.parse_args()
    end_with_parent()
    pin(options.cpu)
    allow_files(options.files)
    if options.trace:
        tracemalloc.start()
    signal.signal(signal.SIGUSR1, tell_memory)
    CONTESTANTS[options.name].serve()


if __name__ == "__main__":
    main()
