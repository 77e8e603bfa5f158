"""A server that is started and drained on demand, and counts which requests it has started.

    python -m harness.programs.restarted GRACE

It reads lines from its standard input. The first is an endpoint: it serves there, and writes the
endpoint as bound. At the second it drains, for GRACE seconds at most, and writes its counts: a JSON
object with how often a handler was called for each body.

A body is a name and the seconds that its work takes.
"""

from __future__ import annotations

import json
import os
import sys
from collections import Counter
from collections.abc import AsyncIterator

import trio

import trioreq

started: Counter[str] = Counter()


async def handler(request: trioreq.Request) -> bytes:
    """Work for as long as the body says."""
    body = request.body.decode()
    started[body] += 1
    await trio.sleep(float(body.split()[1]))
    return request.body


async def lines() -> AsyncIterator[str]:
    """The lines of the standard input."""
    stdin = trio.lowlevel.FdStream(os.dup(0))
    buffer = b""
    while more := await stdin.receive_some():
        *whole, buffer = (buffer + more).split(b"\n")
        for line in whole:
            yield line.decode()


async def main(grace: float) -> None:
    """Serve and drain."""
    orders = lines()
    endpoint = await anext(orders)
    async with trioreq.open_server(handler, endpoint) as server:
        print(*server.endpoints, flush=True)
        await anext(orders)
        await server.drain(grace)
    print(json.dumps(started), flush=True)


if __name__ == "__main__":
    trio.run(main, float(sys.argv[1]))
