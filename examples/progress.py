"""A job that reports its progress, and is cancelled when its client leaves.

    python examples/progress.py [ADDRESS]

A server prints its address. A client follows one job to its end, and leaves a second one after two
replies: that job is cancelled. Then the client follows a third one.
"""

from __future__ import annotations

import sys
from collections.abc import AsyncIterator

import trio

import trioreq

STEPS = 4


async def job(request: trioreq.Request) -> AsyncIterator[bytes]:
    """Work in steps, and report after each how much is done."""
    name = request.body.decode()
    try:
        for step in range(1, STEPS + 1):
            await trio.sleep(0.02)  # the work of a step
            yield b"%d%%" % (100 * step // STEPS)
    except trio.Cancelled:
        print(f"server: {name} is cancelled: {request.cancel_reason}")
        raise
    print(f"server: {name} is done")


async def follow(client: trioreq.Client, name: str, *, leave_after: int | None = None) -> None:
    """Print the progress of a job, to its end or for some replies."""
    taken = 0
    async with client.stream(name.encode(), idle_timeout=10) as replies:
        async for reply in replies:
            print(f"client: {name} {reply.decode()}")
            taken += 1
            if taken == leave_after:
                break  # leaving the block cancels what is left of the job


async def main(addr: str) -> None:
    """Serve, and be the client."""
    async with trioreq.open_server(job, addr) as server:
        print("serving at", *server.endpoints, flush=True)
        async with trioreq.open_client(server.endpoints[0]) as client:
            await follow(client, "first")
            await follow(client, "second", leave_after=2)
            await follow(client, "third")


if __name__ == "__main__":
    try:
        trio.run(main, sys.argv[1] if sys.argv[1:] else "tcp://127.0.0.1:5555")
    except trioreq.EndpointError as error:
        sys.exit(str(error))
    except KeyboardInterrupt:
        sys.exit(130)
