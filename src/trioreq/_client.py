"""The client: many requests over one connection, with deadlines and cancels that travel.

Each request has a correlation; replies come in any order. A request ends with its reply, with
the loss of the connection, or with its caller, who runs out of time or is cancelled. In the last
case the server is told, if it speaks the header: a plain REP server would take that for a
request. It says whether it does when it is asked to, and in every reply; until it has, those who
are to be told of wait in a list.
"""

from __future__ import annotations

import logging
import math
import random
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass
from typing import Any

import outcome
import trio

from . import _wire
from ._errors import (
    Code,
    ConnectionLost,
    NotConnected,
    Refused,
    ReplyError,
    RequestTimeout,
    UnexpectedReply,
)
from ._options import check_seconds
from ._statistics import ClientStatistics, Timings
from ._transport import Line
from ._wire import Frames

log = logging.getLogger("trioreq")

BACKOFF = 0.05  # seconds before the first retry, twice that before the second, and so on
BACKOFF_MOST = 2.0


@dataclass(slots=True)
class _Call:
    """What a caller wants, through all tries."""

    body: Frames
    deadline: float
    sent: bool = False


class Client:
    """A client of one server; `open_client` makes it. Any number of tasks may use it at once."""

    def __init__(
        self,
        line: Line,
        endpoint: str,
        *,
        timeout: float | None,
        retries: int,
        connect_timeout: float | None,
    ) -> None:
        self._line = line
        self._endpoint = endpoint
        self._timeout = timeout
        self._retries = retries
        self._connect_timeout = math.inf if connect_timeout is None else connect_timeout
        self._waiting: dict[int, trio.lowlevel.Task] = {}  # callers, by what their reply carries
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
        """How long the newest connection took to make; None while there was none."""
        return self._timings

    def statistics(self) -> ClientStatistics:
        """A snapshot of what the client has done."""
        return ClientStatistics(**self._counts | {"in_flight": len(self._waiting)})

    async def request(self, body: bytes, *, timeout: float | None = None) -> bytes:
        """Send a request of one frame, and wait for its reply of one frame.

        Args:
            body: bytes, or an object with the buffer interface.
            timeout: Seconds until it is given up; None for the client's own.

        Raises:
            ReplyError: The server answered with an error.
            RequestTimeout: The time was up.
            NotConnected: There was no connection in time; nothing was sent.
            Refused: The server does not let this client in; nothing was sent.
            ConnectionLost: The connection broke, and there are no retries left.
            UnexpectedReply: The reply has several frames; `request_multipart` takes those.
            trio.ClosedResourceError: The client is closed.
        """
        frames = (body,) if type(body) is bytes else _wire.body("the request is", [body])
        reply = await self._reply(frames, timeout)
        if len(reply) != 1:
            raise UnexpectedReply(
                f"the reply has {len(reply)} frames, not one: use request_multipart", reply
            )
        return reply[0]

    async def request_multipart(
        self, frames: Sequence[bytes], *, timeout: float | None = None
    ) -> list[bytes]:
        """Send a request of any number of frames, at least one, and wait for its reply.

        Arguments and errors are those of `request`.
        """
        if isinstance(frames, bytes | bytearray | memoryview | str):
            raise TypeError("frames is a sequence of bytes; for one frame use request")
        return list(await self._reply(_wire.body("the request is", list(frames)), timeout))

    def _reply(self, body: Frames, timeout: float | None) -> Coroutine[object, Any, Frames]:
        """What is to be awaited for the body of the reply."""
        seconds = self._timeout
        if timeout is not None:
            check_seconds("timeout", timeout)
            seconds = timeout
        if seconds is None:  # a scope that never ends it costs a fifth of a request
            call = _Call(body, math.inf)
            return self._try(call) if self._retries else self._ask(call)
        return self._in_time(body, seconds)

    async def _in_time(self, body: Frames, seconds: float) -> Frames:
        """Ask, and wait no longer than this."""
        deadline = trio.current_time() + seconds
        call = _Call(body, deadline)
        with trio.move_on_at(deadline):
            return await (self._try(call) if self._retries else self._ask(call))
        if not call.sent:
            raise self._not_connected()
        raise RequestTimeout(f"{self._endpoint} has not answered within {seconds} s")

    async def _try(self, call: _Call) -> Frames:
        """Ask until there is an answer, or no retry is left."""
        for retry in range(self._retries + 1):
            self._counts["retried"] += bool(retry)
            try:
                return await self._ask(call)
            except ConnectionLost:
                if retry == self._retries:
                    raise
                backoff = min(BACKOFF * 2**retry, BACKOFF_MOST)
                await trio.sleep(backoff * random.uniform(0.5, 1))  # noqa: S311  # no secret
        raise AssertionError("unreachable")

    async def _ask(self, call: _Call) -> Frames:
        """Send, as soon as there is a connection, and wait for the reply."""
        await trio.lowlevel.checkpoint_if_cancelled()
        correlation = self._correlation = self._correlation + 1
        while not self._send(_wire.REQUEST, correlation, call.deadline, call.body):
            await self._connected(call)
        call.sent = True
        self._counts["requests"] += 1
        self._waiting[correlation] = trio.lowlevel.current_task()

        def give_up(_: object) -> trio.lowlevel.Abort:
            """It is cancelled, out of time, or Ctrl-C: decided now, so nobody wakes it twice."""
            del self._waiting[correlation]
            late = trio.current_time() >= call.deadline
            self._counts["timed_out" if late else "cancelled"] += 1
            self._take_back(correlation)
            return trio.lowlevel.Abort.SUCCEEDED

        reply: Frames = await trio.lowlevel.wait_task_rescheduled(give_up)
        return reply

    async def _connected(self, call: _Call) -> None:
        """Wait for a connection."""
        ready = self._ready
        if ready.is_set():  # and yet nothing could be sent: it is lost, and that is not yet told
            self._ready = ready = trio.Event()
        with trio.move_on_after(self._connect_timeout):
            await ready.wait()
            if self._refusal is None:
                return
            raise self._lost() if call.sent else Refused(f"{self._endpoint}: {self._refusal}")
        raise self._lost() if call.sent else self._not_connected()

    def _not_connected(self) -> NotConnected:
        if self._turned_away:
            why = "it closes them in the handshake: does it want CURVE or PLAIN, or is it full?"
        else:
            why = "does a server listen there?"
        return NotConnected(f"no connection to {self._endpoint}: {why}")

    def _lost(self) -> ConnectionLost:
        return ConnectionLost(
            f"the connection to {self._endpoint} broke; whether the request was done is unknown"
        )

    def _send(self, kind: int, correlation: int, deadline: float, body: Frames) -> bool:
        if self._closed:
            raise trio.ClosedResourceError("the client is closed")
        if not self._ready.is_set():
            return False
        if self._speaks is None and self._asking not in self._waiting:
            self._asking = correlation
            correlation |= _wire.WANTS_HELLO
        left = 0 if deadline == math.inf else _wire.milliseconds(deadline - trio.current_time())
        header = _wire.HEADER.pack(_wire.MAGIC, kind, correlation, left)
        return self._line.send((header, _wire.DELIMITER, *body))

    def _take_back(self, correlation: int) -> None:
        """Nobody waits for this one any more."""
        if self._closed or not self._ready.is_set():
            return  # the loss of the connection says it too
        if self._speaks:
            self._send(_wire.CANCEL, correlation, math.inf, (b"",))
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
        self._timings = Timings(self._accepted - self._begun, now - self._accepted)
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
        """A message came: a reply, perhaps."""
        _, header, body = _wire.request_untrusted(frames)
        if header is None:
            self._counts["stale"] += 1
            return
        if self._speaks is None:
            self._learn(speaks=header.left == _wire.SPEAKS)
        if header.left == _wire.SPEAKS and header.correlation == _wire.WANTS_HELLO:
            return  # that was the hello
        caller = self._waiting.pop(header.correlation & _wire.CORRELATION, None)
        if caller is None:
            self._counts["stale"] += 1
            return
        if header.kind == _wire.OK or header.left != _wire.SPEAKS:  # an echo reports no error
            self._counts["replied"] += 1
            trio.lowlevel.reschedule(caller, outcome.Value(body))
        else:
            self._counts["failed"] += 1
            trio.lowlevel.reschedule(caller, outcome.Error(self._error(header, body)))

    def _learn(self, *, speaks: bool) -> None:
        self._speaks = speaks
        taken_back, self._taken_back = self._taken_back, []
        for correlation in taken_back:
            self._take_back(correlation)

    def _error(self, header: _wire.Header, body: Frames) -> Exception:
        """The error that a reply reports."""
        error = _wire.error_untrusted(body)
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
        for caller in waiting.values():
            trio.lowlevel.reschedule(caller, outcome.Error(error()))
