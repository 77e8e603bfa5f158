"""A unary method of grpc.aio, on bytes."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import grpc
import grpc.aio

METHOD = "/benchmark/ask"


async def run(
    handler: Callable[[bytes], Awaitable[bytes]], listening: Callable[[int], None]
) -> None:
    """Serve until killed."""

    async def ask(body: bytes, _context: object) -> bytes:
        return await handler(body)

    server = grpc.aio.server()
    methods = {"ask": grpc.unary_unary_rpc_method_handler(ask)}
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("benchmark", methods),))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    listening(port)
    await server.wait_for_termination()


def serve(handler: Callable[[bytes], Awaitable[bytes]], listening: Callable[[int], None]) -> None:
    """Serve until killed."""
    asyncio.run(run(handler, listening))
