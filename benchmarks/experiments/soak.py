"""A hundred thousand clients that ask and die: what is left of them in the server?

    python -m benchmarks soak [--clients 100000] [--plot docs/soak.svg]

The server is a process of its own that serves async handlers on one address and plain functions
on another. The clients are processes in groups that are killed with SIGKILL, and connections that
are reset, half of each. They ask for handlers of all kinds: those that answer at once, that take
their time, that shield themselves, and plain functions that look whether anybody waits and that do
not. Memory is what the server has resident after `malloc_trim(0)`.

It fails if memory grows by more than 10 MB after the first clients, if a descriptor, a task or a
thread stays, if the statistics do not add up, or if a new client is not answered at once.
"""

from __future__ import annotations

import argparse
import sys
import time
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import trio

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "tests"))

from support.clients import open_clients
from support.flocks import Kinds, open_flock
from support.servers import ServerProcess, open_server
from support.zmtp import RawPeer, message

from ..shared.drawing import drawing

MB = 1e6
GROWTH = 10 * MB  # bytes that memory may grow by
AT_ONCE = 0.1  # seconds
REST = 20.0  # seconds for the last handlers to end
SLOTS = 256
THREADS = 40
ONE_TIME = {"in_flight", "waiting", "running", "connections", "abandoned_threads"}
NOT_ENDS = {"requests", "replies_sent", "replies_dropped", "unattributed", *ONE_TIME}


@dataclass
class Report:
    """What a soak has shown.

    Attributes:
        died: Clients.
        seconds: How long that took.
        first: The server's state after the first clients.
        last: The same at the end.
        fresh: Seconds until a new client had its answer, right after the last death.
        memory: Clients that have died, and bytes of memory then.
    """

    died: int
    seconds: float
    first: dict[str, Any]
    last: dict[str, Any]
    fresh: float
    memory: list[tuple[int, int]]

    def faults(self, at_once: float = AT_ONCE) -> list[str]:
        """What is not as it should be; a new client is to be answered within `at_once` seconds."""
        found = []
        if self.last["memory"] - self.first["memory"] > GROWTH:
            found.append("memory has grown")
        found += [
            f"{what}: {self.first[what]} at first, {self.last[what]} at the end"
            for what in ("descriptors", "tasks", "threads")
            if self.first[what] != self.last[what]
        ]
        for statistics in self.last["statistics"]:
            ends = sum(value for name, value in statistics.items() if name not in NOT_ENDS)
            if statistics["requests"] != ends or any(statistics[name] for name in ONE_TIME):
                found.append(f"the statistics do not add up: {statistics}")
        if self.fresh > at_once:
            found.append(f"a new client waited {self.fresh} s")
        return found

    def __str__(self) -> str:
        def total(name: str) -> int:
            return sum(_all(self.last, name))

        rows: list[tuple[str, object]] = [
            ("clients that died", f"{self.died:,}"),
            ("of them a second", f"{self.died / self.seconds:,.0f}"),
            ("requests read", f"{total('requests'):,}"),
            ("  replied, before the end was seen", f"{total('replied'):,}"),
            ("  cancelled", f"{total('cancelled_by_disconnect'):,}"),
            ("  never started", f"{total('never_started'):,}"),
            (f"memory after the first {self.memory[0][0]:,}", _mb(self.first["memory"])),
            ("memory at the end", _mb(self.last["memory"])),
            ("descriptors at first, at the end", _both(self, "descriptors")),
            ("tasks", _both(self, "tasks")),
            ("threads", _both(self, "threads")),
            ("a new client is answered after", f"{self.fresh * 1000:.1f} ms"),
        ]
        return "\n".join(f"{name:40} {value:>14}" for name, value in rows)


def _mb(size: int) -> str:
    return f"{size / MB:.1f} MB"


def _both(report: Report, what: str) -> str:
    return f"{report.first[what]}, {report.last[what]}"


async def soak(clients: int, first: int, processes: int = 8, connections: int = 25) -> Report:
    """Let so many die, and compare the server after the first of them and at the end."""
    async with (
        open_server(kind="both", max_in_flight=SLOTS, workers=THREADS) as server,
        open_flock(processes, connections) as flock,
    ):
        loop, threads = server.endpoints
        kinds: Kinds = [
            (loop, "echo"),
            (loop, "hold"),
            (threads, "check"),
            (loop, "work 0.02"),
            (threads, "deaf"),
            (loop, "shield"),
            (threads, "echo"),
        ]
        await _start_all_lanes(server)
        memory: list[tuple[int, int]] = []
        state: dict[str, Any] = {}
        start = time.monotonic()
        for number in range(clients // flock.size):
            await flock.die("reset" if number % 2 else "killed", kinds)
            if flock.died % first == 0:
                now = await at_rest(server)
                memory.append((flock.died, now["memory"]))
                state = state or now
        seconds = time.monotonic() - start
        with open_clients() as fresh:
            start = time.monotonic()
            await fresh.connect(loop).request(b"echo")
            answered = time.monotonic() - start
        last = await at_rest(server)
        return Report(flock.died, seconds, state, last, answered, memory)


async def _start_all_lanes(server: ServerProcess) -> None:
    """Lanes and threads are started when they are first needed, and stay."""
    for endpoint, verb, count in zip(
        server.endpoints, (b"hold", b"check"), (SLOTS, THREADS), strict=True
    ):
        with await trio.to_thread.run_sync(RawPeer, endpoint) as peer:
            await trio.to_thread.run_sync(peer.shake_hands)
            peer.send(message(b"", verb) * count)
            await server.until(partial(_are_running, count))
        await at_rest(server)


def _are_running(count: int, state: dict[str, Any]) -> bool:
    return sum(_all(state, "running")) == count


async def at_rest(server: ServerProcess) -> dict[str, Any]:
    """Wait until nothing is left to do; returns the state then."""
    with trio.fail_after(REST):
        await server.until(lambda state: not any(sum(_all(state, name)) for name in ONE_TIME))
    return await server.state()


def _all(state: dict[str, Any], name: str) -> list[int]:
    """A figure of each server's statistics."""
    return [statistics[name] for statistics in state["statistics"]]


def plot(report: Report, file: Path) -> None:
    """Draw memory over deaths."""
    with drawing(file) as axes:
        axes.plot(*zip(*((died, size / MB) for died, size in report.memory), strict=True))
        axes.set_xlabel("clients that have died")
        axes.set_ylabel("resident memory, MB")
        axes.set_ylim(bottom=0)
        axes.xaxis.set_major_formatter("{x:,.0f}")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's options."""
    parser.add_argument("--clients", type=int, default=100_000)
    parser.add_argument("--first", type=int, default=5_000, help="compare with so many")
    parser.add_argument("--plot", type=Path, help="an SVG file to draw memory into")


def run(options: argparse.Namespace) -> int:
    """Measure and show."""
    report = trio.run(soak, options.clients, options.first)
    print(report)
    if options.plot:
        plot(report, options.plot)
    for fault in report.faults():
        print(fault, file=sys.stderr)
    return 1 if report.faults() else 0
