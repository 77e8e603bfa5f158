"""What the handlers of the servers do, each of which returns the body that it is given.

`echo` never waits, `checkpoint` awaits one checkpoint, and `sleep` waits 1 ms. The plain functions,
which run in threads, return at once, sleep for 1 ms, sleep for 10 ms as if they asked a database,
and compute for 100 microseconds of the processor's time. By a server that has no threads for them
they are run with trio's `to_thread`.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable

import trio

SLEEP = 0.001  # seconds
QUERY = 0.01  # seconds
COMPUTE = 0.0001  # seconds of the processor, however long a thread waits for Python's lock

Handler = Callable[[bytes], Awaitable[bytes]]
Function = Callable[[bytes], bytes]


async def echo(body: bytes) -> bytes:
    return body


async def trio_checkpoint(body: bytes) -> bytes:
    await trio.lowlevel.checkpoint()
    return body


async def trio_sleep(body: bytes) -> bytes:
    await trio.sleep(SLEEP)
    return body


async def asyncio_checkpoint(body: bytes) -> bytes:
    await asyncio.sleep(0)
    return body


async def asyncio_sleep(body: bytes) -> bytes:
    await asyncio.sleep(SLEEP)
    return body


def plain_echo(body: bytes) -> bytes:
    return body


def plain_sleep(body: bytes) -> bytes:
    time.sleep(SLEEP)
    return body


def plain_query(body: bytes) -> bytes:
    time.sleep(QUERY)
    return body


def plain_compute(body: bytes) -> bytes:
    end = time.thread_time() + COMPUTE
    while time.thread_time() < end:
        pass
    return body


def in_thread(function: Function) -> Handler:
    """A handler that runs a function in a thread of trio's."""

    async def handler(body: bytes) -> bytes:
        return await trio.to_thread.run_sync(function, body)

    return handler


PLAIN: dict[str, Function] = {
    "plain-echo": plain_echo,
    "plain-sleep": plain_sleep,
    "plain-query": plain_query,
    "plain-compute": plain_compute,
}
TRIO: dict[str, Handler] = {
    "echo": echo,
    "checkpoint": trio_checkpoint,
    "sleep": trio_sleep,
    **{name: in_thread(function) for name, function in PLAIN.items()},
}
ASYNCIO: dict[str, Handler] = {
    "echo": echo,
    "checkpoint": asyncio_checkpoint,
    "sleep": asyncio_sleep,
}
