"""The server on the memory network; a test that gets stuck fails at once by the clock."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import trio

from trioreq._server.handlers import Handler
from trioreq.testing import MemoryNetwork, open_memory_server


@asynccontextmanager
async def serving(handler: Handler, **options: Any) -> AsyncIterator[MemoryNetwork]:
    """Serve, with few turns and places to wait, unless the test says how many."""
    with trio.fail_after(1e6):
        options = {"max_in_flight": 10, "max_queued_per_client": 10} | options
        options.setdefault("raise_handler_errors", False)
        async with open_memory_server(handler, **options) as net:
            yield net
