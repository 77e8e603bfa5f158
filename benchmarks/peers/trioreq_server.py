"""trioreq, with its defaults."""

from __future__ import annotations

from collections.abc import Callable

import trio

import trioreq

from ..shared import handlers


async def echo(request: trioreq.Request) -> bytes:
    return request.body


async def checkpoint(request: trioreq.Request) -> bytes:
    await trio.lowlevel.checkpoint()
    return request.body


async def sleep(request: trioreq.Request) -> bytes:
    await trio.sleep(handlers.SLEEP)
    return request.body


def plain_echo(request: trioreq.Request) -> bytes:
    return request.body


def plain_sleep(request: trioreq.Request) -> bytes:
    return handlers.plain_sleep(request.body)


def plain_query(request: trioreq.Request) -> bytes:
    return handlers.plain_query(request.body)


def plain_compute(request: trioreq.Request) -> bytes:
    return handlers.plain_compute(request.body)


HANDLERS = {
    "echo": echo,
    "checkpoint": checkpoint,
    "sleep": sleep,
    "plain-echo": plain_echo,
    "plain-sleep": plain_sleep,
    "plain-query": plain_query,
    "plain-compute": plain_compute,
}


async def run(handler: str, listening: Callable[[int], None]) -> None:
    """Serve until killed."""
    async with trio.open_nursery() as nursery:
        server = await nursery.start(trioreq.serve, HANDLERS[handler], "tcp://127.0.0.1:0")
        listening(int(server.endpoints[0].rpartition(":")[2]))


def serve(handler: str, listening: Callable[[int], None]) -> None:
    """Serve until killed."""
    trio.run(run, handler, listening)
