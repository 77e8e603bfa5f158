"""From SIGKILL of a client to the moment that its server knows.

    python -m benchmarks.cancel_latency [--kills 500] [--json FILE]

Each contestant is a server in a process of its own. Each client is a process of its own with one
request in flight; it is killed when its server has said that it works on the request. The time is
taken on the system's monotonic clock, just before the kill and where the server sees it. The
contestants take turns, one kill each a round, so that what else the machine does hits all alike.

The peers: the end of stream on a bare TCP socket, which is what the kernel tells and nobody can
beat; libzmq's own socket monitor in a blocking read; and a handler of grpc.aio.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import math
import os
import platform
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path

import trio
import zmq

import trioreq

try:
    import grpc
    import grpc.aio
except ImportError:
    grpc = None

METHOD = "/benchmark/wait"
WIDTH = 12  # characters of a histogram's bar


def report(event: str) -> None:
    """Tell the parent what has happened, and when."""
    os.write(1, f"{event} {time.monotonic_ns()}\n".encode())


# Servers: each says where it listens, and then `started` and `noticed` for each client.


def serve_bare(_: str) -> None:
    """Blocking reads on a TCP socket."""
    listener = socket.create_server(("127.0.0.1", 0))
    report(f"tcp://127.0.0.1:{listener.getsockname()[1]}")
    while True:
        connection, _address = listener.accept()
        with connection:
            connection.recv(100)
            report("started")
            try:
                while connection.recv(100):
                    pass
            except ConnectionResetError:
                pass
            report("noticed")


def serve_monitor(addr: str) -> None:
    """Blocking reads on the monitor of a stock ROUTER."""
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    router = context.socket(zmq.ROUTER)
    monitor = router.get_monitor_socket(zmq.EVENT_DISCONNECTED)
    router.bind(addr)
    report(str(router.getsockopt(zmq.LAST_ENDPOINT), "ascii").rstrip("\0"))  # type: ignore[arg-type]
    while True:
        router.recv_multipart()
        report("started")
        monitor.recv_multipart()
        report("noticed")


async def wait_for_the_end(_: trioreq.Request) -> bytes:
    """An async handler that only its cancellation ends."""
    report("started")
    try:
        await trio.sleep_forever()
    except trio.Cancelled:
        report("noticed")
        raise
    return b""


def look_for_the_end(_: trioreq.Request) -> bytes:
    """A plain function that looks each millisecond."""
    report("started")
    try:
        while True:
            trioreq.check_cancelled()
            time.sleep(0.001)
    except trioreq.RequestCancelled:
        report("noticed")
        raise


def serve_trioreq(addr: str, handler: Callable[[trioreq.Request], object]) -> None:
    """trioreq, as its users run it."""

    async def main() -> None:
        async with trio.open_nursery() as nursery:
            server: trioreq.Server = await nursery.start(trioreq.serve, handler, addr)
            report(server.endpoints[0])

    trio.run(main)


def serve_grpc(_: str) -> None:
    """A unary handler of grpc.aio."""

    async def wait(_request: bytes, _context: object) -> bytes:
        report("started")
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            report("noticed")
            raise
        return b""

    async def main() -> None:
        server = grpc.aio.server()
        handlers = {"wait": grpc.unary_unary_rpc_method_handler(wait)}
        server.add_generic_rpc_handlers(
            (grpc.method_handlers_generic_handler("benchmark", handlers),)
        )
        report(f"tcp://127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}")
        await server.start()
        await server.wait_for_termination()

    asyncio.run(main())


# Clients: each sends one request and then does nothing, until it is killed.


def ask_bare(endpoint: str) -> None:
    """Over a TCP socket."""
    host, _, port = endpoint.removeprefix("tcp://").partition(":")
    with socket.create_connection((host, int(port))) as connection:
        connection.sendall(b"x")
        signal.pause()


def ask_zmq(endpoint: str) -> None:
    """Over a REQ socket."""
    with zmq.Context() as context, context.socket(zmq.REQ) as client:
        client.connect(endpoint)
        client.send(b"x")
        client.recv()


def ask_grpc(endpoint: str) -> None:
    """Over a channel of grpc."""
    with grpc.insecure_channel(endpoint.removeprefix("tcp://")) as channel:
        channel.unary_unary(METHOD)(b"x")


@dataclass
class Contestant:
    """A server, the client that asks it, and the peer that it is compared with."""

    name: str
    serve: Callable[[str], None]
    ask: Callable[[str], None]
    addr: str = "tcp://127.0.0.1:*"
    peer: str = ""
    took: list[float] = field(default_factory=list)  # milliseconds

    def start(self) -> subprocess.Popen[bytes]:
        """Start the server."""
        return subprocess.Popen(
            [sys.executable, "-m", "benchmarks.cancel_latency", "--serve", self.name, self.addr],
            stdout=subprocess.PIPE,
        )


def contestants(folder: str) -> list[Contestant]:
    """All of them."""
    ipc = f"ipc://{folder}/"
    tcp_peer, ipc_peer = "libzmq's monitor, tcp", "libzmq's monitor, ipc"
    found = [
        Contestant("end of stream, bare tcp", serve_bare, ask_bare),
        Contestant(tcp_peer, serve_monitor, ask_zmq, peer=tcp_peer),
        Contestant(ipc_peer, serve_monitor, ask_zmq, ipc + "monitor", ipc_peer),
        Contestant(
            "trioreq async, tcp",
            lambda addr: serve_trioreq(addr, wait_for_the_end),
            ask_zmq,
            peer=tcp_peer,
        ),
        Contestant(
            "trioreq async, ipc",
            lambda addr: serve_trioreq(addr, wait_for_the_end),
            ask_zmq,
            ipc + "trioreq",
            ipc_peer,
        ),
        Contestant(
            "trioreq plain, looks each ms",
            lambda addr: serve_trioreq(addr, look_for_the_end),
            ask_zmq,
            peer=tcp_peer,
        ),
    ]
    if grpc is not None:
        found.append(Contestant("grpc.aio handler", serve_grpc, ask_grpc, peer=tcp_peer))
    return found


def listen(server: subprocess.Popen[bytes]) -> tuple[str, int]:
    """The next thing that a server reports."""
    assert server.stdout is not None
    line = server.stdout.readline().decode()
    if not line:
        raise SystemExit(f"a server has died: {server.args!r}")
    event, _, when = line.rpartition(" ")
    return event, int(when)


def kill_one(contestant: Contestant, server: subprocess.Popen[bytes], endpoint: str) -> float:
    """Let a client ask, kill it, and return the milliseconds until its server knew."""
    client = os.fork()
    if client == 0:
        try:
            contestant.ask(endpoint)
        finally:
            os._exit(1)
    assert listen(server)[0] == "started"
    killed = time.monotonic_ns()
    os.kill(client, signal.SIGKILL)
    event, noticed = listen(server)
    assert event == "noticed"
    os.waitpid(client, 0)
    return (noticed - killed) / 1e6


def measure(field_: list[Contestant], kills: int) -> None:
    """All rounds."""
    servers = [contestant.start() for contestant in field_]
    try:
        endpoints = [listen(server)[0] for server in servers]
        for number in range(kills + 5):
            for contestant, server, endpoint in zip(field_, servers, endpoints, strict=True):
                took = kill_one(contestant, server, endpoint)
                if number >= 5:  # the first ones warm up
                    contestant.took.append(took)
    finally:
        for server in servers:
            server.kill()
            server.wait()


def table(field_: list[Contestant]) -> dict[str, dict[str, float]]:
    """Print the figures, and return them."""
    medians = {contestant.name: statistics.median(contestant.took) for contestant in field_}
    rows = {}
    print(
        f"\n{'milliseconds':30}{'n':>5}{'p10':>8}{'median':>8}{'p90':>8}{'p99':>8}{'max':>8}{'ratio':>7}"
    )
    for contestant in field_:
        cuts = statistics.quantiles(contestant.took, n=100)
        row = {
            "p10": cuts[9],
            "median": medians[contestant.name],
            "p90": cuts[89],
            "p99": cuts[98],
            "max": max(contestant.took),
        }
        ratio = row["median"] / medians[contestant.peer] if contestant.peer else math.nan
        figures = "".join(f"{value:8.3f}" for value in row.values())
        shown = "" if math.isnan(ratio) else f"{ratio:7.2f}"
        print(f"{contestant.name:30}{len(contestant.took):5}{figures}{shown}")
        rows[contestant.name] = row | {"ratio": ratio}
    print("ratio: of the median, to libzmq's monitor over the same transport")
    return rows


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


def verdicts(rows: dict[str, dict[str, float]]) -> bool:
    """Say whether what is claimed holds."""
    claims = {
        f"{name} at most 1.5 times libzmq's monitor": rows[name]["ratio"] <= 1.5
        for name in ("trioreq async, tcp", "trioreq async, ipc")
    }
    if "grpc.aio handler" in rows:
        claims["trioreq async, tcp ahead of grpc.aio"] = (
            rows["trioreq async, tcp"]["median"] < rows["grpc.aio handler"]["median"]
        )
    else:
        print("grpc.aio: not installed")
    print()
    for claim, holds in claims.items():
        print(f"{claim}: {'yes' if holds else 'NO'}")
    return all(claims.values())


def main() -> int:
    """Measure, or serve for the process that does."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--kills", type=int, default=500, help="of each contestant (500)")
    parser.add_argument("--json", type=Path, help="also write the figures to this file")
    parser.add_argument("--serve", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        field_ = contestants(folder)
        if options.serve:
            name, addr = options.serve
            next(c for c in field_ if c.name == name).serve(addr)
            return 0
        print(
            f"{os.cpu_count()} processors, Python {platform.python_version()}, "
            f"libzmq {zmq.zmq_version()}, pyzmq {zmq.pyzmq_version()}, trio {trio.__version__}, "
            f"grpc {grpc.__version__ if grpc else '-'}"
        )
        measure(field_, options.kills)
    rows = table(field_)
    histograms(field_)
    if options.json:
        options.json.write_text(json.dumps({c.name: c.took for c in field_}))
    return 0 if verdicts(rows) else 1


if __name__ == "__main__":
    sys.exit(main())
