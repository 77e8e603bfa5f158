"""A ROUTER of zmq.asyncio: a task for each request."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import zmq
import zmq.asyncio


async def run(
    handler: Callable[[bytes], Awaitable[bytes]], listening: Callable[[int], None]
) -> None:
    """Receive requests, and start a task for each."""
    router = zmq.asyncio.Context().socket(zmq.ROUTER)
    listening(router.bind_to_random_port("tcp://127.0.0.1"))
    tasks: set[asyncio.Task[None]] = set()

    async def answer(routing_id: bytes, delimiter: bytes, body: bytes) -> None:
        await router.send_multipart([routing_id, delimiter, await handler(body)])

    while True:
        task = asyncio.create_task(answer(*await router.recv_multipart()))
        tasks.add(task)  # the loop itself holds tasks weakly
        task.add_done_callback(tasks.discard)


def serve(handler: Callable[[bytes], Awaitable[bytes]], listening: Callable[[int], None]) -> None:
    """Serve until killed."""
    asyncio.run(run(handler, listening))
