"""Handlers that misbehave: how long do the other clients wait meanwhile?

    python -m benchmarks misbehaving

For each fault a server in a process of its own, one client that brings the fault about, and one
that asks for an echo all the while. Printed is the longest that this one waited, in that of three
tries in which it was least: what else the machine does also makes it wait.
"""

from __future__ import annotations

import argparse

import trio

from harness.clients import open_clients
from harness.latency import Waits
from harness.servers import open_server

SECONDS = 3.0
TRIES = 3
FAULTS = [
    ("none", "async", "echo"),
    ("blocks the loop for 1 s", "async", "block 1"),
    ("shields itself for 1 s, its client gone", "async", "gone stubborn 1"),
    ("raises", "async", "raise"),
    ("returns 1 GiB", "async", f"reply {2**30}"),
    ("computes for 1 s in a thread of its own", "async", "thread 1"),
    ("computes for 1 s (a plain function)", "plain", "spin 1"),
    ("sleeps for 1 s, its client gone (plain)", "plain", "gone sleep 1"),
]


async def measure(kind: str, fault: str) -> Waits:
    """Bring a fault about, and measure another client's waits."""
    waits = Waits()
    async with open_server(kind=kind) as server:
        with open_clients() as clients, trio.move_on_after(SECONDS):
            async with trio.open_nursery() as nursery:
                other, faulty = (clients.connect(server.endpoint) for _ in range(2))
                await other.request(b"echo")
                nursery.start_soon(waits.ask, other, 0.001)
                await trio.sleep(SECONDS / 6)
                await faulty.send(fault.removeprefix("gone ").encode())
                if fault.startswith("gone"):
                    await trio.sleep(SECONDS / 30)
                    faulty.close()
                await trio.sleep_forever()
    return waits


async def measure_all() -> None:
    """Print a line for each fault."""
    print(f"{'a handler that':44} {'the other waits: p50':>20} {'longest':>12}")
    for name, kind, fault in FAULTS:
        tries = [await measure(kind, fault) for _ in range(TRIES)]
        waits = min(tries, key=lambda one: one.percentile(100))
        figures = [f"{waits.percentile(p) * 1000:.1f} ms" for p in (50, 100)]
        print(f"{name:44} {figures[0]:>20} {figures[1]:>12}", flush=True)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's options."""
    del parser  # none


def run(options: argparse.Namespace) -> int:
    """Measure and show."""
    del options
    trio.run(measure_all)
    return 0
