"""The tasks of sessions, which handlers start with `Peer.start_soon`.

Each is a task in the server's nursery, in a cancel scope of its own that ends with the connection.
It is in no scope of a request, so no end of a request cancels it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any

import trio

from .._request import AsyncFunction
from .._transport.router import Router
from .client import Client
from .finishing import Blocks
from .handlers import ends_program, is_cancellation, name_of
from .leftovers import Baseline
from .observer import Observer


class Sessions:
    """Runs the tasks of all sessions.

    Args:
        router: The ROUTER, whose connections these are.
        nursery: The server's.
        observers: Receive each task that fails.
        blocks: The server's finishing blocks.
        crashed: As for `HandlerTasks`.
    """

    def __init__(
        self,
        router: Router,
        nursery: trio.Nursery,
        observers: Sequence[Observer],
        blocks: Blocks,
        crashed: Callable[[], None],
    ) -> None:
        self._router = router
        self._nursery = nursery
        self._observers = observers
        self._crashed = crashed
        self._token = trio.lowlevel.current_trio_token()
        self._context = blocks.new_context()

    def start(self, client: Client, async_fn: AsyncFunction, args: tuple[object, ...]) -> None:
        """Start a task, unless the client has disconnected (in any thread)."""
        try:
            here = trio.lowlevel.current_trio_token() is self._token
        except RuntimeError:  # a plain function, in its thread
            here = False
        if here:
            self._start(client, async_fn, args)
        else:
            with suppress(trio.RunFinishedError):  # the thread was abandoned, and trio has ended
                self._token.run_sync_soon(self._start, client, async_fn, args)

    @trio.lowlevel.enable_ki_protection
    def _start(self, client: Client, async_fn: AsyncFunction, args: tuple[object, ...]) -> None:
        if client.connection.disconnected or self._nursery.cancel_scope.cancel_called:
            return
        scope = trio.CancelScope()
        if client.session_scopes is None:
            client.session_scopes = set()
        client.session_scopes.add(scope)
        start_soon: Any = self._nursery.start_soon  # its type is lost in `Context.run`
        name = f"client {client.peer.id}: {name_of(async_fn)}"
        self._context.run(start_soon, self._run, client, scope, async_fn, args, name=name)

    async def _run(
        self,
        client: Client,
        scope: trio.CancelScope,
        async_fn: AsyncFunction,
        args: tuple[object, ...],
    ) -> None:
        try:
            with scope:
                baseline = Baseline()
                try:
                    await async_fn(*args)
                except BaseException as error:  # noqa: BLE001  # what ends the program is raised again
                    self._fail(client, scope, error, baseline)
                else:
                    baseline.restore(client.peer, "a task of its session")
        except BaseException:
            self._crashed()
            raise
        finally:
            assert client.session_scopes is not None  # noqa: S101  # the scope was in it
            client.session_scopes.discard(scope)

    @trio.lowlevel.enable_ki_protection
    def _fail(
        self, client: Client, scope: trio.CancelScope, error: BaseException, baseline: Baseline
    ) -> None:
        """A task has raised: log it, and close the connection."""
        if isinstance(error, GeneratorExit) and not baseline.is_running():
            raise error  # trio has crashed, and Python closes this coroutine
        baseline.restore(client.peer, "a task of its session")
        if ends_program(error):
            raise error  # the caller calls `crashed`
        if is_cancellation(error) and trio.current_effective_deadline() == -math.inf:
            return
        for observer in self._observers:
            observer.session_failed(client.peer, error)
        if not scope.cancel_called:  # else the connection has ended, or the server stops
            self._router.evict(client.connection, "a task of its session has failed")
