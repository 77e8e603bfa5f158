"""Where a handler runs: in the task that reads, or in a task in its client's nursery."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import trio

import trioreq

from .nets import Net, PlainClient
from .serving import until

HOLD = b"hold"

EACH_PLACE = pytest.mark.parametrize("place", ["reader", "nursery"])
"""For tests whose requests run in the one and in the other."""


class Asker:
    """A client whose requests run in a certain place, on a server with one slot.

    Attributes:
        client: The client.
    """

    client: PlainClient

    def __init__(self, net: Net, handler: Callable[[trioreq.Request], Any], place: str) -> None:
        self._net = net
        self._handler = handler
        self._place = place
        self._held = self._release = trio.Event()

    async def ask(self, body: bytes) -> bytes:
        """Send a request and wait for its reply: the first frame, or an error's code."""
        if self._place == "nursery":  # behind a request that waits in the reader's task
            self._held, self._release = trio.Event(), trio.Event()
            await self.client.send(HOLD)
            await self._held.wait()
            await self.client.send(body)
            await until(lambda: self._net.server.statistics().waiting == 1)
            self._release.set()
            assert await self.client.receive() == [b"held"]
        else:
            await self.client.send(body)
        reply = await self.client.receive()
        return reply[1] if reply[0] == b"trioreq-error" else reply[0]

    async def handle(self, request: trioreq.Request) -> Any:
        """The server's handler."""
        if request.body != HOLD:
            return await self._handler(request)
        self._held.set()
        await self._release.wait()
        return b"held"


async def open_asker(
    net: Net, handler: Callable[[trioreq.Request], Any], place: str = "reader", **options: Any
) -> Asker:
    """Serve, and connect a client whose requests run in `place`."""
    asker = Asker(net, handler, place)
    await net.serve(asker.handle, **({"max_in_flight": 1} | options))
    asker.client = await net.connect("DEALER")
    return asker


def tasks_below(task: trio.lowlevel.Task) -> Iterator[trio.lowlevel.Task]:
    """All tasks in the nurseries of a task, and in theirs."""
    for nursery in task.child_nurseries:
        for child in nursery.child_tasks:
            yield child
            yield from tasks_below(child)


def names_of_tasks() -> list[str]:
    """The names of all tasks of this run."""
    root = trio.lowlevel.current_root_task()
    assert root is not None
    return [task.name for task in tasks_below(root)]
