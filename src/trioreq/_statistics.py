"""What the server and the client count, as they show it."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class WorkerStatistics:
    """The threads or processes that plain functions run in, now."""

    alive: int
    """All of them."""
    spare: int
    """Those that wait for a request."""
    busy: int
    """Those that run a function, also one whose request has ended, or that end."""


@dataclass(frozen=True, slots=True)
class Statistics:
    """A snapshot of what a server has done since it started.

    Always ``requests`` = ``replied`` + ``failed`` + ``timed_out`` + ``superseded`` +
    ``cancelled_by_disconnect`` + ``cancelled_by_client`` + ``never_started`` + ``overloaded`` +
    ``malformed`` + ``shut_down`` + ``in_flight``.
    """

    requests: int
    """Requests read, also malformed or refused ones; a message that cancels a request is not one. A
    pack counts as the requests that it holds."""
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
    """The client had `max_queued_per_client` requests waiting already."""
    malformed: int
    """The message was not a request."""
    shut_down: int
    """The server stopped first."""
    in_flight: int
    """Requests that wait for a slot, or are being processed, now."""
    waiting: int
    """Of those in flight, how many wait for a slot."""
    running: int
    """Slots taken now, also by handlers that still run though their request has ended."""
    connections: int
    """Connections now, also those that have sent nothing."""
    replies_sent: int
    """Replies, errors, and hellos that clients ask for, which were handed to connections."""
    replies_waiting: int
    """Messages that wait now for connections that accept no more, since their clients are slow to
    read. A pack counts as one."""
    replies_dropped: int
    """Messages that were never handed over, since the client had disconnected, or was disconnected
    for not reading."""
    unattributed: int
    """Of `never_started`, those whose connection was forgotten when they were read."""
    abandoned_threads: int
    """Worker threads that still run for a request that has ended."""
    refused: int
    """Connections that were refused."""
    handshakes_failed: int
    """Connections that ended before their handshake was complete, and were not refused; health
    checks and port scans are among them."""
    evicted: int
    """Connections that were evicted, for a key off the allow-list, a message without end, not
    reading, or a routing id that another connection has, so that libzmq delivers nothing of it."""
    evicted_slow: int
    """Of `evicted`, those of clients that do not read their replies."""
    workers: WorkerStatistics
    """The threads or processes that plain functions run in; none for an async handler."""
    killed: int
    """Worker processes that were killed, because their request had ended."""
    died: int
    """Worker processes that ended by themselves, as by a segmentation fault."""
    retired: int
    """Worker processes that were replaced, after so many requests or above so much memory."""


@dataclass(frozen=True, slots=True)
class ClientStatistics:
    """A snapshot of what a client has done since it was opened.

    Always ``requests`` = ``replied`` + ``failed`` + ``timed_out`` + ``cancelled`` + ``lost`` +
    ``in_flight``.
    """

    requests: int
    """Requests sent, each try counted."""
    replied: int
    """A reply came that was not an error."""
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
    """Of `requests`, those that were tries after the first."""
    stale: int
    """Messages that match no pending request, since they are late or not understood."""
    connections: int
    """Connections made."""


@dataclass(frozen=True, slots=True)
class Timings:
    """How long the newest connection took to make, in seconds, and since when there is one."""

    connect: float
    """From when the client was opened, or the last connection lost, until it was accepted."""
    handshake: float
    """From then until messages could be sent."""
    since: float
    """When that was, by `trio.current_time`."""
