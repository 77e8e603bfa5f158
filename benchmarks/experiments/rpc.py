"""Other ways to serve requests, each with its own Python client.

A REP loop, zerorpc, grpc.aio, FastAPI on uvicorn, and trioreq, each as its documentation starts it.
Bodies have 64 bytes. Server and client are processes of their own, and what is measured is both
together:

- a call: one after the other, over one connection;
- many: 64 calls in flight at once, of one client;
- killed: the client is killed while the server works on its request, and the time is taken until
  the handler is cancelled. Work that is not cancelled ends by itself after `--work` seconds.

The contestants take turns, so that what else the machine does hits all alike.
"""

from __future__ import annotations

import argparse
import asyncio
import importlib.metadata
import importlib.util
import itertools
import math
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import trio
import zmq

import trioreq
from harness.processes import end_with_parent, python_module, read_line, running, tell

from ..shared import report

BODY = b"x" * 64
WAIT = b"wait"
MANY = 64  # calls in flight
KILLED = "cancelled after a kill"
METHOD = "/benchmark/ask"


def free_port() -> int:
    """A port that is free now, for servers that cannot choose one."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


# Each contestant is a server, and a client of three methods. The server says which port it has, and
# then `started`, and `told` or `finished`, for each request that is work.


def serve_rep(work: float) -> None:
    """A loop around a REP socket."""
    rep = zmq.Context().socket(zmq.REP)
    tell(str(rep.bind_to_random_port("tcp://127.0.0.1")))
    while True:
        body = rep.recv()
        if body == WAIT:
            tell("started")
            time.sleep(work)
            tell("finished")
        rep.send(body)


def serve_trioreq(work: float) -> None:
    """An async handler."""

    async def handler(request: trioreq.Request) -> bytes:
        if request.body == WAIT:
            tell("started")
            try:
                await trio.sleep(work)
                tell("finished")
            except trio.Cancelled:
                tell("told")
                raise
        return request.body

    async def main() -> None:
        async with trioreq.open_server(handler, "tcp://127.0.0.1:0") as server:
            tell(server.endpoints[0].rpartition(":")[2])
            await trio.sleep_forever()

    trio.run(main)


def serve_zerorpc(work: float) -> None:
    """A method of an object."""
    import gevent
    import zerorpc

    class Served:
        def ask(self, body: bytes) -> bytes:
            if body == WAIT:
                tell("started")
                try:
                    gevent.sleep(work)
                    tell("finished")
                except zerorpc.LostRemote:
                    tell("told")
                    raise
            return body

    server, port = zerorpc.Server(Served()), free_port()
    server.bind(f"tcp://127.0.0.1:{port}")
    tell(str(port))
    server.run()


async def _work(seconds: float) -> None:
    tell("started")
    try:
        await asyncio.sleep(seconds)
        tell("finished")
    except asyncio.CancelledError:
        tell("told")
        raise


def serve_grpc(work: float) -> None:
    """A unary method of grpc.aio."""
    import grpc
    import grpc.aio

    async def ask(body: bytes, _context: object) -> bytes:
        if body == WAIT:
            await _work(work)
        return body

    async def main() -> None:
        server = grpc.aio.server()
        methods = {"ask": grpc.unary_unary_rpc_method_handler(ask)}
        handler = grpc.method_handlers_generic_handler("benchmark", methods)
        server.add_generic_rpc_handlers((handler,))
        tell(str(server.add_insecure_port("127.0.0.1:0")))
        await server.start()
        await server.wait_for_termination()

    asyncio.run(main())


def serve_fastapi(work: float) -> None:
    """An async path operation."""
    import fastapi
    import uvicorn

    app = fastapi.FastAPI()

    async def ask(request: fastapi.Request) -> fastapi.Response:
        body = await request.body()
        if body == WAIT:
            await _work(work)
        return fastapi.Response(body)

    ask.__annotations__ = {"request": fastapi.Request, "return": fastapi.Response}
    app.post("/ask")(ask)
    port = free_port()

    server = uvicorn.Server(uvicorn.Config(app, port=port, log_level="critical"))
    begin = server.startup

    async def startup(sockets: list[socket.socket] | None = None) -> None:
        await begin(sockets)
        tell(str(port))

    vars(server)["startup"] = startup
    server.run()


def ask_zmq(port: int, what: str, amount: float) -> None:
    """A REQ socket for one call at a time, a DEALER for many."""
    kind = zmq.DEALER if what == "many" else zmq.REQ
    asking = zmq.Context().socket(kind)
    asking.connect(f"tcp://127.0.0.1:{port}")

    def call(body: bytes) -> None:
        asking.send(body)
        asking.recv()

    if what != "many":
        _one_by_one(call, what, amount)
        return
    number = 0
    for _ in range(MANY):
        asking.send_multipart([b"", BODY])
    end = time.perf_counter() + amount
    while time.perf_counter() < end:
        asking.recv_multipart()
        asking.send_multipart([b"", BODY])
        number += 1
    tell(f"{number / amount}")


def ask_zerorpc(port: int, what: str, amount: float) -> None:
    """`zerorpc.Client`, and greenlets for many."""
    import gevent
    import zerorpc

    client = zerorpc.Client(f"tcp://127.0.0.1:{port}")
    if what != "many":
        _one_by_one(client.ask, what, amount)
        return
    end = time.perf_counter() + amount

    def calls() -> int:
        number = 0
        while time.perf_counter() < end:
            client.ask(BODY)
            number += 1
        return number

    jobs = gevent.joinall([gevent.spawn(calls) for _ in range(MANY)], raise_error=True)
    tell(f"{sum(job.value for job in jobs) / amount}")


def _one_by_one(call: Callable[[bytes], object], what: str, amount: float) -> None:
    if what == "killed":
        call(WAIT)
    for _ in range(20):
        call(BODY)
    took = []
    for _ in range(int(amount)):
        start = time.perf_counter()
        call(BODY)
        took.append(time.perf_counter() - start)
    tell(f"{statistics.median(took) * 1000}")


async def _one_by_one_async(call: Callable[[bytes], Any], what: str, amount: float) -> None:
    if what == "killed":
        await call(WAIT)
    for _ in range(20):
        await call(BODY)
    took = []
    for _ in range(int(amount)):
        start = time.perf_counter()
        await call(BODY)
        took.append(time.perf_counter() - start)
    tell(f"{statistics.median(took) * 1000}")


def ask_trioreq(port: int, what: str, amount: float) -> None:
    """`open_client`."""

    async def main() -> None:
        async with trioreq.open_client(f"tcp://127.0.0.1:{port}") as client:
            if what != "many":
                await _one_by_one_async(client.request, what, amount)
                return
            end, number = time.perf_counter() + amount, 0

            async def calls() -> None:
                nonlocal number
                while time.perf_counter() < end:
                    await client.request(BODY)
                    number += 1

            async with trio.open_nursery() as nursery:
                for _ in range(MANY):
                    nursery.start_soon(calls)
            tell(f"{number / amount}")

    trio.run(main)


async def _many_async(call: Callable[[bytes], Any], amount: float) -> None:
    end = time.perf_counter() + amount

    async def calls() -> int:
        number = 0
        while time.perf_counter() < end:
            await call(BODY)
            number += 1
        return number

    tell(f"{sum(await asyncio.gather(*(calls() for _ in range(MANY)))) / amount}")


def ask_grpc(port: int, what: str, amount: float) -> None:
    """A channel of grpc.aio."""
    import grpc.aio

    async def main() -> None:
        async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
            call = channel.unary_unary(METHOD)
            if what == "many":
                await _many_async(call, amount)
            else:
                await _one_by_one_async(call, what, amount)

    asyncio.run(main())


def ask_fastapi(port: int, what: str, amount: float) -> None:
    """A session of aiohttp."""
    import aiohttp

    async def main() -> None:
        forever = aiohttp.ClientTimeout(total=None)
        async with aiohttp.ClientSession(timeout=forever) as session:

            async def call(body: bytes) -> None:
                async with session.post(f"http://127.0.0.1:{port}/ask", data=body) as response:
                    assert await response.read() == body

            if what == "many":
                await _many_async(call, amount)
            else:
                await _one_by_one_async(call, what, amount)

    asyncio.run(main())


@dataclass
class Contestant:
    """A server and its client."""

    name: str
    serve: Callable[[float], None]
    ask: Callable[[int, str, float], None]
    needs: tuple[str, ...] = ()
    calls: list[float] = field(default_factory=list)  # milliseconds
    many: list[float] = field(default_factory=list)  # calls a second
    killed: list[float] = field(default_factory=list)  # seconds; infinite: never cancelled

    @property
    def installed(self) -> bool:
        """Whether it can be started here."""
        return all(importlib.util.find_spec(module) for module in self.needs)


def contestants() -> dict[str, Contestant]:
    """All of them, by name."""
    found = [
        Contestant("REP loop", serve_rep, ask_zmq),
        Contestant("trioreq, REQ and DEALER", serve_trioreq, ask_zmq),
        Contestant("trioreq, open_client", serve_trioreq, ask_trioreq),
        Contestant("zerorpc", serve_zerorpc, ask_zerorpc, ("zerorpc",)),
        Contestant("grpc.aio", serve_grpc, ask_grpc, ("grpc",)),
        Contestant("FastAPI", serve_fastapi, ask_fastapi, ("fastapi", "uvicorn", "aiohttp")),
    ]
    return {contestant.name: contestant for contestant in found}


def next_event(process: subprocess.Popen[str]) -> tuple[str, int]:
    """The next report of a process, and its time."""
    event, _, when = read_line(process).rpartition(" ")
    return event, int(when)


@contextmanager
def asked(contestant: Contestant, port: str, what: str, amount: float) -> Iterator[Any]:
    """Run a client."""
    command = ("--ask", contestant.name, port, what, amount)
    with running(python_module("benchmarks", "rpc", *command)) as client:
        yield client


def measure(contestant: Contestant, options: argparse.Namespace) -> None:
    """One round of one contestant."""
    command = ("--serve", contestant.name, options.work)
    with running(python_module("benchmarks", "rpc", *command)) as server:
        port, _ = next_event(server)
        with asked(contestant, port, "calls", options.calls) as client:
            contestant.calls.append(float(next_event(client)[0]))
        with asked(contestant, port, "many", options.seconds) as client:
            contestant.many.append(float(next_event(client)[0]))
        with asked(contestant, port, "killed", 0) as client:
            next_event(server)
            killed = time.monotonic_ns()
            client.kill()
            event, when = next_event(server)
        contestant.killed.append((when - killed) / 1e9 if event == "told" else math.inf)


def shown(seconds: list[float]) -> str:
    """How long until handlers were cancelled."""
    median = statistics.median(seconds)
    if median == math.inf:
        return "never"
    return f"{median:.1f} s" if median >= 1 else f"{median * 1000:.1f} ms"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's options."""
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--calls", type=int, default=1000, help="one after the other (1000)")
    parser.add_argument("--seconds", type=float, default=2.0, help="with many in flight (2)")
    parser.add_argument("--work", type=float, default=20.0, help="of a killed client, seconds (20)")
    parser.add_argument("--only", nargs="+", choices=contestants(), metavar="NAME")
    parser.add_argument("--serve", nargs=2, help=argparse.SUPPRESS)
    parser.add_argument("--ask", nargs=4, help=argparse.SUPPRESS)
    report.add_output(parser)


