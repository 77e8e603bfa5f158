"""Observers of requests: each transition of each request is reported to them."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from .._log import log
from .._protocol.endings import ENDINGS, MALFORMED, OVERLOADED, Ending
from .handlers import ResultError, is_cancelled

if TYPE_CHECKING:
    from .pending_request import PendingRequest

FOREIGN_CANCELLED = (
    "this trio.Cancelled does not belong to the handler that raised it: a handler must not keep a "
    "Cancelled and raise it elsewhere"
)


class Observer:
    """Receives the transitions of requests, in the event loop.

    A method that a subclass does not override is never called, and costs nothing.
    """

    def batch_read(self) -> None:
        """A batch of messages was read, and is processed now."""

    def arrived(self, request: PendingRequest) -> None:
        """A request was read."""

    def started(self, request: PendingRequest) -> None:
        """Its handler is about to be called. Plain functions: in the thread that calls it."""

    def failed(self, request: PendingRequest, error: BaseException) -> None:
        """Its handler has failed. The request ends next, unless it has ended before."""

    def ended(self, request: PendingRequest, ending: Ending) -> None:
        """It has ended. Its handler may still run."""


class Counters(Observer):
    """Counts for `Server.statistics`.

    Attributes:
        endings: How many requests ended, by ending.
    """

    def __init__(self) -> None:
        self.endings: dict[Ending, int] = dict.fromkeys(ENDINGS, 0)

    def ended(self, request: PendingRequest, ending: Ending) -> None:
        """As in `Observer`."""
        self.endings[ending] += 1

    def outcomes(self) -> dict[str, int]:
        """How many requests had each outcome."""
        outcomes = dict.fromkeys((ending.outcome for ending in ENDINGS), 0)
        for ending, count in self.endings.items():
            outcomes[ending.outcome] += count
        return outcomes


class RequestLog(Observer):
    """Logs how requests end: each at DEBUG, and a client's first malformed one at WARNING.

    The same holds for the first that was overloaded. Handlers that fail are logged at ERROR.
    """

    def __init__(self) -> None:
        self._debug = False

    def batch_read(self) -> None:
        """As in `Observer`."""
        self._debug = log.isEnabledFor(logging.DEBUG)

    def failed(self, request: PendingRequest, error: BaseException) -> None:
        """As in `Observer`."""
        late = f" after its request had ended ({request.cancel_reason})" if request.ended else ""
        log_failure(f"client {request.client.id}: the handler failed{late}", error)

    def ended(self, request: PendingRequest, ending: Ending) -> None:
        """As in `Observer`."""
        if ending is MALFORMED or ending is OVERLOADED:
            warned = request.owner.warned
            if ending not in warned:
                warned.add(ending)
                log.warning("%s: %s (further ones are not logged)", request.client, ending.log)
        elif self._debug:
            log.debug("client %d: %s%s", request.client.id, ending.log, _times(request))


def log_failure(what: str, error: BaseException) -> None:
    """Log that the user's code has failed, with a traceback if that code is in it."""
    if isinstance(error, ResultError):  # raised here, after the handler has returned
        log.error("%s: TypeError: %s", what, error)
    else:
        advice = ": " + FOREIGN_CANCELLED if is_cancelled(error) else ""
        log.error("%s%s", what, advice, exc_info=error)


def _times(request: PendingRequest) -> str:
    if request.started_at is None:
        return ""
    waited = request.started_at - request.arrived_at
    took = request.ended_at - request.started_at
    return f" (waited {waited * 1000:.1f} ms, ran {took * 1000:.1f} ms)"
