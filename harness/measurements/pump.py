"""The same crashes on the classic pump, the gateway and trioreq: how much work is for the dead?

`harness.programs.pump` has the servers. Clients ask for work in groups and are killed with
SIGKILL, more of them a second than the server's threads can work off. Meanwhile other clients ask
for an echo, again and again.
"""

from __future__ import annotations

import json
import time
from dataclasses import dataclass
from typing import Any

import trio

from ..children import Child, open_child
from ..clients import open_clients
from ..crashing import open_crashing_clients
from ..latency import Waits
from ..processes import python_module
from ..programs.pump import STEP

STEPS = 20
PROCESSES, CONNECTIONS = 8, 25
RATE = 250  # clients that die a second
LIVING = 4  # clients that do not die
CALM = 5.0  # seconds of a measurement without deaths
NOTICED = 0.05  # seconds in which a server detects the last deaths
PAUSE = 0.005  # seconds between a reply and the next request of theirs


@dataclass
class Report:
    """What was measured of one server: seconds and bytes."""

    name: str
    died: int
    state: dict[str, Any]
    late: int
    grown: int
    rest: float
    waits: Waits

    def figures(self) -> dict[str, str]:
        """What was measured, in words, and the figure."""
        p50, p99, longest = (f"{self.waits.percentile(p) * 1000:,.1f} ms" for p in (50, 99, 100))
        return {
            "clients that died": f"{self.died:,}",
            "work done to the end for the dead": f"{self.state['done']:,}",
            "work begun after the last death": f"{self.late:,}",
            "threads' time spent on the dead": f"{self.state['seconds']:,.0f} s",
            "replies handed over for the dead": f"{self.state['handed_over']:,}",
            "until the last of that, after the last death": f"{self.rest:.1f} s",
            "memory that has been added": f"{self.grown / 1e6:.1f} MB",
            "replies to the living": f"{len(self.waits.waits):,}",
            "they waited: p50": p50,
            "  p99": p99,
            "  longest": longest,
        }


async def measure(name: str, clients: int, steps: int) -> Report:
    """Let clients of one server die; with 0, let none die, for `CALM` seconds."""
    async with (
        open_child(python_module("harness.programs.pump", name, steps)) as server,
        open_crashing_clients(PROCESSES, CONNECTIONS) as crashing,
    ):
        endpoint = json.loads(await server.read_line())
        waits = Waits()
        with open_clients() as living:
            before = await _state(server)
            async with trio.open_nursery() as nursery:
                for _ in range(LIVING):
                    nursery.start_soon(waits.ask, living.connect(endpoint), PAUSE)
                due = trio.current_time()
                await trio.sleep(0 if clients else CALM)
                while crashing.died < clients:
                    await crashing.crash("killed", [(endpoint, "work")])
                    due += crashing.group / RATE
                    await trio.sleep_until(due)
                end = time.monotonic()
                await trio.sleep(NOTICED)
                begun = (await _state(server))["begun"]
                # The living are answered all the same, once the work for the dead is done.
                rest = await _rest(server)
                nursery.cancel_scope.cancel()
            state = await _state(server)
    late, grown = state["begun"] - begun, state["memory"] - before["memory"]
    return Report(name, crashing.died, state, late, grown, rest - end, waits)


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
    answer: dict[str, Any] = json.loads(await server.ask())
    return answer
