"""The reader: reads batches of messages, and returns the requests that may run.

A server has one. Each task that needs the ROUTER to be read calls it, and starts what it returns.
"""

from __future__ import annotations

from typing import Final

from .._transport.router import BATCH, Router
from .._transport.zap_handler import AccessRules
from .client import Client
from .pending_request import PendingRequest
from .requests import Requests
from .sessions import Sessions

CATCH_UP: Final = 8  # batches that are read before new connections are accepted, at most


class Reader:
    """Reads the ROUTER, and attributes each message to its client.

    Args:
        router: The ROUTER.
        requests: Accepts the requests.
        rules: The access rules.
        handler_name: Names the tasks of clients.
        sessions: Run the tasks of their sessions.
    """

    def __init__(
        self,
        router: Router,
        requests: Requests,
        rules: AccessRules,
        handler_name: str,
        sessions: Sessions,
    ) -> None:
        self._router = router
        self._requests = requests
        self._rules = rules
        self._handler_name = handler_name
        self._sessions = sessions

    @property
    def weight(self) -> int:
        """Bytes of the messages that were read, as a batch counts them."""
        return self._router.weight

    def read(self, room: int) -> list[PendingRequest] | None:
        """Read a batch of messages, then the monitor, and accept the requests.

        Args:
            room: Bytes after which the batch ends.

        Returns:
            The requests that may run; None if there was nothing to read.
        """
        # It reads the monitor after the batch, so that requests whose client has disconnected by
        # then are not started (G3).
        messages = self._router.read_batch(room)
        if messages is None:
            return None
        requests, outbox = self._requests, self._router.outbox
        now = requests.begin_batch()
        outbox.cork()
        runnable = []
        for connection, frames in messages:
            client = connection.client
            if client is None:
                peer = connection.peer
                assert peer is not None  # noqa: S101  # it has sent a message
                if not connection.disconnected and not self._rules.still_accept(peer):
                    # The key was removed between its handshake and its first message.
                    self._router.evict(connection, "its key is no longer on the allow-list")
                client = Client(connection, peer, self._handler_name, self._sessions)
                connection.client = client
            client.last_heard = now
            request = requests.accept(client, frames, now)
            if request is not None:
                runnable.append(request)
        requests.in_batch = False
        outbox.flush()
        return runnable

    def catch_up(self) -> tuple[list[PendingRequest], bool]:
        """Read the messages that have arrived, up to `CATCH_UP` batches.

        libzmq keeps the routing ids of closed connections until the ROUTER was read to its end, and
        would ignore a new connection under one of them permanently.

        Returns:
            The requests that may run, and whether all was read.
        """
        runnable: list[PendingRequest] = []
        dry = False
        for _ in range(CATCH_UP):
            batch = self.read(BATCH)
            dry = batch is None
            if batch is None:
                break
            runnable.extend(batch)
        self._router.wake()  # another task may wait for messages that are left
        return runnable, dry

    async def wait(self) -> None:
        """Wait until there may be something to read. The last `read` has returned None."""
        await self._router.wait()

    def readable(self) -> bool:
        """Whether there is something to read."""
        return self._router.readable()
