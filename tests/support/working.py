"""A server whose workers run `jobs.work`, and a client; what becomes of its processes."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import trio

import trioreq
from support import jobs
from support.jobs import Reports
from support.serving import LIMIT

SOON = 10  # seconds, on a busy machine


@asynccontextmanager
async def working(
    workers: Any, **options: Any
) -> AsyncIterator[tuple[trioreq.Server, trioreq.Client]]:
    """A server with processes, and a client."""
    with trio.fail_after(LIMIT):
        async with (
            trioreq.open_server(
                jobs.work, "tcp://127.0.0.1:0", workers=workers, **options
            ) as server,
            trioreq.open_client(server.endpoints[0]) as client,
        ):
            yield server, client


async def gone(pid: int, pidfd_open: Callable[[int], int] = os.pidfd_open) -> None:
    """Wait until a process has ended, as it soon must; it need not be a child of this one."""
    try:
        descriptor = pidfd_open(pid)
    except ProcessLookupError:
        return
    try:
        with trio.fail_after(SOON):
            await trio.lowlevel.wait_readable(descriptor)
    finally:
        os.close(descriptor)


async def give_up(client: trioreq.Client, body: bytes, reports: Reports, first: str) -> int:
    """Send a request, and cancel it when its function has reported; returns what it was run by."""
    async with trio.open_nursery() as nursery:
        nursery.start_soon(client.request, body)
        pid = await reports.wait(first)
        nursery.cancel_scope.cancel()
    return pid
