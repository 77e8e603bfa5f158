"""Fixtures for pytest-trio. pytest finds them by itself where trioreq is installed.

It is loaded in every run of pytest there. So it stands beside the package, and not in it, and
imports nothing of trioreq before one of its fixtures is used: that would cost time, need all that
the extra `testing` installs, and come before who measures coverage looks.
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
except ModuleNotFoundError:  # then these fixtures are not there
    pass
else:

    @trio_fixture
    async def trioreq_server() -> AsyncIterator[Callable[..., Awaitable[MemoryNetwork]]]:
        """Starts servers on networks in memory: called as `open_memory_server` is, and awaited.

        All servers of a test end with it.
        """
        from trioreq.testing import open_memory_server

        async with _opener(open_memory_server) as start:
            yield start

    @trio_fixture
    async def trioreq_client() -> AsyncIterator[Callable[..., Awaitable[Client]]]:
        """Opens clients of such servers; it is called as `trioreq.open_client` is, and awaited.

        All clients of a test end with it.
        """
        from trioreq import open_client

        async with _opener(open_client) as start:
            yield start


@asynccontextmanager
async def _opener(
    make: Callable[..., AbstractAsyncContextManager[T]],
) -> AsyncIterator[Callable[..., Awaitable[T]]]:
    """Makes what stays open until the block is left.

    Each is opened in a task of its own: the one that asks for it is the test's, and what a task
    opens it has to close.
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

        async def start(*args: Any, **options: Any) -> T:  # noqa: ANN401  # as `make` takes them
            opened: T = await nursery.start(hold, make(*args, **options))
            return opened

        yield start
