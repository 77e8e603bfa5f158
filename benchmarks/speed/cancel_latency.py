"""From SIGKILL of a client to the moment that its server knows.

Each contestant is a server in a process of its own. Each client is a process of its own with one
request in flight (`caller.c`, which is small, so that its end takes no time). It is killed some
random milliseconds after its server has said that it works on the request, so that the kill keeps
no step with a server that looks at intervals. The time is taken on the system's monotonic clock,
just before the kill and where the server sees it. The contestants take turns, one kill each a
round, so that what else the machine does hits all alike.

The peers: the end of stream on a bare TCP socket, which is the lower bound by the
kernel; libzmq's own socket monitor in a blocking read; and a handler of grpc.aio.
"""

from __future__ import annotations

import argparse
import asyncio
import math
import os
import random
import signal
import socket
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path

import trio
import zmq

import trioreq
from harness.compiler import compiled
from harness.latency import percentile
from harness.processes import (
    ChildFailed,
    end_with_parent,
    python_module,
    read_line,
    running,
    tell,
)

from ..shared import report

try:
    import grpc
    import grpc.aio
except ImportError:
    grpc = None

CALLER = Path(__file__).with_name("caller.c")
WARM_UP = 5  # kills
LONGEST_PAUSE = 0.005  # seconds between a request's start and its client's end
WIDTH = 12  # characters of a histogram's bar


# Servers: each says where it listens, and then `started` and `noticed` for each client.


def serve_bare(_: str) -> None:
    """Blocking reads on a TCP socket."""
    listener = socket.create_server(("127.0.0.1", 0))
    tell(f"tcp://127.0.0.1:{listener.getsockname()[1]}")
    while True:
        connection, _address = listener.accept()
        with connection:
            connection.recv(100)
            tell("started")
            try:
                while connection.recv(100):
                    pass
            except ConnectionResetError:
                pass
            tell("noticed")


def serve_monitor(addr: str) -> None:
    """Blocking reads on the monitor of a stock ROUTER."""
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    router = context.socket(zmq.ROUTER)
    monitor = router.get_monitor_socket(zmq.EVENT_DISCONNECTED)
    router.bind(addr)
    tell(str(router.getsockopt(zmq.LAST_ENDPOINT), "ascii").rstrip("\0"))  # type: ignore[arg-type]
    while True:
        router.recv_multipart()
        tell("started")
        monitor.recv_multipart()
        tell("noticed")


async def wait_for_the_end(_: trioreq.Request) -> bytes:
    """An async handler that only its cancellation ends."""
    tell("started")
    try:
        await trio.sleep_forever()
    except trio.Cancelled:
        tell("noticed")
        raise
    return b""


def look_for_the_end(_: trioreq.Request) -> bytes:
    """A plain function that looks each millisecond."""
    tell("started")
    try:
        while True:
            trioreq.check_cancelled()
            time.sleep(0.001)
    except trioreq.RequestCancelled:
        tell("noticed")
        raise


def serve_trioreq(addr: str, handler: Callable[[trioreq.Request], object]) -> None:
    """trioreq, as its users run it."""

    async def main() -> None:
        async with trio.open_nursery() as nursery:
            server: trioreq.Server = await nursery.start(trioreq.serve, handler, addr)
            tell(server.endpoints[0])

    trio.run(main)


def serve_grpc(_: str) -> None:
    """A unary handler of grpc.aio."""

    async def wait(_request: bytes, _context: object) -> bytes:
        tell("started")
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            tell("noticed")
            raise
        return b""

    async def main() -> None:
        server = grpc.aio.server()
        handlers = {"wait": grpc.unary_unary_rpc_method_handler(wait)}
        server.add_generic_rpc_handlers(
            (grpc.method_handlers_generic_handler("benchmark", handlers),)
        )
        tell(f"tcp://127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}")
        await server.start()
        await server.wait_for_termination()

    asyncio.run(main())


@dataclass
class Contestant:
    """A server, how its client speaks, and the peer that it is compared with."""

    name: str
    serve: Callable[[str], None]
    protocol: str = "zmtp"
    ipc: bool = False
    peer: str = ""
    took: list[float] = field(default_factory=list)  # milliseconds


def serve_async(addr: str) -> None:
    """An async handler of trioreq."""
    serve_trioreq(addr, wait_for_the_end)


def serve_plain(addr: str) -> None:
    """A plain function of trioreq."""
    serve_trioreq(addr, look_for_the_end)


TCP_PEER, IPC_PEER = "libzmq's monitor, tcp", "libzmq's monitor, ipc"


