"""A nursery for context managers."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import trio


@asynccontextmanager
async def open_own_nursery() -> AsyncIterator[trio.Nursery]:
    """Open a nursery that is cancelled when its block ends.

    For a context manager that runs tasks in the background. A single exception is raised without
    a group around it.
    """
    try:
        async with trio.open_nursery() as nursery:
            try:
                yield nursery
            finally:
                nursery.cancel_scope.cancel()
    except BaseExceptionGroup as group:
        if len(group.exceptions) > 1:
            raise
        error = group.exceptions[0]
        raise error from error.__cause__
