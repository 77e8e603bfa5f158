"""One client: its cancel scope and nursery, and its requests in flight."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from contextvars import Context
from typing import TYPE_CHECKING, Any

import trio

from .._protocol.connection_table import Connection
from .._protocol.endings import Ending
from .._protocol.envelope import Frames
from .._request import Peer

if TYPE_CHECKING:
    from .pending_request import PendingRequest

Name = tuple[Frames, int]
"""The envelope and the correlation of a request; unique among the requests of its client."""
Run = Callable[["PendingRequest"], Awaitable[None]]


class Client:
    """What the server keeps for a connection, from its first message on.

    Its requests run in a nursery of its own, whose cancel scope a disconnect cancels. The nursery
    is opened when a request first needs it.

    Args:
        connection: The client's connection.
        peer: The client, as handlers see it.

    Attributes:
        lock_step: Whether it is a REQ socket: a new request supersedes the one before.
        requests: Its requests in flight, the oldest first.
        named: Those of `requests` that the client can cancel.
        warned: Endings that were logged for it; each is logged once.
    """

    __slots__ = (
        "_nursery",
        "_unstarted",
        "connection",
        "lock_step",
        "named",
        "peer",
        "requests",
        "task_name",
        "warned",
    )

    def __init__(self, connection: Connection, peer: Peer, handler_name: str) -> None:
        self.connection = connection
        self.peer = peer
        self.lock_step = peer.socket_type == "REQ"
        self.requests: dict[PendingRequest, None] = {}
        self.named: dict[Name, PendingRequest] = {}
        self.warned: set[Ending] = set()
        self.task_name = f"client {peer.id}: {handler_name}"
        self._nursery: trio.Nursery | None = None
        self._unstarted: list[tuple[Run, PendingRequest]] | None = None

    def start(
        self, request: PendingRequest, run: Run, server: trio.Nursery, context: Context
    ) -> None:
        """Run a request in a task of its own, in the client's nursery.

        Args:
            request: The request.
            run: Runs it.
            server: The server's nursery, in which the client's is opened if there is none.
            context: The server's context, which the tasks inherit. The caller's context may be
                that of another request.
        """
        start_soon: Any  # its type is lost in `Context.run`
        if self._nursery is not None:
            start_soon = self._nursery.start_soon
            context.run(start_soon, run, request, name=self.task_name)
        elif self._unstarted is not None:  # the nursery is being opened
            self._unstarted.append((run, request))
        else:
            self._unstarted = [(run, request)]
            start_soon = server.start_soon
            context.run(start_soon, self._live, self._unstarted, name=f"client {self.peer.id}")

    @trio.lowlevel.enable_ki_protection  # an interrupt here would end the server without replies
    async def _live(self, unstarted: list[tuple[Run, PendingRequest]]) -> None:
        """Keep the nursery open until the client's scope is cancelled."""
        async with trio.open_nursery() as nursery:
            if self._unstarted is unstarted:  # else it was cancelled before it began
                self._nursery = nursery
                self._unstarted = None
            for run, request in unstarted:  # ended ones too: their tasks release the slots
                nursery.start_soon(run, request, name=self.task_name)
            if self._nursery is nursery:
                await trio.sleep_forever()

    def cancel(self, reason: str) -> None:
        """Cancel the client's scope, and with it all handlers that run there.

        A request that starts later gets a new scope, as one that supersedes the one before.
        """
        nursery, self._nursery, self._unstarted = self._nursery, None, None
        if nursery is not None:
            nursery.cancel_scope.cancel(reason=reason)
