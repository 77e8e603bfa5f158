"""A handler that forwards each request to the worker with the fewest in flight.

A worker is a server with a connection of its own. Its slot is taken until it has replied, or its
connection is lost: a worker that has a request finishes it, also if the client has disconnected.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NoReturn

import trio

from .._client.connections import Connections
from .._client.errors import not_connected
from .._client.single import SingleRequest
from .._client.states import Closed, Connected
from .._errors import Code, ConnectionLost, ReplyError, RequestTimeout
from .._log import log
from .._protocol.envelope import Frames
from .._request import Request
from .._server.handlers import Forwarder

NO_WORKER = "no-worker"


class Worker:
    """A server that requests are forwarded to.

    Args:
        connections: The connection to it, and retired ones.
        slots: How many requests it may have at once.

    Attributes:
        in_flight: How many it has.
    """

    def __init__(self, connections: Connections, slots: int) -> None:
        self.connections = connections
        self.slots = slots
        self.in_flight = 0

    @property
    def connected(self) -> bool:
        """Whether a request can be sent."""
        return isinstance(self.connections.current.state, Connected)

    @property
    def lost_at(self) -> float:
        """Since when there is no connection, in trio's time; infinity if there is one.

        Raises:
            trio.ClosedResourceError: The gateway is closed.
        """
        self.connections.current.check_open()
        state = self.connections.current.state
        return math.inf if isinstance(state, Connected | Closed) else state.begun


class NotStarted(Exception):
    """A worker that shuts down has not started a request."""


class ForwardedRequest(SingleRequest):
    """A request that any worker may have, if the first one has not started it."""

    __slots__ = ()

    def not_started(self) -> None:
        """As in `PendingRequest`: `attempt` raises `NotStarted`."""
        self.failed(NotStarted())


class Gateway(Forwarder):
    """Forwards requests.

    Args:
        workers: The servers.
        retries: How often a request is forwarded again after its worker's connection was lost.
        connect_timeout: Seconds without any worker after which requests fail; infinity for no
            limit.
    """

    def __init__(self, workers: Sequence[Worker], retries: int, connect_timeout: float) -> None:
        self.slots = sum(worker.slots for worker in workers)
        self._workers = workers
        self._retries = retries
        self._connect_timeout = connect_timeout
        self._line = trio.Lock()  # requests that find no free worker, in their order
        self._changed = trio.lowlevel.ParkingLot()  # the first of them waits here
        self._shields: set[trio.CancelScope] = set()

    async def __call__(self, request: Request) -> Frames:
        """Forward a request, and wait for the reply."""
        lost = 0
        while lost <= self._retries:
            worker = await self._wait_free()
            try:
                return await self._forward(worker, request.frames)
            except ConnectionLost:
                lost += 1
            except NotStarted:
                pass  # wait for a free worker again, as if nothing was sent
            except RequestTimeout:
                raise ReplyError(Code.TIMED_OUT, "the worker's own time limit has passed") from None
            # Nothing is forwarded again for a client that has disconnected.
            await trio.lowlevel.checkpoint_if_cancelled()
        raise ReplyError(
            Code.HANDLER_FAILED, "the connection to the worker was lost; the outcome is unknown"
        )

    def stop(self) -> None:
        """As in `Forwarder`."""
        for shield in self._shields:
            shield.shield = False

    async def follow(self, worker: Worker, name: str) -> NoReturn:
        """Log a worker's connections, and wake the request that waits for one."""
        limit, reported = self._connect_timeout, False
        while True:
            before = worker.connected
            until = math.inf if reported else worker.lost_at + limit
            with trio.move_on_at(until):
                await worker.connections.wait_changed()
            self._changed.unpark()
            if worker.connected and not before:
                log.info("worker %s: connected", name)
                reported = False
            elif before and not worker.connected:
                log.warning("worker %s: the connection was lost", name)
            elif trio.current_time() >= until:
                log.warning(
                    "worker: %s", not_connected(name, worker.connections.current.state, limit)
                )
                reported = True

    async def _wait_free(self) -> Worker:
        """Wait for a worker that can be sent a request at once.

        Raises:
            ReplyError: There was no worker in time.
        """
        if not self._line.locked() and (worker := self._most_free()) is not None:
            return worker
        async with self._line:
            while (worker := self._most_free()) is None:
                # The worker that was lost last was the last one.
                until = max(worker.lost_at for worker in self._workers) + self._connect_timeout
                if until <= trio.current_time():
                    raise ReplyError(NO_WORKER, "there is no connection to any worker")
                with trio.move_on_at(until):
                    await self._changed.park()
                # A client that has disconnected meanwhile gets no worker.
                await trio.lowlevel.checkpoint_if_cancelled()
        return worker

    def _most_free(self) -> Worker | None:
        """The worker with the fewest requests in flight; None if none has a free slot."""
        free = [worker for worker in self._workers if worker.connected]
        worker = min(free, key=lambda worker: worker.in_flight, default=None)
        return None if worker is None or worker.in_flight >= worker.slots else worker

    async def _forward(self, worker: Worker, frames: Frames) -> Frames:
        """Send a request to a worker, and wait for its reply, whatever becomes of the client."""
        asking = ForwardedRequest(worker.connections, frames, math.inf, math.inf)
        worker.in_flight += 1
        shield = trio.CancelScope(shield=True)
        self._shields.add(shield)
        try:
            with shield:
                reply = await asking.attempt()
        finally:
            self._shields.remove(shield)
            worker.in_flight -= 1
            self._changed.unpark()
        return reply
