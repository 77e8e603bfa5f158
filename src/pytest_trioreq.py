"""Fixtures for pytest-trio. pytest finds them if trioreq is installed.

pytest loads this module in every run. So it is not in the package, and does not import trioreq
before one of its fixtures is used: an import would cost time, need the extra `testing`, and run
before coverage is measured.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    import trio

    from trioreq import Client
    from trioreq.testing import MemoryNetwork

T = TypeVar("T")

try:
    from pytest_trio import trio_fixture
except ModuleNotFoundError:  # then there are no fixtures
    pass
else:

    @trio_fixture
    async def trioreq_server() -> AsyncIterator[Callable[..., Awaitable[MemoryNetwork]]]:
        """Starts servers on networks in memory; awaited with `open_memory_server`'s arguments.

        All servers of a test end with it.
        """
        from trioreq.testing import open_memory_server

        async with _opener(open_memory_server) as start:
            yield start

    @trio_fixture
    async def trioreq_client() -> AsyncIterator[Callable[..., Awaitable[Client]]]:
        """Opens clients of such servers; awaited with `open_client`'s arguments.

        All clients of a test end with it.
        """
        from trioreq import open_client

        async with _opener(open_client) as start:
            yield start


@asynccontextmanager
async def _opener(
    make: Callable[..., AbstractAsyncContextManager[T]],
) -> AsyncIterator[Callable[..., Awaitable[T]]]:
    """Opens context managers that stay open until the block is left.

    Each has a task of its own, since a task must close what it opens, and the caller is the task of
    the test.
    """
    import trio

    from trioreq._nursery import open_own_nursery

    async def hold(
        manager: AbstractAsyncContextManager[T], task_status: trio.TaskStatus[T]
    ) -> None:
        async with manager as opened:
            task_status.started(opened)
            await trio.sleep_forever()

    async with open_own_nursery() as nursery:

        async def start(*args: Any, **options: Any) -> T:  # noqa: ANN401  # those of `make`
            opened: T = await nursery.start(hold, make(*args, **options))
            return opened

        yield start
