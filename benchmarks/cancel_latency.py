"""From SIGKILL of a client to the moment that its server knows.

    python -m benchmarks.cancel_latency [--kills 500] [--json FILE]

Each contestant is a server in a process of its own. Each client is a process of its own with one
request in flight. It is killed when its server has said that it works on the request, and a few
milliseconds more, a random number, so that a server which polls is met anywhere between two polls.
The time is taken on the system's monotonic clock, just before the kill and where the server sees
it. The contestants take turns, one kill each a round: what else the machine does hits all alike.

The peers: the end of stream on a bare TCP socket, which is what the kernel tells; libzmq's own
socket monitor in a blocking read; and a handler of grpc.aio. The kernel takes a killed process's
memory apart before it closes its sockets, and all figures include that. So clients are forked from
a process that has imported zmq alone; those of grpc from one that has imported grpc as well.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import math
import os
import platform
import random
import select
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field
from importlib import metadata
from importlib.util import find_spec
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Self

import zmq

if TYPE_CHECKING:  # clients are forked from processes that have not loaded it
    import trioreq

WARM_UP = 5  # rounds that are not counted
PATIENCE = 20.0  # seconds in which a process must say something
WIDTH = 13  # characters of a histogram's bar


def report(event: str) -> None:
    """Tell the parent what has happened, and when."""
    os.write(1, f"{event} {time.monotonic_ns()}\n".encode())


# Servers: each says where it listens, and then `started` and `noticed` for each client.


def serve_bare(_: str) -> None:
    listener = socket.create_server(("127.0.0.1", 0))
    report(f"tcp://127.0.0.1:{listener.getsockname()[1]}")
    while True:
        connection, _address = listener.accept()
        with connection:
            connection.recv(100)
            report("started")
            connection.recv(100)
            report("noticed")


def serve_monitor(addr: str) -> None:
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


def serve_trioreq(addr: str, *, polled: bool = False) -> None:
    import trio

    import trioreq

    async def wait_for_the_end(_: trioreq.Request) -> bytes:
        report("started")
        try:
            await trio.sleep_forever()
        except trio.Cancelled:
            report("noticed")
            raise
        return b""

    def look_for_the_end(_: trioreq.Request) -> bytes:
        report("started")
        try:
            while True:
                trioreq.check_cancelled()
                time.sleep(0.001)
        except trioreq.RequestCancelled:
            report("noticed")
            raise

    async def main() -> None:
        handler: Callable[[trioreq.Request], object]
        handler = look_for_the_end if polled else wait_for_the_end
        async with trio.open_nursery() as nursery:
            server: trioreq.Server = await nursery.start(trioreq.serve, handler, addr)
            report(server.endpoints[0])

    trio.run(main)


def serve_polled(addr: str) -> None:
    """A plain function of trioreq, which looks each millisecond."""
    serve_trioreq(addr, polled=True)


def serve_grpc(_: str) -> None:
    import grpc.aio

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
        port = server.add_insecure_port("127.0.0.1:0")
        await server.start()
        report(f"tcp://127.0.0.1:{port}")
        await server.wait_for_termination()

    asyncio.run(main())


# Clients: each sends one request and then does nothing, until it is killed.


def ask_bare(endpoint: str) -> None:
    host, _, port = endpoint.removeprefix("tcp://").partition(":")
    with socket.create_connection((host, int(port))) as connection:
        connection.sendall(b"x")
        signal.pause()


def ask_zmq(endpoint: str) -> None:
    with zmq.Context() as context, context.socket(zmq.REQ) as client:
        client.connect(endpoint)
        client.send(b"x")
        client.recv()


def ask_grpc(endpoint: str) -> None:
    import grpc

    with grpc.insecure_channel(endpoint.removeprefix("tcp://")) as channel:
        channel.unary_unary("/benchmark/wait")(b"x")


def fork_clients(imports: str) -> None:
    """Fork a client for each line, `ROLE ENDPOINT`, and answer with its process id."""
    __import__(imports)
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # the kernel reaps them
    for line in sys.stdin:
        client = os.fork()
        if client == 0:
            role, endpoint = line.split()
            try:
                globals()[role](endpoint)
            finally:
                os._exit(1)
        report(str(client))


class Child:
    """This program again, in another part."""

    def __init__(self, role: str, argument: str) -> None:
        command = [sys.executable, "-m", "benchmarks.cancel_latency", "--role", role, argument]
        pipe = subprocess.PIPE
        self.process = subprocess.Popen(command, stdin=pipe, stdout=pipe, bufsize=0)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.communicate()

    def listen(self) -> tuple[str, int]:
        """The next thing that it reports, and when that was."""
        output = self.process.stdout
        line = output.readline() if output and select.select([output], [], [], PATIENCE)[0] else b""
        if not line:
            raise SystemExit(f"silent or dead: {self.process.args!r}")
        event, _, when = line.decode().rpartition(" ")
        return event, int(when)

    def expect(self, event: str) -> int:
        """When that happened, which must be the next thing that it reports."""
        found, when = self.listen()
        if found != event:
            raise SystemExit(f"{found} instead of {event}: {self.process.args!r}")
        return when

    def say(self, line: str) -> None:
        """Write to its standard input."""
        if self.process.stdin:
            self.process.stdin.write(f"{line}\n".encode())


@dataclass
class Contestant:
    """A server, the client that asks it, and the peer that it is compared with."""

    name: str
    serve: str
    ask: str
    addr: str = "tcp://127.0.0.1:*"
    peer: str = "libzmq monitor, tcp"
    imports: str = "zmq"  # what its clients have loaded
    took: list[float] = field(default_factory=list)  # milliseconds


def contestants(folder: str) -> list[Contestant]:
    ipc, ipc_peer = f"ipc://{folder}/", "libzmq monitor, ipc"
    found = [
        Contestant("bare tcp, its end", "serve_bare", "ask_bare"),
        Contestant("libzmq monitor, tcp", "serve_monitor", "ask_zmq"),
        Contestant(ipc_peer, "serve_monitor", "ask_zmq", ipc + "monitor", ipc_peer),
        Contestant("trioreq, tcp", "serve_trioreq", "ask_zmq"),
        Contestant("trioreq, ipc", "serve_trioreq", "ask_zmq", ipc + "trioreq", ipc_peer),
        Contestant("trioreq, 1 ms polls", "serve_polled", "ask_zmq"),
    ]
    if find_spec("grpc"):
        found.append(Contestant("grpc.aio", "serve_grpc", "ask_grpc", imports="grpc"))
    return found


def kill_one(contestant: Contestant, server: Child, forker: Child, endpoint: str) -> float:
    """Let a client ask, kill it, and return the milliseconds until its server knew."""
    forker.say(f"{contestant.ask} {endpoint}")
    client = int(forker.listen()[0])
    try:
        server.expect("started")
        time.sleep(random.uniform(0.003, 0.006))
    finally:
        killed = time.monotonic_ns()
        os.kill(client, signal.SIGKILL)
    return (server.expect("noticed") - killed) / 1e6


def measure(found: list[Contestant], kills: int) -> None:
    with ExitStack() as stack:
        servers = [stack.enter_context(Child(each.serve, each.addr)) for each in found]
        forkers = {
            imports: stack.enter_context(Child("fork_clients", imports))
            for imports in sorted({each.imports for each in found})
        }
        endpoints = [server.listen()[0] for server in servers]
        for number in range(kills + WARM_UP):
            for contestant, server, endpoint in zip(found, servers, endpoints, strict=True):
                took = kill_one(contestant, server, forkers[contestant.imports], endpoint)
                if number >= WARM_UP:
                    contestant.took.append(took)


def table(found: list[Contestant]) -> dict[str, dict[str, float]]:
    """Print the figures, and return them."""
    rows: dict[str, dict[str, float]] = {}
    medians = {contestant.name: statistics.median(contestant.took) for contestant in found}
    titles = "".join(
        f"{title:>8}" for title in ("n", "p10", "median", "p90", "p99", "max", "ratio")
    )
    print(f"\n{'milliseconds':20}{titles}")
    for contestant in found:
        cuts = statistics.quantiles(contestant.took, n=100, method="inclusive")
        row = {"p10": cuts[9], "median": medians[contestant.name], "p90": cuts[89], "p99": cuts[98]}
        row |= {"max": max(contestant.took), "ratio": cuts[49] / medians[contestant.peer]}
        figures = "".join(f"{value:8.3f}" for value in row.values())
        print(f"{contestant.name:20}{len(contestant.took):8}{figures}")
        rows[contestant.name] = row
    if "grpc.aio" not in rows:
        print(f"{'grpc.aio':20} grpcio is not installed")
    print("ratio: of the median, to libzmq's monitor over the same transport")
    return rows


def histograms(found: list[Contestant]) -> None:
    """Print all distributions side by side; each row goes half as far again as the one above."""
    edges = [0.0, *(0.15 * 1.5**step for step in range(9)), math.inf]
    print("\n" + " " * 15 + "".join(f"{contestant.name:21}" for contestant in found).rstrip())
    for low, high in pairwise(edges):
        cells = ""
        for contestant in found:
            share = sum(low <= took < high for took in contestant.took) / len(contestant.took)
            cells += (
                f"{'#' * math.ceil(share * WIDTH):{WIDTH}}{f'{share:.1%}' if share else '':>6}  "
            )
        print(f"{low:5.2f}-{high:5.2f} ms {cells}".rstrip())


def verdicts(rows: dict[str, dict[str, float]]) -> bool:
    claims = {
        f"{name}: median at most 1.5 times libzmq's monitor's": rows[name]["ratio"] <= 1.5
        for name in ("trioreq, tcp", "trioreq, ipc")
    }
    if "grpc.aio" in rows:
        ahead = rows["trioreq, tcp"]["median"] < rows["grpc.aio"]["median"]
        claims["trioreq, tcp: median below grpc.aio's"] = ahead
    print()
    for claim, holds in claims.items():
        print(f"{claim}: {'yes' if holds else 'NO'}")
    return all(claims.values())


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--kills", type=int, default=500, help="of each contestant (500)")
    parser.add_argument("--json", type=Path, help="also write the figures to this file")
    parser.add_argument("--role", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.role:
        role, argument = options.role
        globals()[role](argument)
        return 0
    if options.kills < 2:
        parser.error("--kills must be at least 2")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # cleans up, as Ctrl-C does
    machine = (
        f"{platform.system()} {platform.release()}, {platform.machine()}, {os.cpu_count()} CPUs"
    )
    machine += f", load {os.getloadavg()[0]:.1f}; Python {platform.python_version()}"
    machine += f", libzmq {zmq.zmq_version()}"
    for package in ("pyzmq", "trio", "trioreq", *(["grpcio"] if find_spec("grpc") else [])):
        machine += f", {package} {metadata.version(package)}"
    print(machine)
    with tempfile.TemporaryDirectory() as folder:
        found = contestants(folder)
        measure(found, options.kills)
    rows = table(found)
    histograms(found)
    if options.json:
        samples = {contestant.name: contestant.took for contestant in found}
        options.json.write_text(json.dumps({"on": machine, "rows": rows, "milliseconds": samples}))
    return 0 if verdicts(rows) else 1


if __name__ == "__main__":
    sys.exit(main())
