"""The servers and clients of `python -m benchmarks streams`, each in a process of its own.

    python -m benchmarks.shared.streaming ROLE [PORT] [SECONDS]

A server prints its port. A client prints one line of JSON.
"""

from __future__ import annotations

import asyncio
import json
import statistics
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AsyncExitStack
from typing import Any

import trio

import trioreq
from harness.memory import resident_memory
from harness.processes import end_with_parent
from trioreq._protocol.credit import REPLIES

from .handlers import echo

REPLY = bytes(64)
ENDLESS = b"1000000000"
IN_FLIGHT = 256
CALL = 10_000  # requests of a `request_many`
PAUSE = 0.3  # seconds in which a crowd's streams begin, or end, at most


async def generator(request: trioreq.Request) -> AsyncIterator[bytes]:
    for _ in range(int(request.body)):
        yield REPLY


def plain_generator(request: trioreq.Request) -> Iterator[bytes]:
    for _ in range(int(request.body)):
        yield REPLY


async def plain_reply(request: trioreq.Request) -> bytes:
    return await echo(request.body)


def serve_trioreq(handler: Callable[[trioreq.Request], Any]) -> None:
    """Serve until killed."""

    async def main() -> None:
        async with trioreq.open_server(
            handler, "tcp://127.0.0.1:0", max_in_flight=2000, max_queued_per_client=2000
        ) as server:
            print(server.endpoints[0].rpartition(":")[2], flush=True)
            await trio.sleep_forever()

    trio.run(main)


def serve_grpc() -> None:
    """Serve until killed."""
    from ..peers import grpc_aio

    async def stream(body: bytes) -> AsyncIterator[bytes]:
        for _ in range(int(body)):
            yield REPLY

    asyncio.run(grpc_aio.run(echo, lambda port: print(port, flush=True), stream))


async def take_for(replies: AsyncIterator[object], seconds: float) -> int:
    """How many replies come in so many seconds."""
    taken = 0
    end = time.perf_counter() + seconds
    async for _ in replies:
        taken += 1
        if not taken % 64 and time.perf_counter() > end:
            break
    return taken


async def ask_many(client: trioreq.Client, seconds: float) -> int:
    """The same for replies to `request_many`."""
    bodies = CALL * [REPLY]
    taken = 0
    end = time.perf_counter() + seconds
    while time.perf_counter() < end:
        replies = await client.request_many(bodies, in_flight=IN_FLIGHT)
        assert replies == bodies
        taken += len(replies)
    return taken


def rate(role: str, port: int, seconds: float) -> dict[str, float]:
    """Replies a second."""

    async def on_trio() -> float:
        async with trioreq.open_client(f"tcp://127.0.0.1:{port}") as client:
            if role == "many":
                await client.request(REPLY)
                begun = time.perf_counter()
                taken = await ask_many(client, seconds)
            else:
                async with client.stream(ENDLESS) as replies:
                    await anext(replies)
                    begun = time.perf_counter()
                    taken = await take_for(replies, seconds)
            return taken / (time.perf_counter() - begun)

    async def on_asyncio() -> float:
        import grpc.aio

        from ..peers.grpc_aio import STREAM

        async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
            replies = aiter(channel.unary_stream(STREAM)(ENDLESS))
            await anext(replies)
            begun = time.perf_counter()
            return await take_for(replies, seconds) / (time.perf_counter() - begun)

    return {"rate": asyncio.run(on_asyncio()) if role == "grpc" else trio.run(on_trio)}


def first(port: int, other: int, seconds: float) -> dict[str, float]:
    """Microseconds to the first reply of a stream, and to a plain reply of another server."""

    async def main() -> dict[str, float]:
        async with (
            trioreq.open_client(f"tcp://127.0.0.1:{port}") as streams,
            trioreq.open_client(f"tcp://127.0.0.1:{other}") as requests,
        ):
            took: dict[str, list[float]] = {"stream": [], "request": []}
            end = time.perf_counter() + seconds
            while time.perf_counter() < end:
                begun = time.perf_counter()
                async with streams.stream(b"1") as replies:
                    await anext(replies)
                    took["stream"].append(time.perf_counter() - begun)
                    async for _ in replies:
                        pass
                begun = time.perf_counter()
                await requests.request(REPLY)
                took["request"].append(time.perf_counter() - begun)
        return {name: statistics.median(times) * 1e6 for name, times in took.items()}

    return trio.run(main)


def crowd(port: int, streams: int, seconds: float) -> dict[str, float]:
    """Replies a second of so many streams alone, and beside as many that are never read."""

    async def main() -> dict[str, float]:
        taken = 0

        async def take(stack: AsyncExitStack, client: trioreq.Client) -> None:
            nonlocal taken
            async for _ in await stack.enter_async_context(client.stream(ENDLESS)):
                taken += 1

        async def measure() -> float:
            before, begun = taken, time.perf_counter()
            await trio.sleep(seconds)
            return (taken - before) / (time.perf_counter() - begun)

        address = f"tcp://127.0.0.1:{port}"
        async with (
            trioreq.open_client(address) as reads,
            trioreq.open_client(address) as reads_not,
            AsyncExitStack() as stack,
            trio.open_nursery() as nursery,
        ):
            for _ in range(streams):
                nursery.start_soon(take, stack, reads)
            pause = min(PAUSE, seconds)
            await trio.sleep(pause)
            alone, beside = [], []
            memory = resident_memory()
            for _ in range(3):
                alone.append(await measure())
                async with AsyncExitStack() as unread:
                    replies: list[Any] = [
                        await unread.enter_async_context(reads_not.stream(ENDLESS))
                        for _ in range(streams)
                    ]
                    while any(len(stream._replies) < REPLIES for stream in replies):  # noqa: ASYNC110, SLF001  # nothing is reported of what is not read
                        await trio.sleep(pause)
                    beside.append(await measure())
                    grown = resident_memory() - memory
                await trio.sleep(pause)
            nursery.cancel_scope.cancel()
        return {
            "alone": statistics.median(alone),
            "beside": statistics.median(beside),
            "grown": grown,
        }

    return trio.run(main)


def main() -> None:
    """Play a role."""
    end_with_parent()
    role, *numbers = sys.argv[1:]
    match role:
        case "serve-streams":
            serve_trioreq(generator)
        case "serve-plain-streams":
            serve_trioreq(plain_generator)
        case "serve-replies":
            serve_trioreq(plain_reply)
        case "serve-grpc":
            serve_grpc()
        case "first":
            print(json.dumps(first(int(numbers[0]), int(numbers[1]), float(numbers[2]))))
        case "crowd":
            print(json.dumps(crowd(int(numbers[0]), int(numbers[1]), float(numbers[2]))))
        case _:
            print(json.dumps(rate(role, int(numbers[0]), float(numbers[1]))))


if __name__ == "__main__":
    main()
