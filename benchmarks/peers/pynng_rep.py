"""A Rep0 of pynng on trio, with many contexts, each in a task."""

from __future__ import annotations

import socket
from collections.abc import Awaitable, Callable

import pynng
import trio

CONTEXTS = 256  # requests that it works on at once


async def answer(handler: Callable[[bytes], Awaitable[bytes]], context: pynng.Context) -> None:
    """Answer one request after the other."""
    while True:
        await context.asend(await handler(await context.arecv()))


async def run(
    handler: Callable[[bytes], Awaitable[bytes]], listening: Callable[[int], None]
) -> None:
    """Serve until killed."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    with pynng.Rep0(listen=f"tcp://127.0.0.1:{port}") as rep:
        listening(port)
        async with trio.open_nursery() as nursery:
            for _ in range(CONTEXTS):
                nursery.start_soon(answer, handler, rep.new_context())


def serve(handler: Callable[[bytes], Awaitable[bytes]], listening: Callable[[int], None]) -> None:
    """Serve until killed."""
    trio.run(run, handler, listening)
