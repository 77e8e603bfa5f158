"""The counters of the server and the client."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class WorkerStatistics:
    """The current threads or processes for plain functions."""

    alive: int
    """All of them."""
    spare: int
    """Those that wait for a request."""
    busy: int
    """Those that run a function, also for a request that has ended, and those that end."""


@dataclass(frozen=True, slots=True)
class Statistics:
    """A snapshot of what a server has done since it started.

    Always ``requests`` = ``replied`` + ``failed`` + ``timed_out`` + ``superseded`` +
    ``cancelled_by_disconnect`` + ``cancelled_by_client`` + ``never_started`` + ``overloaded`` +
    ``malformed`` + ``shut_down`` + ``in_flight``.
    """

    requests: int
    """Requests read, including malformed and refused ones, and each request of a pack; a message
    that cancels a request or gives credit does not count."""
    replied: int
    """The handler returned a reply in time."""
    failed: int
    """The handler raised, or returned something that is not a reply."""
    timed_out: int
    """The request timed out before the handler returned."""
    superseded: int
    """A REQ client sent another request before the reply."""
    cancelled_by_disconnect: int
    """The client disconnected while the handler ran."""
    cancelled_by_client: int
    """The client cancelled the request."""
    never_started: int
    """The client had disconnected before the handler was called."""
    overloaded: int
    """The client had `max_queued_per_client` queued requests already."""
    malformed: int
    """The message was not a request, or asked for one reply of a handler that makes streams."""
    shut_down: int
    """The server shut down first."""
    in_flight: int
    """Requests that wait for a slot or are being processed, now."""
    waiting: int
    """Of those in flight, how many wait for a slot."""
    running: int
    """Slots taken now, including those of handlers whose request has ended."""
    connections: int
    """Open connections now, including those that have sent nothing."""
    replies_sent: int
    """Replies, errors and hellos that were handed to libzmq for their connections."""
    streamed: int
    """Replies of streams, of all replies. The end of a stream does not count."""
    replies_waiting: int
    """Messages that wait for slow clients, now. A pack counts as one."""
    replies_dropped: int
    """Messages that were not sent, because the client had disconnected or was evicted."""
    unattributed: int
    """Of `never_started`, those that were read after their connection was forgotten."""
    abandoned_threads: int
    """Worker threads that still run for a request that has ended."""
    refused: int
    """Connections that were refused."""
    handshakes_failed: int
    """Connections that ended before their handshake was complete, and were not refused; including
    health checks and port scans."""
    evicted: int
    """Connections that were evicted, because their key was removed from the allow-list, they sent a
    message without end, they did not read, or another connection has their routing id."""
    evicted_slow: int
    """Of `evicted`, those of slow clients."""
    workers: WorkerStatistics
    """The threads or processes for plain functions; none for an async handler."""
    killed: int
    """Worker processes that were killed, because their request had ended."""
    died: int
    """Worker processes that ended by themselves, as by a segmentation fault."""
    retired: int
    """Worker processes that were replaced, by `retire_after` or `retire_above`."""


@dataclass(frozen=True, slots=True)
class ClientStatistics:
    """A snapshot of what a client has done since it was opened.

    Always ``requests`` = ``replied`` + ``failed`` + ``timed_out`` + ``cancelled`` + ``lost`` +
    ``in_flight``.
    """

    requests: int
    """Requests sent; each retry counts."""
    replied: int
    """There was a reply that was not an error."""
    failed: int
    """The server answered with an error."""
    timed_out: int
    """The request timed out first."""
    cancelled: int
    """The caller was cancelled first."""
    lost: int
    """The connection was lost first, or the client was closed."""
    in_flight: int
    """Requests that were sent and have no reply, now."""
    retried: int
    """Of `requests`, those that were retries."""
    stale: int
    """Messages that match no pending request, since they are late or malformed."""
    connections: int
    """Connections made."""


@dataclass(frozen=True, slots=True)
class Timings:
    """How long the newest connection took to make, in seconds, and when it was made."""

    connect: float
    """From when the client was opened, or the last connection lost, until it was accepted."""
    handshake: float
    """From then until messages could be sent."""
    since: float
    """When that was, by `trio.current_time`."""
