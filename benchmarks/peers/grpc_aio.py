"""A unary method of grpc.aio, and one with server streaming, on bytes."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable

import grpc
import grpc.aio

METHOD = "/benchmark/ask"
STREAM = "/benchmark/stream"


async def run(
    handler: Callable[[bytes], Awaitable[bytes]],
    listening: Callable[[int], None],
    generator: Callable[[bytes], AsyncIterator[bytes]] | None = None,
) -> None:
    """Serve until killed."""

    async def ask(body: bytes, _context: object) -> bytes:
        return await handler(body)

    server = grpc.aio.server()
    methods = {"ask": grpc.unary_unary_rpc_method_handler(ask)}
    if generator is not None:

        async def stream(body: bytes, _context: object) -> AsyncIterator[bytes]:
            async for reply in generator(body):
                yield reply

        methods["stream"] = grpc.unary_stream_rpc_method_handler(stream)
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("benchmark", methods),))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    listening(port)
    await server.wait_for_termination()


def serve(handler: Callable[[bytes], Awaitable[bytes]], listening: Callable[[int], None]) -> None:
    """Serve until killed."""
    asyncio.run(run(handler, listening))
