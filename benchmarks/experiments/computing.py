"""Plain functions that compute in Python: the effect on the event loop and other clients.

    python -m benchmarks computing [--clients 8 30 40 200]

So many clients each have a request in flight whose function computes until it is cancelled; each
has a worker thread. Meanwhile one of them disconnects, which the server logs, and a new client
connects and asks a plain function that returns at once. A new computing client then takes the place
of the one that left. A task in the server's event loop records how late it is woken from sleeps of
10 ms.
"""

from __future__ import annotations

import argparse
import itertools
import json
import logging
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, TypedDict

import trio
import zmq

import trioreq
from harness.latency import percentile
from harness.processes import end_with_parent, python_module, read_line, running, write_line

from ..shared import report

CLIENTS = [8, 30, 40, 200]
INTERVALS = [0.0, 1.0, 5.0]  # milliseconds; 0 for the server's own, and 5 is Python's
PAUSE = 0.01  # seconds that the task in the event loop sleeps
SETTLE = 2.0  # seconds from the last computing client to the first figure
CHUNK = 20_000  # steps of a computation between two looks at the request: a millisecond
LIMIT = 60_000  # milliseconds that a client waits for a reply


def tell(event: str, what: object = "") -> None:
    """Report to the parent what has happened, and when."""
    os.write(1, f"{event} {time.monotonic()} {what}\n".encode())


class Disconnects(logging.Handler):
    """Reports each request that a disconnect has cancelled."""

    def emit(self, record: logging.LogRecord) -> None:
        """Report it."""
        if "disconnected" in record.getMessage():
            tell("disconnected")


class Work:
    """The server's handler, and how much it has computed."""

    def __init__(self) -> None:
        self.chunks = itertools.count()

    def __call__(self, request: trioreq.Request) -> bytes:
        """Return at once, or compute until cancelled."""
        if request.body == b"quick":
            return b""
        tell("started")
        while True:
            trioreq.check_cancelled()
            for _ in range(CHUNK):
                pass
            next(self.chunks)


async def wait_line() -> None:
    """Wait for a line on standard input, which is empty."""
    await trio.lowlevel.wait_readable(0)
    os.read(0, 1)


async def serve(workers: float, interval: float) -> None:
    """Serve, and do what lines on standard input say: begin to count, count no more, and end.

    How late the event loop is counts from the second to the third.
    """
    work, late = Work(), list[float]()
    log = logging.getLogger("trioreq")
    log.setLevel(logging.DEBUG)
    log.propagate = False
    log.addHandler(Disconnects())

    async def probe() -> None:
        while True:
            start = trio.current_time()
            await trio.sleep(PAUSE)
            late.append(trio.current_time() - start - PAUSE)

    async with trio.open_nursery() as nursery:
        server: trioreq.Server = await nursery.start(
            lambda task_status: trioreq.serve(
                work, "tcp://127.0.0.1:0", workers=int(workers), task_status=task_status
            )
        )
        tell("serving", server.endpoints[0])
        nursery.start_soon(probe)
        await wait_line()
        if interval:
            sys.setswitchinterval(interval)
        before, start = next(work.chunks), time.monotonic()
        await wait_line()
        rate = (next(work.chunks) - before) / (time.monotonic() - start)
        late.clear()
        await wait_line()
        tell("told", json.dumps({"late": late, "rate": rate}))
        os._exit(0)  # what computes never returns


def listen(server: subprocess.Popen[str], expected: str) -> tuple[float, str]:
    """Wait until the server tells this; returns when that was, and what else it told."""
    while True:
        event, when, what = read_line(server).split(" ", 2)
        if event == expected:
            return float(when), what


@contextmanager
def connected(endpoint: str) -> Iterator[zmq.Socket[bytes]]:
    """A stock REQ client, in a context of its own."""
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    socket = context.socket(zmq.REQ)
    socket.linger = 0
    socket.rcvtimeo = LIMIT
    try:
        socket.connect(endpoint)
        yield socket
    finally:
        context.destroy()


@contextmanager
def computing(endpoint: str) -> Iterator[zmq.Socket[bytes]]:
    """One whose request is computed until it closes its socket."""
    with connected(endpoint) as socket:
        socket.send(b"compute")
        yield socket


class Figures(TypedDict):
    """What is measured beside so many functions that compute; lists are in seconds."""

    disconnected: list[float]
    answered: list[float]
    late: list[float]
    rate: float


def measure(clients: int, interval: float, rounds: int) -> Figures:
    """All figures, with one number of clients and one switch interval (0: as the server has it)."""
    disconnected, answered = list[float](), list[float]()
    options = ("computing", "--serve", clients + 1, interval)
    with running(python_module("benchmarks", *options)) as server, ExitStack() as stack:
        endpoint = listen(server, "serving")[1]
        present = [stack.enter_context(computing(endpoint)) for _ in range(clients)]
        for _ in present:
            listen(server, "started")
        time.sleep(SETTLE)
        write_line(server)
        time.sleep(SETTLE)
        write_line(server)
        for _ in range(rounds):
            start = time.monotonic()
            present.pop(0).close()
            disconnected.append(listen(server, "disconnected")[0] - start)
            start = time.monotonic()
            with connected(endpoint) as newcomer:
                newcomer.send(b"quick")
                newcomer.recv()
                answered.append(time.monotonic() - start)
            present.append(stack.enter_context(computing(endpoint)))
            listen(server, "started")
        write_line(server)
        told: dict[str, Any] = json.loads(listen(server, "told")[1])
    late, rate = told["late"], told["rate"]
    return Figures(disconnected=disconnected, answered=answered, late=late, rate=rate)


def row(title: str, figures: Figures, alone: float) -> list[str]:
    """A table's row: median, 90th percentile and maximum in milliseconds, and what is computed."""
    cells = []
    for times in (figures["disconnected"], figures["answered"], figures["late"]):
        ordered = sorted(times)
        values = (percentile(ordered, share) * 1000 for share in (0.5, 0.9, 1))
        cells.append(" / ".join(f"{value:.0f}" for value in values))
    return [title, *cells, f"{figures['rate'] / alone:.2f}"]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's options."""
    parser.add_argument("--clients", type=int, nargs="+", default=CLIENTS)
    parser.add_argument("--intervals", type=float, nargs="+", default=INTERVALS, metavar="MS")
    parser.add_argument("--rounds", type=int, default=20, help="disconnects for each row (20)")
    parser.add_argument("--serve", type=float, nargs=2, help=argparse.SUPPRESS)
    report.add_output(parser)


def run(options: argparse.Namespace) -> int:
    """Measure, or serve for the process that does."""
    if options.serve:
        end_with_parent()
        trio.run(serve, *options.serve)
        return 0
    table = report.Table(
        ["functions, switch interval", "disconnect", "new client", "event loop", "computed"],
        note="Milliseconds, median / 90th percentile / maximum: until the server has cancelled a "
        "client's request after its disconnect; from connect to the reply of a function that "
        "returns at once; by which the event loop is woken late. Computed: relative to one "
        "function alone.",
    )
    alone = measure(1, 0, options.rounds)
    figures = {"1": alone}
    table.rows.append(row("1, as served", alone, alone["rate"]))
    for clients in options.clients:
        for interval in options.intervals:
            title = f"{clients}, {f'{interval:g} ms' if interval else 'as served'}"
            print(title, file=sys.stderr)
            figures[title] = measure(clients, interval / 1000, options.rounds)
            table.rows.append(row(title, figures[title], alone["rate"]))
    report.show(options, "computing", f"{options.rounds} disconnects a row.", [table], figures)
    return 0