def run(options: argparse.Namespace) -> int:
    """Measure, or be a server or client of the process that does."""
    known = contestants()
    if options.serve or options.ask:
        end_with_parent()
        name, *rest = options.serve or options.ask
        if options.serve:
            known[name].serve(float(rest[0]))
        else:
            known[name].ask(int(rest[0]), rest[1], float(rest[2]))
        return 0
    running_now = [known[name] for name in options.only or known]
    for contestant in itertools.filterfalse(lambda one: one.installed, running_now):
        print(f"left out: {contestant.name}, since it is not installed", file=sys.stderr)
    field_ = [contestant for contestant in running_now if contestant.installed]
    for _ in range(options.rounds):
        for contestant in field_:
            measure(contestant, options)
    table = report.Table(
        ["server and client", "a call, ms", f"{MANY} in flight, calls a second", KILLED],
        note="Medians of the rounds, with the least and the greatest. "
        f"{KILLED.capitalize()}: the time "
        "for which the handler continues after its client was killed; never: it continued for all "
        f"of {options.work:g} s.",
    )
    for one in field_:
        many = f"{statistics.median(one.many):,.0f} ({min(one.many):,.0f}..{max(one.many):,.0f})"
        table.rows.append([one.name, report.spread(one.calls), many, shown(one.killed)])
    figures = {
        one.name: {"calls": one.calls, "many": one.many, "killed": [str(s) for s in one.killed]}
        for one in field_
    }
    packages = sorted({module for one in field_ for module in one.needs} - {"grpc"})
    versions = "".join(f"{name} {importlib.metadata.version(name)}; " for name in packages)
    report.show(options, "rpc", f"{versions}{options.rounds} rounds.", [table], figures)
    return 0
