"""Fixtures for pytest-trio. pytest finds them by itself where trioreq is installed."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .._client import Client
    from ._network import MemoryNetwork

try:
    from pytest_trio import trio_fixture
except ModuleNotFoundError:  # then these fixtures are not there
    pass
else:

    @trio_fixture
    async def trioreq_server() -> AsyncIterator[Callable[..., Awaitable[MemoryNetwork]]]:
        """Starts servers on networks in memory: called as `open_memory_server` is, and awaited.

        All servers of a test end with it.
        """
        from . import open_memory_server

        async with AsyncExitStack() as stack:

            async def start(handler: Callable[..., Any], **options: Any) -> MemoryNetwork:  # noqa: ANN401
                return await stack.enter_async_context(open_memory_server(handler, **options))

            yield start

    @trio_fixture
    async def trioreq_client() -> AsyncIterator[Callable[..., Awaitable[Client]]]:
        """Opens clients of such servers; it is called as `trioreq.open_client` is, and awaited.

        All clients of a test end with it.
        """
        from .. import open_client

        async with AsyncExitStack() as stack:

            async def start(endpoint: MemoryNetwork | str, **options: Any) -> Client:  # noqa: ANN401
                return await stack.enter_async_context(open_client(endpoint, **options))

            yield start
