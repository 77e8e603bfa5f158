"""Async generators as handlers: each reply is sent as it is yielded, as far as the client lets it.

A stream is one request, whose handler is an async generator. To the rest of the server it is an
async function, which runs the generator and sends what that yields, in the request's own task. So
what ends a request ends a stream, and cancels its task: `trio.Cancelled` is raised where the
generator stands, at its `yield` or in what it awaits.

The generator waits at its `yield` while its client has given no credit for the reply, or libzmq
accepts none. Else it runs until it waits for something, or for a burst, and what it has yielded
goes out together if the client accepts packs.
"""

from __future__ import annotations

import math
from collections.abc import AsyncGenerator, Callable
from typing import Any, Final, NoReturn

import trio

from .._protocol import packs
from .._transport.outbox import Outbox
from .handlers import reply_body
from .pending_request import StreamRequest
from .requests import Requests
from .tasks import Begun

BURST: Final = packs.MAX_SIZE
"""Bytes that a generator sends between two checkpoints, if it does not wait."""
EACH: Final = 64
"""Bytes that a reply counts as, beside its content."""
BURST_TIME: Final = 0.001
"""Seconds after which a burst ends: so long may its first reply wait for the others."""
PASS_TIME: Final = 0.005
"""Seconds that all bursts in one pass of the event loop may take. After that each sends one reply,
so that many streams do not hold up other requests."""
UNSENT: Final = 4
"""Messages that a burst may leave in the outbox, beside what waits there by `send_queue`."""

Replies = AsyncGenerator[object, None]


class Streams:
    """Runs async generators.

    Args:
        handler: An async generator function.
        requests: Where requests end.
        outbox: Where replies go.
    """

    def __init__(
        self, handler: Callable[[StreamRequest], Replies], requests: Requests, outbox: Outbox
    ) -> None:
        self._handler = handler
        self._requests = requests
        self._outbox = outbox
        self._clock = trio.lowlevel.current_clock().current_time
        self._pass_end = -math.inf
        self._continues = False  # whether a stream of this pass sends more in the next one
        self._timer = trio.lowlevel.ParkingLot()  # where it waits for such a stream

    async def time_passes(self) -> NoReturn:
        """Begin a new pass when streams continue in it, until cancelled."""
        while True:
            self._continues = False
            self._pass_end = -math.inf
            await self._timer.park()

    async def run(self, request: StreamRequest) -> None:
        """Run a stream to its end, in the task of its request."""
        replies = self._handler(request)
        try:
            await self._send_all(request, replies)
        except StopAsyncIteration:  # it has returned
            if request.owner.connection in self._outbox.unsent:
                self._outbox.flush()
                await self._requests.wait_to_send(request, part=False)
            self._requests.end_stream(request)
        finally:
            self._outbox.flush()
            await replies.aclose()  # it has ended, unless it goes on though it was cancelled

    async def _send_all(self, request: StreamRequest, replies: Replies) -> None:
        """Send what a generator yields; raises StopAsyncIteration when it has returned."""
        requests, outbox, clock = self._requests, self._outbox, self._clock
        was_cancelled = False  # by the end of the request
        step: Any = replies.__anext__()
        room, end = self._begin_burst(request)
        while True:
            try:
                waits_for = step.send(None)  # by hand, to know whether it waits
            except StopIteration as yielded:
                reply = yielded.value
            else:
                outbox.flush()
                reply = await Begun(step, waits_for)
                room, end = self._begin_burst(request)
            body = (reply,) if type(reply) is bytes else reply_body(reply)
            if room <= 0 or request.ended or clock() > end or not requests.may_send(request):
                outbox.flush()
                if not self._continues:
                    self._continues = True
                    self._timer.unpark()  # it runs in the next pass
                try:
                    await requests.wait_to_send(request)
                except trio.Cancelled as error:
                    if request.ended and was_cancelled:
                        return
                    was_cancelled = request.ended
                    step = replies.athrow(error)  # at its `yield`: this reply is not sent
                    continue
                room, end = self._begin_burst(request)
            requests.send_part(request, body)
            room = room - EACH - len(body[0]) if len(body) == 1 else 0  # several go in no pack
            step = replies.__anext__()

    def _begin_burst(self, request: StreamRequest) -> tuple[int, float]:
        """Begin to send; returns the room that there is, and until when."""
        self._outbox.flush()  # from here on it is known whether the connection accepts more
        max_pack_size = request.owner.connection.max_pack_size
        if max_pack_size:
            self._outbox.cork()
        now = self._clock()
        if now > self._pass_end and not self._continues:
            self._pass_end = now + PASS_TIME
        return max_pack_size or BURST, min(now + BURST_TIME, self._pass_end)
