"""A protocol of aiozmq: a task for each request."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import aiozmq
import zmq


class Answer(aiozmq.ZmqProtocol):  # type: ignore[misc]
    """Answers what the handler returns."""

    def __init__(self, handler: Callable[[bytes], Awaitable[bytes]]) -> None:
        self._handler = handler
        self._tasks: set[asyncio.Task[None]] = set()

    def connection_made(self, transport: Any) -> None:
        """The socket is there."""
        self._transport = transport

    def msg_received(self, message: list[bytes]) -> None:
        """Start a task for a request."""
        task = asyncio.create_task(self._answer(*message))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _answer(self, routing_id: bytes, delimiter: bytes, body: bytes) -> None:
        self._transport.write([routing_id, delimiter, await self._handler(body)])


async def run(
    handler: Callable[[bytes], Awaitable[bytes]], listening: Callable[[int], None]
) -> None:
    """Serve until killed."""
    transport, _ = await aiozmq.create_zmq_connection(
        lambda: Answer(handler), zmq.ROUTER, bind="tcp://127.0.0.1:*"
    )
    (endpoint,) = transport.bindings()
    listening(int(endpoint.rpartition(":")[2]))
    await asyncio.Event().wait()


def serve(handler: Callable[[bytes], Awaitable[bytes]], listening: Callable[[int], None]) -> None:
    """Serve until killed."""
    asyncio.run(run(handler, listening))
