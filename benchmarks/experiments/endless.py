"""How much memory can a peer take that sends one message without end, until it is ended?

    python -m benchmarks endless [--max-message-size 16777216] [--connections 1]

For each kind of frame a server process of its own, and peers that send as fast as they can over the
loopback interface, each from a thread. Printed is what they have sent, when the last was ended, and
the memory of the server: before, the most that it ever had, and after all was given back.
"""

from __future__ import annotations

import argparse
import re
import time
from contextlib import ExitStack
from pathlib import Path

import trio

from harness.servers import open_server
from harness.zmtp import MORE, RawPeer, frame

MIB = 2**20
LIMIT = 120  # seconds


def most_memory(pid: int) -> float:
    """MiB that a process has had at the most."""
    found = re.search(r"VmHWM:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text())
    assert found
    return int(found[1]) / 1024


async def attack(kind: str, part: bytes, max_message_size: int, connections: int) -> None:
    """One server, and its attackers."""
    sent = 0
    with trio.fail_after(LIMIT), ExitStack() as stack:
        async with open_server(max_message_size=max_message_size) as server:
            before = (await server.state())["memory"] / MIB
            peers = [stack.enter_context(RawPeer(server.endpoint)) for _ in range(connections)]
            for peer in peers:
                peer.shake_hands()
            begun = time.monotonic()

            async def send(peer: RawPeer) -> None:
                nonlocal sent
                more = await trio.to_thread.run_sync(peer.send_until_end, part)
                sent += more

            async with trio.open_nursery() as nursery:
                for peer in peers:
                    nursery.start_soon(send, peer)
            took = time.monotonic() - begun
            most = most_memory(server.process.pid)
            state = await server.until(lambda state: state["statistics"][0]["connections"] == 0)
            state = await server.until(lambda state: state["memory"] / MIB < before + 8)
            assert state["statistics"][0]["evicted"] == connections
            print(
                f"{kind:24} sent {sent / MIB:6.0f} MiB in {took:5.2f} s; memory {before:.0f} MiB, "
                f"{most:.0f} at the most, {state['memory'] / MIB:.0f} after",
                flush=True,
            )


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's options."""
    parser.add_argument("--max-message-size", type=int, default=16 * MIB, help="bytes (16 MiB)")
    parser.add_argument("--connections", type=int, default=1)


def run(options: argparse.Namespace) -> int:
    """Measure and show each kind of frame."""
    large = min(MIB, options.max_message_size)
    parts = {
        f"frames of {large} bytes": frame(bytes(large), MORE),
        "frames of 1000 bytes": frame(bytes(1000), MORE) * 1000,
        "empty frames": frame(b"", MORE) * 50_000,
    }
    for kind, part in parts.items():
        trio.run(attack, kind, part, options.max_message_size, options.connections)
    return 0
