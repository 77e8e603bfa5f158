"""What the server and the client count, as they show it."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class RepliesDropped:
    """Replies that were ready and were not sent, by reason."""

    client_gone: int = 0
    """The client had gone, or had just gone, when the reply was ready."""
    queue_full: int = 0
    """The client does not read, and had `send_queue` replies waiting already."""


@dataclass(frozen=True, slots=True)
class Statistics:
    """A snapshot of what a server has done since it started.

    Always ``requests`` = ``replied`` + ``failed`` + ``timed_out`` + ``superseded`` +
    ``cancelled_by_disconnect`` + ``cancelled_by_client`` + ``never_started`` + ``overloaded`` +
    ``malformed`` + ``shut_down`` + ``in_flight``.
    """

    requests: int
    """Messages read, whatever they were; a pack is as many as it has."""
    replied: int
    """The handler returned a reply in time."""
    failed: int
    """The handler raised, or returned what is no reply."""
    timed_out: int
    """Its time was up before the handler had returned."""
    superseded: int
    """A REQ client sent anew before its reply."""
    cancelled_by_disconnect: int
    """The client went while the handler ran."""
    cancelled_by_client: int
    """The client said that it no longer wants the reply."""
    never_started: int
    """The client had gone before the handler was started."""
    overloaded: int
    """The client had `max_queued_per_client` requests waiting already."""
    malformed: int
    """The message was no request."""
    shut_down: int
    """The server stopped first."""
    in_flight: int
    """Waiting for a turn, or being worked on, now."""
    waiting: int
    """Of those in flight, how many wait for a turn."""
    running: int
    """Turns taken now, also by handlers whose request has ended and who have not."""
    connections: int
    """Connections now, also those that have not said anything."""
    replies_sent: int
    """Messages handed to connections: replies, errors, and the hellos that clients ask for."""
    replies_dropped: RepliesDropped
    """Messages that were not."""
    unattributed: int
    """Of `never_started`, those whose connection was forgotten when they were read."""
    abandoned_threads: int
    """Worker threads that still run for a request that has ended."""
    refused: int
    """Connections that were not let in."""
    thrown_out: int
    """Connections that were ended: their key is off the list, or their message had no end."""


@dataclass(frozen=True, slots=True)
class ClientStatistics:
    """A snapshot of what a client has done since it was opened.

    Always ``requests`` = ``replied`` + ``failed`` + ``timed_out`` + ``cancelled`` + ``lost`` +
    ``in_flight``.
    """

    requests: int
    """Requests sent, each try counted."""
    replied: int
    """A reply came that was no error."""
    failed: int
    """The server answered with an error."""
    timed_out: int
    """The time was up first."""
    cancelled: int
    """The caller was cancelled first."""
    lost: int
    """The connection broke first, or the client was closed."""
    in_flight: int
    """Sent, and waited for, now."""
    retried: int
    """Of `requests`, those that were tries after the first."""
    stale: int
    """Messages that came for nobody who waits: late, or not understood."""
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
