"""How often is a message taken for another connection's, when connections come and go?

Peers connect at full speed, each from an address of its own, name it in what they say, and
leave in many ways. Printed is how many messages trioreq attributed wrongly, by descriptor and
epoch, and how many the newest connection on the descriptor would have been wrong for.
"""

from __future__ import annotations

import argparse

import trio

import trioreq
from harness import churn


async def echo(request: trioreq.Request) -> bytes:
    return request.body


async def measure(addr: str, connections: int) -> None:
    with churn.watched() as ledger:
        async with trio.open_nursery() as nursery:
            server = await nursery.start(trioreq.serve, echo, addr)
            endpoint = server.endpoints[0]
            took = await trio.to_thread.run_sync(churn.load, endpoint, connections)
            await server.drain(10)
    print(f"messages                       {ledger.messages + ledger.late:8}")
    print(f"connections a second           {connections / took:8.0f}")
    print(f"wrong by descriptor and epoch  {ledger.wrong + ledger.wrongly_late:8}")
    print(f"wrong by the descriptor alone  {ledger.wrong_by_descriptor:8}", end="")
    print(f"  of {ledger.looked_up} that were looked up")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's options."""
    parser.add_argument("--addr", default="tcp://127.0.0.1:0", help="tcp on 127.0.0.1, or ipc")
    parser.add_argument("--connections", type=int, default=5000)


def run(options: argparse.Namespace) -> int:
    """Measure and show."""
    trio.run(measure, options.addr, options.connections)
    return 0
