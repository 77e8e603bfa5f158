"""One client: its cancel scope and nursery, its requests in flight, and its session."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from contextvars import Context
from typing import TYPE_CHECKING, Any

import trio

from .._protocol.connection_table import Connection
from .._protocol.endings import Ending
from .._protocol.envelope import Frames
from .._request import ENDED_SESSION, AsyncFunction, Peer, set_session

if TYPE_CHECKING:
    from .pending_request import PendingRequest
    from .sessions import Sessions

Name = tuple[Frames, int]
"""The envelope and the correlation of a request; unique among the requests of its client."""
Run = Callable[["PendingRequest"], Awaitable[None]]


class Client:
    """What the server keeps for a connection, from its first message on.

    Its requests run in a nursery of its own, whose cancel scope a disconnect cancels. The nursery
    is opened when a request first needs it. The tasks of its session have scopes of their own,
    since a later request of a REQ client cancels the nursery and goes on.

    Args:
        connection: The client's connection.
        peer: The client, as handlers see it.
        handler_name: Names its tasks.
        sessions: Runs the tasks of its session.

    Attributes:
        lock_step: Whether it is a REQ socket: a new request supersedes the one before.
        requests: Its requests in flight, the oldest first.
        named: Those of `requests` that the client can cancel.
        warned: Endings that were logged for it; each is logged once.
        last_heard: When its last message was read, on trio's clock.
        session_scopes: Those of the tasks of its session; None until it has one.
    """

    __slots__ = (
        "_nursery",
        "_sessions",
        "_unstarted",
        "connection",
        "last_heard",
        "lock_step",
        "named",
        "peer",
        "requests",
        "session_scopes",
        "task_name",
        "warned",
    )

    def __init__(
        self, connection: Connection, peer: Peer, handler_name: str, sessions: Sessions
    ) -> None:
        self.connection = connection
        self.peer = peer
        self.lock_step = peer.socket_type == "REQ"
        self.requests: dict[PendingRequest, None] = {}
        self.named: dict[Name, PendingRequest] = {}
        self.warned: set[Ending] = set()
        self.task_name = f"client {peer.id}: {handler_name}"
        self._nursery: trio.Nursery | None = None
        self._unstarted: list[tuple[Run, PendingRequest]] | None = None
        self._sessions = sessions
        self.last_heard = 0.0
        self.session_scopes: set[trio.CancelScope] | None = None
        set_session(peer, ENDED_SESSION if connection.disconnected else self)

    def start_soon(self, async_fn: AsyncFunction, args: tuple[object, ...]) -> None:
        """Start a task of its session."""
        self._sessions.start(self, async_fn, args)

    def end_session(self, reason: str) -> None:
        """The connection has ended, or the server stops: cancel the tasks of its session."""
        set_session(self.peer, ENDED_SESSION)
        for scope in self.session_scopes or ():
            scope.cancel(reason=reason)

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
