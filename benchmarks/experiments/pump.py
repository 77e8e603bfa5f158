"""The same crashes on the classic pump and on trioreq: who works for the dead?

    python -m benchmarks pump [--clients 10000] [--plot docs/pump.svg]

The classic server is what ZeroMQ's guide has for many workers: a ROUTER in front, a DEALER behind,
`zmq.proxy` between them, and REP workers in threads. trioreq runs plain functions in as many
threads. The work is the same: 20 steps of 10 ms; trioreq's function looks between them whether
anybody waits. Clients ask for it in groups and are killed with SIGKILL, 250 a second, which is more
than the threads can work off. Meanwhile others, who live, ask for an echo, ever again.
"""

from __future__ import annotations

import argparse
import json
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import trio
import zmq

import trioreq

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "tests"))

from support.children import Child, Waits, open_program
from support.clients import open_clients
from support.flocks import open_flock
from support.server import memory

from ..shared.drawing import drawing
from ..shared.processes import ROOT

THREADS = 40
STEPS = 20
STEP = 0.01  # seconds
PROCESSES, CONNECTIONS = 8, 25
RATE = 250  # clients that die a second
LIVING = 4
PAUSE = 0.005  # seconds between a reply and the next request of one who lives


class Work:
    """What the handlers of a server have done for clients that are to die."""

    def __init__(self, steps: int) -> None:
        self._steps = steps
        self._lock = threading.Lock()
        self.done = 0
        self.seconds = 0.0
        self.begun = 0
        self.ended = 0

    def do(self, check: Callable[[], None]) -> None:
        """Work, and look between the steps whether to go on."""
        with self._lock:
            self.begun += 1
        start = time.monotonic()
        try:
            for _ in range(self._steps):
                check()
                time.sleep(STEP)
            with self._lock:
                self.done += 1
        finally:
            with self._lock:
                self.ended += 1
                self.seconds += time.monotonic() - start

    def tell(self, **more: object) -> None:
        """Write it as a line."""
        state = {"done": self.done, "seconds": self.seconds, "busy": self.begun - self.ended}
        print(json.dumps({**state, "memory": memory(), **more}), flush=True)


def serve_classic(steps: int) -> None:
    """The pump of the guide."""
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    front, back = context.socket(zmq.ROUTER), context.socket(zmq.DEALER)
    port = front.bind_to_random_port("tcp://127.0.0.1")
    back.bind("inproc://workers")
    work = Work(steps)

    def worker() -> None:
        socket = context.socket(zmq.REP)
        socket.connect("inproc://workers")
        while True:
            body = socket.recv()
            if body == b"work":
                work.do(lambda: None)
            socket.send(body)

    for _ in range(THREADS):
        threading.Thread(target=worker, daemon=True).start()
    threading.Thread(target=zmq.proxy, args=(front, back), daemon=True).start()
    print(json.dumps(f"tcp://127.0.0.1:{port}"), flush=True)
    for _ in sys.stdin:
        work.tell(handed_over=work.done)  # a REP worker answers all that it has worked on


async def serve_trioreq(steps: int) -> None:
    """trioreq, as its users run it."""
    work = Work(steps)
    living = 0

    def handler(request: trioreq.Request) -> bytes:
        nonlocal living
        if request.body == b"work":
            work.do(trioreq.check_cancelled)
        else:
            living += 1
        return request.body

    async with trio.open_nursery() as nursery:
        server: trioreq.Server = await nursery.start(
            lambda task_status: trioreq.serve(
                handler, "tcp://127.0.0.1:0", workers=THREADS, task_status=task_status
            )
        )
        print(json.dumps(server.endpoints[0]), flush=True)
        while await trio.to_thread.run_sync(sys.stdin.readline):
            statistics = server.statistics()
            work.tell(
                handed_over=statistics.replies_sent - living,
                waiting=statistics.waiting,
                never_started=statistics.never_started,
            )


