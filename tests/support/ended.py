"""A server that ends by itself, and what `serve` raises then."""

from __future__ import annotations

from typing import Any

import trio

import trioreq

from .nets import Net


class Ended:
    """What has become of a call of `serve`.

    Attributes:
        error: What it has raised, unless the test has cancelled it.
        over: Set when it has ended.
    """

    def __init__(self) -> None:
        self.error: BaseException | None = None
        self.over = trio.Event()

    async def serve(self, net: Net, handler: Any, **options: Any) -> trioreq.Server:
        """Start a server."""

        async def run(task_status: trio.TaskStatus[trioreq.Server]) -> None:
            try:
                await trioreq.serve(handler, net._address(), task_status=task_status, **options)
            except trio.Cancelled:
                raise
            except BaseException as error:  # noqa: BLE001  # the test looks at it
                self.error = error
            self.over.set()

        net.server = await net._nursery.start(run)
        return net.server
