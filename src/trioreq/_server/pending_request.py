"""A request that was read and has not ended, as the server sees it."""

from __future__ import annotations

import math

import trio

from .._errors import CancelReason
from .._protocol.envelope import Frames, Header
from .._request import Request
from .client import Client, Name
from .deadlines import Timer


class PendingRequest(Request):
    """A request, as the server sees it.

    Attributes:
        owner: Its client.
        scope: Its own cancel scope, if it can be cancelled alone or runs in the reader's task.
            Otherwise its client's scope cancels it.
        started: Whether its handler has been called.
        ended: Whether it has ended, which it does exactly once.
        name: The name by which its client can cancel it; unset without a header.
        arrived_at: When it was read, on trio's clock. As for the next two, one reading of the clock
            serves for all requests of a batch whose handlers do not wait.
        started_at: When its handler was called; None before that.
        ended_at: When it ended; 0 before that.
    """

    __slots__ = (
        "arrived_at",
        "ended",
        "ended_at",
        "envelope",
        "header",
        "name",
        "owner",
        "scope",
        "started",
        "started_at",
        "timer",
    )

    name: Name

    def __init__(
        self,
        owner: Client,
        envelope: Frames,
        header: Header | None,
        frames: Frames,
        arrived_at: float,
    ) -> None:
        # `Request`'s attributes are set here: to call its `__init__` costs as much as all of this.
        self._client = owner.peer
        self._frames = frames
        self._deadline = math.inf
        self._cancel_reason = None
        self.owner = owner
        self.envelope = envelope
        self.header = header
        self.scope: trio.CancelScope | None = None
        self.started = False
        self.ended = False
        self.timer: Timer[PendingRequest] | None = None
        self.arrived_at = arrived_at
        self.started_at: float | None = None
        self.ended_at = 0.0

    @property
    def cancel_reason(self) -> CancelReason | None:
        """As in `Request`.

        trio may cancel the scope at its deadline before the server's own timer runs.
        """
        if self._cancel_reason is None and self.timed_out:
            return CancelReason.DEADLINE
        return self._cancel_reason

    @property
    def timed_out(self) -> bool:
        """Whether its scope's deadline has passed, and it has not ended before."""
        if self.ended or self.timer is None or self.scope is None:
            return False
        try:
            return self.scope.cancel_called
        except RuntimeError:  # in a thread, without trio's clock: the server's timer ends it
            return False

    @property
    def was_cancelled(self) -> bool:
        """Whether it was ended by a cancellation, and its scope with it."""
        return self._cancel_reason is not None

    @property
    def needs_scope(self) -> bool:
        """Whether it can be cancelled alone, or has a deadline of its own."""
        return self.header is not None or self.timer is not None
