"""Clients that are stopped, and clients that never read: what is the effect on other clients?

So many clients are stopped with SIGSTOP in the middle of a pipeline, and as many send without ever
reading a reply. Heartbeats are off, so none of them is disconnected: this is the worst case. Once
the server has read what they sent, it is measured how long others wait for an echo, and how much
memory the server has: it may grow by what `send_queue` allows each. The others ask a second server,
which has no such clients, in turn: what else the machine does slows both alike.
"""

from __future__ import annotations

import math
import time
from contextlib import AsyncExitStack
from dataclasses import dataclass
from functools import partial
from typing import Any

import trio

from ..children import open_child
from ..clients import ClientSocket, open_clients
from ..latency import Waits
from ..processes import python_module
from ..servers import ServerProcess, open_server

OTHERS = 4  # clients that read
WARM_UP = 0.5  # seconds, to connect and for what was sent before
PAUSE = 0.001  # seconds between a reply and the next request of theirs
REPLY = 10_000  # bytes
SEND_QUEUE = 20
REQUESTS = 400  # of each client that is stopped or never reads
BESIDE = 8_192 + 2_000  # bytes for a connection: libzmq's output buffer, and its structures
PER_REPLY = REPLY + 200  # bytes


@dataclass
class Report:
    """What was measured: seconds and bytes."""

    clients: int
    without: Waits
    beside: Waits
    grown: int
    allowed: int
    evicted: int
    left: int

    def __str__(self) -> str:
        rows = [
            ("clients stopped, clients that never read", f"{self.clients}, {self.clients}"),
            ("the others' p50 without, with them", self._both(50)),
            ("the others' p99 without, with them", self._both(99)),
            ("the longest wait", self._both(100)),
            ("evicted, since they did not read", f"{self.evicted:,}"),
            ("memory has grown by", f"{self.grown / 1e6:.1f} MB"),
            ("send_queue allows", f"{self.allowed / 1e6:.1f} MB"),
            ("and once they are disconnected", f"{self.left / 1e6:.1f} MB"),
        ]
        return "\n".join(f"{name:42} {value:>18}" for name, value in rows)

    def _both(self, percent: float) -> str:
        before, after = self.without.percentile(percent), self.beside.percentile(percent)
        return f"{before * 1000:.2f}, {after * 1000:.2f} ms"


async def measure(clients: int, seconds: float) -> Report:
    """Measure the others without such clients, and with them."""
    options: dict[str, Any] = {"send_queue": SEND_QUEUE, "heartbeat": None}
    async with open_server(**options) as healthy, open_server(**options) as server:
        await _waits([healthy, server], WARM_UP)
        before = (await server.state())["memory"]
        async with AsyncExitStack() as stack:
            for kind in ("reads", "deaf"):
                arguments = (server.endpoint, clients, REQUESTS, f"reply {REPLY}", kind)
                program = python_module("harness.programs.pipeline", *arguments)
                child = await stack.enter_async_context(open_child(program))
                await child.read_line()
                if kind == "reads":
                    child.stop()
            await server.until(partial(_has_read, 2 * clients * REQUESTS))
            without, beside = await _waits([healthy, server], seconds)
            state = await server.state()
        await server.until(lambda state: not state["statistics"][0]["connections"])
        left = (await server.state())["memory"] - before
    return Report(
        clients,
        without,
        beside,
        state["memory"] - before,
        2 * clients * (SEND_QUEUE * PER_REPLY + BESIDE),
        state["statistics"][0]["evicted_slow"],
        left,
    )


def _has_read(requests: int, state: dict[str, Any]) -> bool:
    statistics = state["statistics"][0]
    return bool(statistics["requests"] >= requests and not statistics["in_flight"])


async def _waits(servers: list[ServerProcess], seconds: float) -> list[Waits]:
    """What others wait at each of some servers, which they ask in turn."""
    waits = [Waits() for _ in servers]

    async def ask(asked: list[ClientSocket]) -> None:
        while True:
            for client, client_waits in zip(asked, waits, strict=True):
                await client_waits.ask_once(client)
                await trio.sleep(PAUSE)

    start = time.monotonic() + WARM_UP
    with open_clients() as clients, trio.move_on_after(WARM_UP + seconds):
        async with trio.open_nursery() as nursery:
            for _ in range(OTHERS):
                nursery.start_soon(ask, [clients.connect(one.endpoint) for one in servers])
    return [one.between(start, math.inf) for one in waits]