def contestants() -> dict[str, Contestant]:
    """All of them, by name."""
    found = [
        Contestant("end of stream, bare tcp", serve_bare, "bare"),
        Contestant(TCP_PEER, serve_monitor, peer=TCP_PEER),
        Contestant(IPC_PEER, serve_monitor, ipc=True, peer=IPC_PEER),
        Contestant("trioreq async, tcp", serve_async, peer=TCP_PEER),
        Contestant("trioreq async, ipc", serve_async, ipc=True, peer=IPC_PEER),
        Contestant("trioreq plain, checks each ms", serve_plain, peer=TCP_PEER),
    ]
    if grpc is not None:
        found.append(Contestant("grpc.aio handler", serve_grpc, "http2", peer=TCP_PEER))
    return {contestant.name: contestant for contestant in found}


def listen(server: subprocess.Popen[str], expected: str) -> int:
    """Wait for a report of a server; returns when that was."""
    event, _, when = read_line(server).rpartition(" ")
    if event != expected:
        raise ChildFailed(f"{server.args!r} told of {event!r}, not of {expected!r}")
    return int(when)


@contextmanager
def started(contestant: Contestant, folder: str) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """Run a server; yields it and where a caller finds it."""
    path = f"{folder}/{contestant.name.replace(' ', '-')}"
    addr = f"ipc://{path}" if contestant.ipc else "tcp://127.0.0.1:*"
    command = python_module("benchmarks", "cancel_latency", "--serve", contestant.name, addr)
    with running(command) as server:
        endpoint, _, _ = read_line(server).rpartition(" ")
        yield server, path if contestant.ipc else endpoint.rpartition(":")[2]


def kill_one(
    contestant: Contestant, server: subprocess.Popen[str], address: str, pause: float
) -> float:
    """Let a client ask, kill it, and return the milliseconds until its server knew."""
    with running([compiled(CALLER), contestant.protocol, address]) as client:
        listen(server, "started")
        time.sleep(pause)
        killed = time.monotonic_ns()
        os.kill(client.pid, signal.SIGKILL)
        noticed = listen(server, "noticed")
    return (noticed - killed) / 1e6


def measure(field_: list[Contestant], kills: int) -> None:
    """All rounds."""
    chance = random.Random(1)  # the same pauses in each run
    with ExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory())
        servers = [stack.enter_context(started(contestant, folder)) for contestant in field_]
        for number in range(WARM_UP + kills):
            for contestant, (server, address) in zip(field_, servers, strict=True):
                pause = chance.uniform(0, LONGEST_PAUSE)
                took = kill_one(contestant, server, address, pause)
                if number >= WARM_UP:
                    contestant.took.append(took)


def ratio_of(contestant: Contestant, field_: dict[str, Contestant]) -> float:
    """Of the median, to the peer's; nan without a peer."""
    if not contestant.peer:
        return math.nan
    return statistics.median(contestant.took) / statistics.median(field_[contestant.peer].took)


def table(field_: dict[str, Contestant]) -> report.Table:
    """The figures."""
    shown = report.Table(
        ["milliseconds", "n", "p10", "median", "p90", "p99", "max", "ratio"],
        note="Ratio: of the median, to libzmq's monitor over the same transport.",
    )
    for contestant in field_.values():
        ordered = sorted(contestant.took)
        cells = [f"{percentile(ordered, share):.3f}" for share in (0.1, 0.5, 0.9, 0.99, 1.0)]
        ratio = f"{ratio_of(contestant, field_):.2f}" if contestant.peer else ""
        shown.rows.append([contestant.name, f"{len(ordered)}", *cells, ratio])
    return shown


def histograms(field_: list[Contestant]) -> None:
    """Print all distributions side by side; each row goes half as far again as the one above."""
    edges = [0.0, *(0.25 * 1.5**step for step in range(8)), math.inf]
    print("\n" + " " * 14 + "".join(f"{contestant.name[: WIDTH + 8]:22}" for contestant in field_))
    for low, high in pairwise(edges):
        cells = []
        for contestant in field_:
            share = sum(low <= took < high for took in contestant.took) / len(contestant.took)
            cells.append(f"{'#' * round(share * WIDTH):{WIDTH}}{share:5.0%}")
        print(f"{low:5.2f}-{high:5.2f} ms " + "".join(f"{cell:22}" for cell in cells))


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's options."""
    parser.add_argument("--kills", type=int, default=500, help="of each contestant (500)")
    parser.add_argument("--serve", nargs=2, help=argparse.SUPPRESS)
    report.add_output(parser)


def run(options: argparse.Namespace) -> int:
    """Measure, or serve for the process that does."""
    field_ = contestants()
    if options.serve:
        name, addr = options.serve
        end_with_parent()
        field_[name].serve(addr)
        return 0
    if grpc is None:
        print("grpc.aio: not installed")
    measure(list(field_.values()), options.kills)
    told = {contestant.name: contestant.took for contestant in field_.values()}
    how = f"{options.kills} kills of each."
    report.show(options, "cancel_latency", how, [table(field_)], told)
    histograms(list(field_.values()))
    return 0
