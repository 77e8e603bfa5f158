"""What a client has in flight on its connection, and what ends it.

Each request has a correlation; replies come in any order. A request ends with its reply, with
the loss of the connection, or with its caller, who runs out of time or is cancelled. In the last
case the server is told, if it speaks the header: a plain REP server would take that for a
request. It says whether it does when it is asked to, and in every reply; until it has, those who
are to be told of wait in a list.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Sequence
from typing import Protocol

import trio

from .._errors import (
    Code,
    ConnectionLost,
    NotConnected,
    Refused,
    ReplyError,
    RequestTimeout,
    UnexpectedReply,
)
from .._protocol import envelope as wire
from .._protocol import packs
from .._protocol.envelope import Frames
from .._statistics import ClientStatistics, Timings
from .._transport.line import Line

BACKOFF = 0.05  # seconds before the first retry, twice that before the second, and so on
BACKOFF_MOST = 2.0


class Inquiry(Protocol):
    """A request, as seen here. Its maker sets what it is to be; `Exchange` ends it, once a try.

    Attributes:
        body: What it asks.
        deadline: When its caller stops to wait for it, in trio's time; infinity for never.
        correlation: What its reply carries; 0 until it is sent.
    """

    body: Frames
    deadline: float
    correlation: int

    def replied(self, body: Frames) -> None:
        """This is its reply."""

    def failed(self, error: Exception) -> None:
        """There is no reply, for this reason."""


class Exchange:
    """The requests of one client, and its connection.

    Args:
        line: What carries them.
        endpoint: What to call the other end of it.
        connect_timeout: Seconds that a request waits for a connection; infinity for no limit.
    """

    def __init__(self, line: Line, endpoint: str, connect_timeout: float) -> None:
        self.line = line
        self._endpoint = endpoint
        self._connect_timeout = connect_timeout
        self._waiting: dict[int, Inquiry] = {}  # by correlation
        self._correlation = 0
        self._ready = trio.Event()  # replaced when the connection is lost
        self._closed = False
        self._refusal: str | None = None  # why there is no connection, if the server has said so
        self._turned_away = False
        self._speaks: bool | None = None  # whether the server does; None until it has said so
        self._asking = 0  # the request that asks it
        self._taken_back: list[int] = []  # what it is to be told, if it does
        self._counts = dict.fromkeys(ClientStatistics.__dataclass_fields__, 0)
        self._begun = trio.current_time()
        self._accepted = self._begun
        self._timings: Timings | None = None

    @property
    def timings(self) -> Timings | None:
        """How long the newest connection took to make, and when; None while there was none."""
        return self._timings

    def statistics(self) -> ClientStatistics:
        """A snapshot of what the client has done."""
        return ClientStatistics(**self._counts | {"in_flight": len(self._waiting)})

    def begin(self, inquiry: Inquiry) -> bool:
        """Send a request; returns False, and does nothing, if there is no connection."""
        correlation = self._correlation + 1
        if not self._send(wire.REQUEST, correlation, inquiry.deadline, inquiry.body):
            return False
        self._correlation = correlation
        self._counts["requests"] += 1
        if inquiry.correlation:
            self._counts["retried"] += 1
        inquiry.correlation = correlation
        self._waiting[correlation] = inquiry
        return True

    def give_up(self, inquiry: Inquiry) -> None:
        """Its caller is cancelled, or out of time: decided now, so nothing comes for it later."""
        del self._waiting[inquiry.correlation]
        late = trio.current_time() >= inquiry.deadline
        self._counts["timed_out" if late else "cancelled"] += 1
        self._take_back(inquiry.correlation)

    async def wait_connected(self) -> bool:
        """Wait until there may be a connection; returns False if there was none in time."""
        ready = self._ready
        if ready.is_set():  # and yet nothing could be sent: it is lost, and that is not yet told
            self._ready = ready = trio.Event()
        with trio.move_on_after(self._connect_timeout):
            await ready.wait()
            return self._refusal is None
        return False

    def unconnected(self, inquiry: Inquiry) -> Exception:
        """The error of a request for which `wait_connected` has found nothing."""
        if inquiry.correlation:
            return self._lost()
        if self._refusal is not None:
            return Refused(f"{self._endpoint}: {self._refusal}")
        if self._turned_away:
            why = "it closes them in the handshake: does it want CURVE or PLAIN, or is it full?"
        else:
            why = "does a server listen there?"
        return NotConnected(f"no connection to {self._endpoint}: {why}")

    def out_of_time(self, inquiry: Inquiry, seconds: float) -> Exception:
        """The error of a request whose own time is up."""
        if not inquiry.correlation:
            return self.unconnected(inquiry)
        return RequestTimeout(f"{self._endpoint} has not answered within {seconds} s")

    def _lost(self) -> ConnectionLost:
        return ConnectionLost(
            f"the connection to {self._endpoint} broke; whether the request was done is unknown"
        )

    def check_open(self) -> None:
        """Raise `trio.ClosedResourceError` if the client is closed."""
        if self._closed:
            raise trio.ClosedResourceError("the client is closed")

    def _send(self, kind: int, correlation: int, deadline: float, body: Frames) -> bool:
        self.check_open()
        if not self._ready.is_set():
            return False
        if self._speaks is None and self._asking not in self._waiting:
            self._asking = correlation
            correlation |= wire.WANTS_HELLO
        left = 0 if deadline == math.inf else wire.milliseconds(deadline - trio.current_time())
        header = wire.HEADER.pack(wire.MAGIC, kind, correlation, left)
        return self.line.send((header, wire.DELIMITER, *body))

    def _take_back(self, correlation: int) -> None:
        """Nobody waits for this one any more."""
        if self._closed or not self._ready.is_set():
            return  # the loss of the connection says it too
        if self._speaks:
            self._send(wire.CANCEL, correlation, math.inf, (b"",))
        elif self._speaks is None:
            self._taken_back.append(correlation)

    # What the transport calls.

    def connecting(self) -> None:
        """The other side has accepted."""
        self._refusal = None
        self._accepted = trio.current_time()

    def connected(self) -> None:
        """There is a connection."""
        now = trio.current_time()
        self._timings = Timings(self._accepted - self._begun, now - self._accepted, now)
        self._counts["connections"] += 1
        self._speaks = None
        self._refusal = None
        self._turned_away = False
        self._ready.set()

    def refused(self, why: str) -> None:
        """The server does not let the client in: those who wait for a connection are told."""
        self._refusal = why
        ready, self._ready = self._ready, trio.Event()
        ready.set()

    def turned_away(self) -> None:
        """The server has closed a connection in the handshake, and has not said why."""
        self._refusal = None
        self._turned_away = True

    def lost(self) -> None:
        """The connection is gone, and with it all that was in flight."""
        self._begun = trio.current_time()
        if self._ready.is_set():
            self._ready = trio.Event()
        self._taken_back.clear()
        self._fail_all(self._lost)

    def arrived(self, frames: Sequence[bytes]) -> None:
        """A message came: a reply, perhaps, or a pack of them."""
        if len(frames) == 1 and (pack := packs.unpack_untrusted(frames[0])) is not None:
            self.line.max_pack_size, messages = pack
            for message in messages:
                self.arrived(message)
            return
        _, header, body = wire.request_untrusted(frames)
        if header is None:
            self._counts["stale"] += 1
            return
        if self._speaks is None:
            self._learn(speaks=header.left == wire.SPEAKS)
        if header.left == wire.SPEAKS and header.correlation == wire.WANTS_HELLO:
            self.line.max_pack_size = packs.max_size_untrusted(body)
            return  # that was the hello
        inquiry = self._waiting.pop(header.correlation & wire.CORRELATION, None)
        if inquiry is None:
            self._counts["stale"] += 1
            return
        if header.kind == wire.OK or header.left != wire.SPEAKS:  # an echo reports no error
            self._counts["replied"] += 1
            inquiry.replied(body)
        else:
            self._counts["failed"] += 1
            inquiry.failed(self._error(header, body))

    def _learn(self, *, speaks: bool) -> None:
        self._speaks = speaks
        taken_back, self._taken_back = self._taken_back, []
        for correlation in taken_back:
            self._take_back(correlation)

    def _error(self, header: wire.Header, body: Frames) -> Exception:
        """The error that a reply reports."""
        error = wire.error_untrusted(body)
        if error is None or not error[0]:
            return UnexpectedReply(f"an error of status {header.kind} without a code", body)
        code, text = error
        if code == Code.TIMED_OUT:
            return RequestTimeout(f"{self._endpoint} answered: {text}")
        try:
            return ReplyError(code, text)
        except ValueError:
            return UnexpectedReply(f"an error with the code {code!r}", body)

    def close(self) -> None:
        """Take no more requests, and fail those in flight (`open_client` calls this)."""
        self._closed = True
        self._fail_all(lambda: trio.ClosedResourceError("the client was closed"))
        self._ready.set()  # who waits for a connection sees that the client is closed

    def _fail_all(self, error: Callable[[], Exception]) -> None:
        waiting, self._waiting = self._waiting, {}
        self._counts["lost"] += len(waiting)
        for inquiry in waiting.values():
            inquiry.failed(error())


async def back_off(retry: int) -> None:
    """Pause before a request is sent again, for the first time if `retry` is 0."""
    backoff = min(BACKOFF * 2**retry, BACKOFF_MOST)
    await trio.sleep(backoff * random.uniform(0.5, 1))  # noqa: S311  # no secret


def only_frame(reply: Frames) -> bytes:
    """The frame of a reply that has one.

    Raises:
        UnexpectedReply: It has several.
    """
    if len(reply) != 1:
        raise UnexpectedReply(
            f"the reply has {len(reply)} frames, not one: use request_multipart", reply
        )
    return reply[0]