@dataclass
class Report:
    """What one server has done: seconds and bytes."""

    name: str
    died: int
    state: dict[str, Any]
    grown: int
    rest: float
    waits: Waits

    def column(self) -> list[str]:
        """Its figures, in the order of `ROWS`."""
        waits = (f"{self.waits.percentile(p) * 1000:,.1f} ms" for p in (50, 99, 100))
        return [
            f"{self.died:,}",
            f"{self.state['done']:,}",
            f"{self.state['seconds']:,.0f} s",
            f"{self.state['handed_over']:,}",
            f"{self.rest:.1f} s",
            f"{self.grown / 1e6:.1f} MB",
            f"{len(self.waits.waits):,}",
            *waits,
        ]


ROWS = [
    "clients that died",
    "work done to the end for the dead",
    "threads' time spent on the dead",
    "replies handed over for the dead",
    "until the last of that, after the last death",
    "memory that has been added",
    "replies to the living",
    "they waited: p50",
    "  p99",
    "  longest",
]


async def measure(name: str, clients: int, steps: int) -> Report:
    """Let clients of one server die."""
    serve = ("--serve", name, "--steps", str(steps))
    async with (
        open_program("benchmarks", "pump", *serve, folder=ROOT) as server,
        open_flock(PROCESSES, CONNECTIONS) as flock,
    ):
        endpoint = json.loads(await server.wait())
        waits = Waits()
        with open_clients() as living:
            before = await _state(server)
            async with trio.open_nursery() as nursery:
                for _ in range(LIVING):
                    nursery.start_soon(waits.ask, living.connect(endpoint), PAUSE)
                due = trio.current_time()
                while flock.died < clients:
                    await flock.die("killed", [(endpoint, "work")])
                    due += flock.size / RATE
                    await trio.sleep_until(due)
                end = time.monotonic()
                # The living are answered all the same, once the work for the dead is done.
                rest = await _rest(server)
                nursery.cancel_scope.cancel()
            state = await _state(server)
    return Report(name, flock.died, state, state["memory"] - before["memory"], rest - end, waits)


async def _rest(server: Child) -> float:
    """Wait until nothing is done for the dead any more; returns since when."""
    since, done = time.monotonic(), -1.0
    while time.monotonic() - since < 20 * STEP * STEPS:
        state = await _state(server)
        if state["seconds"] != done or state["busy"]:
            since, done = time.monotonic(), state["seconds"]
        await trio.sleep(STEP)
    return since


async def _state(server: Child) -> dict[str, Any]:
    answer: dict[str, Any] = json.loads(await server.tell(""))
    return answer


def plot(reports: list[Report], file: Path) -> None:
    """Draw what the living waited."""
    with drawing(file) as axes:
        for report in reports:
            first = report.waits.ends[0]
            # The longest of each tenth of a second is enough to draw.
            longest: dict[int, float] = {}
            for wait, end in zip(report.waits.waits, report.waits.ends, strict=True):
                tenth = int((end - first) * 10)
                longest[tenth] = max(wait, longest.get(tenth, 0.0))
            axes.semilogy(
                [tenth / 10 for tenth in longest],
                [wait * 1000 for wait in longest.values()],
                label=report.name,
            )
        axes.set_xlabel("seconds; clients die all the while")
        axes.set_ylabel("longest wait of the living, ms")
        axes.legend()


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's options."""
    parser.add_argument("--clients", type=int, default=10_000, help="that die")
    parser.add_argument("--steps", type=int, default=STEPS, help="of 10 ms, that each has for work")
    parser.add_argument("--plot", type=Path, help="an SVG file to draw the waits into")
    parser.add_argument("--serve", choices=["classic", "trioreq"], help=argparse.SUPPRESS)


def run(options: argparse.Namespace) -> int:
    """Measure and show."""
    if options.serve == "classic":
        serve_classic(options.steps)
    elif options.serve:
        trio.run(serve_trioreq, options.steps)
    else:
        reports = [
            trio.run(measure, name, options.clients, options.steps)
            for name in ("classic", "trioreq")
        ]
        print(f"{'':46} {'classic':>14} {'trioreq':>14}")
        for row, *figures in zip(ROWS, *(report.column() for report in reports), strict=True):
            print(f"{row:46} {figures[0]:>14} {figures[1]:>14}")
        if options.plot:
            plot(reports, options.plot)
    return 0
