"""The server on real sockets, within a limit of real time."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import trio

import trioreq

LIMIT = 30  # seconds of real time, for a test that got stuck


@asynccontextmanager
async def serving(
    handler: Callable[[trioreq.Request], Any], addr: str = "tcp://127.0.0.1:0", **options: Any
) -> AsyncIterator[trioreq.Server]:
    """Serve, and cancel the server at the end."""
    with trio.fail_after(LIMIT):
        async with trio.open_nursery() as nursery:

            async def start(task_status: trio.TaskStatus[trioreq.Server]) -> None:
                await trioreq.serve(handler, addr, task_status=task_status, **options)

            yield await nursery.start(start)
            nursery.cancel_scope.cancel()


async def until(condition: Callable[[], bool]) -> None:
    """Let the loop run until something is so that tells nobody when it comes to be."""
    while not condition():  # noqa: ASYNC110  # nothing sets an event for it
        await trio.sleep(0.001)
