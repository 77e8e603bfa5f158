"""Many clients that ask and die: what is left of them in the server?

The server is a process of its own that serves async handlers on one address and plain functions
on another. The clients are processes in groups that are killed with SIGKILL, and connections that
are reset, half of each. They ask for handlers of all kinds: those that answer at once, that take
their time, that shield themselves, and plain functions that look whether they are cancelled and
that do not. Memory is what the server has resident after `malloc_trim(0)`.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from functools import partial
from typing import Any

import trio

from trioreq._statistics import GAUGES

from ..clients import open_clients
from ..crashing import Kinds, open_crashing_clients
from ..outcomes import ended
from ..servers import ServerProcess, open_server
from ..zmtp import RawPeer, message

MB = 1e6
GROWTH = 10 * MB  # bytes that memory may grow by
AT_ONCE = 0.1  # seconds
REST = 20.0  # seconds for the last handlers to end
SLOTS = 256
THREADS = 40


@dataclass
class Report:
    """What was measured.

    Attributes:
        died: How many clients have died.
        seconds: How long that took.
        first: The server's state after the first clients.
        last: The same at the end.
        fresh: Seconds until a new client had its answer, right after the last death.
        memory: For each count of clients that had died, the bytes of memory then.
    """

    died: int
    seconds: float
    first: dict[str, Any]
    last: dict[str, Any]
    fresh: float
    memory: list[tuple[int, int]]

    def faults(self, at_once: float = AT_ONCE) -> list[str]:
        """What is wrong, in words.

        Args:
            at_once: Seconds in which a new client must have had its answer.
        """
        found = []
        if self.last["memory"] - self.first["memory"] > GROWTH:
            found.append("memory has grown")
        found += [
            f"{what}: {self.first[what]} at first, {self.last[what]} at the end"
            for what in ("descriptors", "tasks", "threads")
            if self.first[what] != self.last[what]
        ]
        for statistics in self.last["statistics"]:
            gauges = any(statistics[name] for name in GAUGES)
            if statistics["requests"] != ended(statistics) or gauges:
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
    """Let clients die, and compare the server after the first of them and at the end."""
    async with (
        open_server(kind="both", max_in_flight=SLOTS, workers=THREADS) as server,
        open_crashing_clients(processes, connections) as crashing,
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
        await _start_all_threads(server)
        memory: list[tuple[int, int]] = []
        state: dict[str, Any] = {}
        start = time.monotonic()
        for number in range(clients // crashing.group):
            await crashing.crash("reset" if number % 2 else "killed", kinds)
            if crashing.died % first == 0:
                now = await at_rest(server)
                memory.append((crashing.died, now["memory"]))
                state = state or now
        seconds = time.monotonic() - start
        with open_clients() as fresh:
            start = time.monotonic()
            await fresh.connect(loop).request(b"echo")
            answered = time.monotonic() - start
        last = await at_rest(server)
        return Report(crashing.died, seconds, state, last, answered, memory)


async def _start_all_threads(server: ServerProcess) -> None:
    """Fill all slots once. Threads are started when they are first needed, and stay."""
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
        await server.until(lambda state: not any(sum(_all(state, name)) for name in GAUGES))
    return await server.state()


def _all(state: dict[str, Any], name: str) -> list[int]:
    """A figure of each server's statistics."""
    return [statistics[name] for statistics in state["statistics"]]
