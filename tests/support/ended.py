"""A server that ends by itself, what `serve` raises then, and faults that bring that about."""

from __future__ import annotations

from typing import Any

import pytest
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


class Fault:
    """Makes a function raise.

    Attributes:
        error: What it raises the first time.
    """

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.error = LookupError("planted")
        self._monkeypatch = monkeypatch
        self._raised = False

    def plant(self, owner: type, name: str, *, always: bool = False) -> None:
        """Let it raise from now on, once or always."""
        function = getattr(owner, name)

        def raise_error(*args: Any, **options: Any) -> Any:
            if not self._raised:
                self._raised = True
                raise self.error
            if always:
                raise LookupError("planted, and called again")
            return function(*args, **options)

        self._monkeypatch.setattr(owner, name, raise_error)

    def plant_task(self, owner: type, name: str) -> trio.Event:
        """Let a task of servers that start later do what it does, and raise when the event is set.

        Args:
            owner: The class.
            name: The method that the task runs.
        """
        now = trio.Event()
        run = getattr(owner, name)

        async def run_until_fault(*args: Any) -> None:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(run, *args)
                await now.wait()
                nursery.cancel_scope.cancel()
            raise self.error

        self._monkeypatch.setattr(owner, name, run_until_fault)
        return now
