"""Half of many clients die at once: when is their work cancelled, and how long do others wait?

Two processes hold the clients, half of them each, and each client has a request that waits in an
async handler. One process is killed with SIGKILL. Taken is the time from just before the kill to
the last handler's `Cancelled`. Another client asks for an echo all the while, 1 ms after its last
reply: the longest that it waits is compared with the second before.

The peer is libzmq's own socket monitor, read in a loop beside the socket: that its server has read
the last of the disconnects is the least that any server on libzmq takes.
"""

from __future__ import annotations

import argparse
import os
import signal
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Callable
from dataclasses import asdict, dataclass

import trio
import zmq

import trioreq
from harness.generator import generator
from harness.processes import ChildFailed, end_with_parent, python_module, read_line, running

from ..shared import report
from ..shared.load import holding
from ..shared.servers import allow_files

MONITOR, TRIOREQ = "libzmq's monitor", "trioreq"
ECHO = b"echo"
BEFORE = 1.0  # seconds
PAUSE = 1  # milliseconds
SPARE_FILES = 200


class Count:
    """Tells the parent when all clients wait, and when half of their disconnects are known."""

    def __init__(self, clients: int) -> None:
        self._clients = clients
        self._waiting = self._disconnected = 0

    def waits(self) -> None:
        """One more has asked for what does not come."""
        self._waiting += 1
        if self._waiting == self._clients:
            print("waiting", flush=True)

    def disconnected(self) -> None:
        """A disconnect is known."""
        self._disconnected += 1
        if self._disconnected == self._clients // 2:
            print(time.monotonic_ns(), flush=True)


def serve_monitor(clients: int) -> None:
    """A ROUTER and its monitor, in one loop."""
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    router, monitor = context.socket(zmq.ROUTER), context.socket(zmq.PAIR)
    router.monitor("inproc://monitor", zmq.EVENT_DISCONNECTED)
    monitor.rcvhwm = 0
    monitor.connect("inproc://monitor")
    print(router.bind_to_random_port("tcp://127.0.0.1"), flush=True)
    count = Count(clients)
    poller = zmq.Poller()
    poller.register(router, zmq.POLLIN)
    poller.register(monitor, zmq.POLLIN)
    while True:
        ready = dict(poller.poll())
        if router in ready:
            message = router.recv_multipart()
            if message[-1] == ECHO:
                router.send_multipart(message)
            else:
                count.waits()
        if monitor in ready:
            monitor.recv_multipart()
            count.disconnected()


def serve_trioreq(clients: int) -> None:
    """An async handler that waits until it is cancelled."""
    count = Count(clients)

    async def handler(request: trioreq.Request) -> bytes:
        if request.body == ECHO:
            return ECHO
        count.waits()
        try:
            await trio.sleep_forever()
        finally:
            count.disconnected()

    async def main() -> None:
        async with trio.open_nursery() as nursery:
            server: trioreq.Server = await nursery.start(
                lambda task_status: trioreq.serve(
                    handler,
                    "tcp://127.0.0.1:0",
                    max_in_flight=clients + 1,
                    task_status=task_status,
                )
            )
            print(server.endpoints[0].rpartition(":")[2], flush=True)

    trio.run(main)


SERVERS: dict[str, Callable[[int], None]] = {MONITOR: serve_monitor, TRIOREQ: serve_trioreq}


class Living:
    """A client that asks for an echo, ever again, and notes how long each took."""

    def __init__(self, port: int) -> None:
        context: zmq.Context[zmq.Socket[bytes]] = zmq.Context.instance()
        self._socket = context.socket(zmq.REQ)
        self._socket.linger = 0
        self._socket.connect(f"tcp://127.0.0.1:{port}")
        self._waits: list[tuple[int, int]] = []  # when each began and ended, in nanoseconds

    def ask(self) -> int:
        """Ask once; returns when the reply was there.

        Raises:
            ChildFailed: The server sent something else.
        """
        begun = time.monotonic_ns()
        self._socket.send(ECHO)
        if self._socket.recv() != ECHO:
            raise ChildFailed("the server has sent a wrong echo")
        ended = time.monotonic_ns()
        self._waits.append((begun, ended))
        return ended

    def longest(self, begin: int, end: int) -> float:
        """The longest that a request took, in seconds, of those that were under way in a time.

        There may be none, if the server was faster than this client: then it is 0.
        """
        waits = [ended - begun for begun, ended in self._waits if ended >= begin and begun <= end]
        return max(waits, default=0) / 1e9

    def close(self) -> None:
        """Leave."""
        self._socket.close()


