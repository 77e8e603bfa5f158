"""The counters of the server and the client."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class WorkerStatistics:
    """The current threads, processes or slots of Ray for plain functions."""

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
    """Requests read, including malformed and refused ones, and each request of a pack. A message
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
    finishing: int
    """Blocks of `finishing` that are protected now, also those whose request has ended."""
    waiting: int
    """Of those in flight, how many wait for a slot."""
    running: int
    """Slots taken now, including those of handlers whose request has ended."""
    connections: int
    """Open connections now, including those that have sent nothing."""
    replies_sent: int
    """Replies, errors, hellos and go-aways that were handed to libzmq for their connections."""
    streamed: int
    """Of all replies, those of streams. The end of a stream does not count."""
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
    message without end, they did not read, another connection has their routing id, a session task
    failed, or the program called `Server.evict`."""
    evicted_slow: int
    """Of `evicted`, those of slow clients."""
    go_aways: int
    """Go-aways sent to clients, at a drain or after `max_connection_age`."""
    workers: WorkerStatistics
    """The workers for plain functions; none for an async handler."""
    killed: int
    """Worker processes, or tasks of Ray, that were killed, because their request had ended."""
    died: int
    """Worker processes, or tasks of Ray, that ended by themselves, as by a segmentation fault."""
    retired: int
    """Worker processes that were replaced, by `retire_after` or `retire_above`."""


GAUGES = frozenset(
    {
        "in_flight",
        "finishing",
        "waiting",
        "running",
        "connections",
        "replies_waiting",
        "abandoned_threads",
    }
)
"""The fields of `Statistics` that go up and down, and are 0 at rest. All others but ``workers``
only grow."""


@dataclass(frozen=True, slots=True)
class ConnectedClient:
    """A connection of a server, as `Server.clients` lists it. Times are on trio's clock."""

    id: int
    """Its number, which `Peer.id` is too; unique for the server's life."""
    address: str
    """Its IP address or, on ipc, its user; empty if it is not known."""
    user_id: str
    """As in `Peer`; empty before its first message."""
    socket_type: str
    """As in `Peer`; empty before its first message."""
    connected_since: float
    """When it was accepted."""
    in_flight: int
    """Its requests that wait for a slot, or are being processed."""
    replies_waiting: int
    """Messages that wait, since the client is slow to read. A pack counts as one."""
    last_heard: float | None
    """When its last message was read; None before the first. Heartbeats are not messages."""


@dataclass(frozen=True, slots=True)
class ClientStatistics:
    """A snapshot of what a client has done since it was opened.

    Always ``requests`` = ``replied`` + ``failed`` + ``not_started`` + ``timed_out`` +
    ``cancelled`` + ``lost`` + ``in_flight``.
    """

    requests: int
    """Requests sent; each retry counts."""
    replied: int
    """There was a reply that was not an error."""
    failed: int
    """The server answered with an error."""
    not_started: int
    """The server was shutting down and had not started the request; it was sent again."""
    timed_out: int
    """The request timed out first."""
    cancelled: int
    """The caller was cancelled first."""
    lost: int
    """The connection was lost first, or the client was closed."""
    in_flight: int
    """Requests that were sent and have no reply, now."""
    retried: int
    """Of `requests`, those that were retries after a lost connection."""
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
