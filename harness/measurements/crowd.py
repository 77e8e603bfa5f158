"""Many connected clients, half of which die at once.

The clients are DEALER sockets of libzmq in four processes. They connect, ask once, and then ask
for work that never ends; two of the processes are killed with SIGKILL. Another client asks for an
echo all the while, and what it waits is the effect on live clients.
"""

from __future__ import annotations

import math
import time
from contextlib import AsyncExitStack
from dataclasses import dataclass

import trio

from ..children import open_child
from ..clients import open_clients
from ..latency import Waits
from ..processes import python_module
from ..servers import ServerProcess, open_server

PROCESSES = 4
PAUSE = 0.001  # seconds between a reply and the next request of the client that is measured
QUIET = 2.0  # seconds to measure it in


@dataclass
class Report:
    """What was measured: seconds and bytes."""

    clients: int
    connected: float
    per_idle: float
    per_asked: float
    per_busy: float
    cancelled: int
    ended: float
    before: Waits
    meanwhile: Waits
    left: int

    def __str__(self) -> str:
        rows = [
            ("clients connected at once", f"{self.clients:,}"),
            ("time to connect them all", f"{self.connected:.2f} s"),
            ("memory of one that is connected", f"{self.per_idle / 1000:.1f} kB"),
            ("of one that has asked and is idle", f"{self.per_asked / 1000:.1f} kB"),
            ("of one whose request is worked on", f"{self.per_busy / 1000:.1f} kB"),
            ("clients killed at once", f"{self.cancelled:,}"),
            ("until the last of their work was cancelled", f"{self.ended:.2f} s"),
            ("requests of theirs that are left", f"{self.left}"),
            ("the living waited before, p50, p99, longest", _waits(self.before)),
            ("and meanwhile", _waits(self.meanwhile)),
        ]
        return "\n".join(f"{name:44} {value:>24}" for name, value in rows)


def _waits(waits: Waits) -> str:
    return ", ".join(f"{waits.percentile(p) * 1000:.1f}" for p in (50, 99, 100)) + " ms"


async def measure(clients: int) -> Report:
    """Let so many clients connect, and half of them die."""
    each = clients // PROCESSES
    async with (
        open_server(max_in_flight=clients + 1) as server,
        AsyncExitStack() as stack,
    ):
        living = stack.enter_context(open_clients())
        probe = living.connect(server.endpoint)
        await probe.request(b"echo")
        empty = (await server.state())["memory"]
        start = time.monotonic()
        crowd = [
            await stack.enter_async_context(
                open_child(python_module("harness.programs.crowd", server.endpoint, each))
            )
            for _ in range(PROCESSES)
        ]
        await _until(server, "connections", clients + 1)
        connected = time.monotonic() - start
        idle = (await server.state())["memory"]
        async with trio.open_nursery() as nursery:
            for child in crowd:
                nursery.start_soon(child.ask, "echo")
        asked = (await server.state())["memory"]
        async with trio.open_nursery() as nursery:
            for child in crowd:
                nursery.start_soon(child.ask, "hold")
        await _until(server, "running", clients)
        busy = (await server.state())["memory"]
        waits = Waits()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(waits.ask, probe, PAUSE)
            await trio.sleep(QUIET)
            calm = time.monotonic()
            await trio.sleep(QUIET)
            killed = time.monotonic()
            for child in crowd[: PROCESSES // 2]:
                child.kill()
            await server.until(lambda state: state["cancelled"] >= clients // 2)
            await trio.sleep(QUIET)
            nursery.cancel_scope.cancel()
        state = await server.state()
        before, meanwhile = waits.between(calm, killed), waits.between(killed, math.inf)
        return Report(
            clients,
            connected,
            (idle - empty) / clients,
            (asked - empty) / clients,
            (busy - empty) / clients,
            state["cancelled"],
            state["last_cancelled"] - killed,
            before,
            meanwhile,
            state["statistics"][0]["in_flight"] - each * PROCESSES // 2,
        )


async def _until(server: ServerProcess, what: str, number: int) -> None:
    await server.until(lambda state: state["statistics"][0][what] >= number)