@dataclass(frozen=True)
class Death:
    """What the death of half of the clients has shown, in seconds."""

    cancelled: float
    before: float  # the longest that the living client waited
    meanwhile: float


def let_die(server: subprocess.Popen[str], living: Living, victims: subprocess.Popen[str]) -> Death:
    """Kill clients beside one that goes on asking."""
    begun = killed = time.monotonic_ns()
    while killed < begun + BEFORE * 1e9:
        killed = living.ask()
        time.sleep(PAUSE / 1000)
    poller = zmq.Poller()
    poller.register(server.stdout, zmq.POLLIN)
    killed = time.monotonic_ns()
    os.kill(victims.pid, signal.SIGKILL)
    while True:
        living.ask()
        if poller.poll(PAUSE):
            break
    cancelled = int(read_line(server))
    return Death(
        (cancelled - killed) / 1e9,
        living.longest(begun, killed),
        living.longest(killed, cancelled),
    )


def measure_one(name: str, clients: int) -> Death:
    """A server, its clients, and the death of half of them."""
    with running(python_module("benchmarks", "dying", "--serve", name, clients)) as server:
        port = int(read_line(server))
        living = Living(port)
        try:
            living.ask()
            with (
                holding(port, clients - clients // 2, "wait"),
                holding(port, clients // 2, "wait") as victims,
            ):
                if read_line(server) != "waiting":
                    raise ChildFailed(f"{name} has reported a death before there was one")
                return let_die(server, living, victims)
        finally:
            living.close()


def table(deaths: dict[str, list[Death]], clients: int) -> report.Table:
    """A row for each server."""
    shown = report.Table(
        ["milliseconds", "all are cancelled", "ratio", "longest echo before", "and meanwhile"],
        title=f"{clients:,} clients, each with a request that waits; half of them die at once",
        note="Median (least..greatest). Ratio: to libzmq's monitor in the same round.",
    )
    for name, of_rounds in deaths.items():
        pairs = zip(of_rounds, deaths[MONITOR], strict=True)
        ratio = report.spread(death.cancelled / base.cancelled for death, base in pairs)
        cancelled, before, meanwhile = (
            report.spread((getattr(death, what) * 1000 for death in of_rounds), 1)
            for what in ("cancelled", "before", "meanwhile")
        )
        shown.rows.append([name, cancelled, ratio, before, meanwhile])
    return shown


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's options."""
    parser.add_argument("--clients", type=int, default=10_000, help="of which half die (10000)")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--serve", nargs=2, help=argparse.SUPPRESS)
    report.add_output(parser)


def run(options: argparse.Namespace) -> int:
    """Measure and show, or serve for the process that does."""
    if options.serve:
        name, clients = options.serve[0], int(options.serve[1])
        end_with_parent()
        allow_files(clients + SPARE_FILES)
        SERVERS[name](clients)
        return 0
    generator()  # the clients need it
    deaths: dict[str, list[Death]] = defaultdict(list)
    for number in range(options.rounds):
        print(f"round {number + 1} of {options.rounds}", file=sys.stderr)
        for name in SERVERS:
            deaths[name].append(measure_one(name, options.clients))
    told = {name: [asdict(death) for death in of_rounds] for name, of_rounds in deaths.items()}
    how = f"{options.rounds} rounds."
    report.show(options, "dying", how, [table(deaths, options.clients)], told)
    return 0
