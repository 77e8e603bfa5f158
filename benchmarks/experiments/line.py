"""A cut cable and a bad line: is each lost client detected in time, and no other disconnected?

    python -m benchmarks line [--clients 50] [--seconds 60] [--cuts 5]

Server and clients are in two network namespaces of Linux, joined by a cable that can be cut, and
that loses 5 of 100 packets by chance and delays each by 200 ms in the second part. It takes root.
"""

from __future__ import annotations

import argparse
import random
import sys
import time

import trio

from harness import cable
from harness.clients import open_client_process
from harness.servers import open_server
from trioreq._transport.heartbeats import heartbeat_times

HEARTBEAT = 15.0  # seconds, as by default
LOSS = 0.05
DELAY = 0.2  # seconds
LATE = 30.0  # seconds that a reply may take longer, on such a line


async def cut(heartbeat: float) -> float:
    """Cut the cable in the middle of a request; returns after how many seconds it ended."""
    async with (
        cable.open_cable() as line,
        open_server(f"tcp://{line.address}:0", inside=line.near, heartbeat=heartbeat) as server,
        open_client_process(line.far) as peer,
    ):
        await peer.connect(server.endpoint)
        await peer.send("wait for the cut")
        await server.wait("started", "for the cut")
        await trio.sleep(random.uniform(0, heartbeat_times(heartbeat)[0]))  # anywhere between PINGs
        line.cut()
        start = time.monotonic()
        return await server.wait("disconnected", "for the cut") - start


async def bad_line(clients: int, seconds: float) -> str:
    """Let clients work over a bad line; returns what became of them."""
    async with (
        cable.open_cable(loses=lambda _: random.random() < LOSS, delay=DELAY) as line,
        open_server(f"tcp://{line.address}:0", inside=line.near, heartbeat=HEARTBEAT) as server,
        open_client_process(line.far) as peer,
    ):
        for number in range(clients):
            await peer.connect(server.endpoint, number=number)
            await peer.send(f"work {seconds}", number=number)
        # A client that was wrongly disconnected gets no reply.
        with trio.move_on_after(seconds + LATE):
            for number in range(clients):
                await peer.receive(number)
        statistics = (await server.state())["statistics"][0]
        packets = line.carried + line.lost
        return (
            f"{packets:,} packets, {line.lost / packets:.1%} lost, each delayed by {DELAY} s: "
            f"{statistics['replied']} of {clients} requests replied, "
            f"{statistics['cancelled_by_disconnect']} clients wrongly disconnected"
        )


async def measure(clients: int, seconds: float, cuts: int) -> None:
    """Print what was seen."""
    for heartbeat in (HEARTBEAT, 2.0):
        times = [await cut(heartbeat) for _ in range(cuts)]
        print(
            f"heartbeat {heartbeat:4} s, {cuts} cuts: detected after {min(times):.2f} to "
            f"{max(times):.2f} s",
            flush=True,
        )
    print(await bad_line(clients, seconds))


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's options."""
    parser.add_argument("--clients", type=int, default=50)
    parser.add_argument("--seconds", type=float, default=60.0, help="that their requests take")
    parser.add_argument("--cuts", type=int, default=5)


def run(options: argparse.Namespace) -> int:
    """Measure and show."""
    if reason := cable.why_not():
        print(reason, file=sys.stderr)
        return 1
    trio.run(measure, options.clients, options.seconds, options.cuts)
    return 0
