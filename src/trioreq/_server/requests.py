"""Requests begin and end here.

A request ends exactly once, in one of the ways that `endings` lists: with its handler's reply, or
before that, when its client disconnects, supersedes or cancels it, when it times out, or when the
server shuts down. Its reply is decided in the same step, so nothing is ever sent for it afterwards,
whatever its handler still does. An async handler is cancelled by its cancel scope; a plain function
checks the request's `cancel_reason`.

All of it is synchronous: state changes between checkpoints, never across one. Whatever a handler
returns or raises, nothing here fails, except by exceptions that end the program.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import trio

from .._errors import CancelReason, Code, ReplyError, RequestCancelled
from .._options import Options
from .._protocol.endings import (
    CANCELLED,
    DISCONNECTED,
    ERROR_REPLY,
    EXPIRED,
    FAILED,
    MALFORMED,
    NEVER_STARTED,
    OVERLOADED,
    REPLIED,
    SHUT_DOWN,
    SHUT_OUT,
    STREAMING,
    SUPERSEDED,
    TIMED_OUT,
    Ending,
    status_of,
)
from .._protocol.envelope import (
    BARE_ENVELOPE,
    CANCEL,
    CORRELATION,
    CREDIT,
    DELIMITER,
    END,
    END_MARK,
    OK,
    REQUEST,
    STREAM,
    WANTS_HELLO,
    Frames,
    Header,
    answer,
    error_body,
    request_untrusted,
)
from .._protocol.fair_queue import FairQueue
from .._protocol.hello import hello_body
from .._transport.outbox import Outbox
from .client import Client, Name
from .deadlines import Deadlines
from .finishing import Blocks
from .go_aways import GoAways
from .handlers import (
    close_unawaited,
    ends_program,
    is_cancellation,
    only_error,
    reply_body,
)
from .observer import Observer, log_failure
from .pending_request import PendingRequest, StreamRequest

UNSTARTED = {DISCONNECTED: NEVER_STARTED, SHUT_DOWN: SHUT_OUT}
"""How a request ends whose handler was not called."""


class Requests:
    """All requests of a server.

    Args:
        options: The server's options.
        queue: The slots that handlers take.
        outbox: Sends the replies.
        own_max_pack_size: Bytes of the largest pack that the server accepts.
        go_aways: Which clients understand a go-away.
        observers: Receive each transition.
        streams: Whether the handler makes streams.

    Attributes:
        deadlines: When requests time out.
        closing: Whether the server accepts no more requests.
        now: The last reading of the clock: one serves for all requests of a batch.
        in_batch: Whether a batch is being processed, in one step of the event loop.
        blocks: The finishing blocks of handlers.
        late_replies: Results of handlers whose client had disconnected.
        streamed: Replies of streams that were sent.
    """

    def __init__(
        self,
        options: Options,
        queue: FairQueue[Client, PendingRequest],
        outbox: Outbox,
        own_max_pack_size: int,
        go_aways: GoAways,
        observers: Sequence[Observer],
        *,
        streams: bool,
    ) -> None:
        self._timeout = math.inf if options.timeout is None else options.timeout
        self._error_reply = options.error_reply
        self._error_reply_failed = False
        self._queue = queue
        self._outbox = outbox
        self._own_max_pack_size = own_max_pack_size
        self._go_aways = go_aways
        self._streams = streams
        self._new_request = StreamRequest if streams else PendingRequest
        self.deadlines: Deadlines[PendingRequest] = Deadlines(self._expire)
        self.closing = False
        self.idle = trio.Event()
        self.in_flight = 0
        self._clock = trio.lowlevel.current_clock().current_time
        self.now = self._clock()
        self.in_batch = False
        self.blocks = Blocks()
        self.late_replies = 0
        self.streamed = 0
        self._batch_read = [o.batch_read for o in observers if _overrides(o, "batch_read")]
        self._arrived = [o.arrived for o in observers if _overrides(o, "arrived")]
        self._started = [o.started for o in observers if _overrides(o, "started")]
        self._failed = [o.failed for o in observers if _overrides(o, "failed")]
        self._ended = [o.ended for o in observers if _overrides(o, "ended")]

    # A request begins.

    def begin_batch(self) -> float:
        """A batch was read, and is processed now; returns the time."""
        self.in_batch = True
        self.now = self._clock()
        for batch_read in self._batch_read:
            batch_read()
        return self.now

    def accept(self, client: Client, frames: list[bytes], now: float) -> PendingRequest | None:
        """Accept a message of a client: a request, or the cancellation of one.

        Args:
            client: The client.
            frames: The message.
            now: When it was read.

        Returns:
            The request, if it has a slot and may run. None if it is queued, or was answered at
            once, or the message was not a request.
        """
        header = None
        body: Frames
        if len(frames) == 2 and not frames[0]:  # a REQ's request of one frame, the usual case
            envelope, body = BARE_ENVELOPE, (frames[1],)
        else:
            envelope, header, body = request_untrusted(frames)
            if header is not None and (header.kind == CANCEL or header.kind == CREDIT):
                self._follow_up(client, header.kind, _name(envelope, header), body)
                return None
        request = self._new_request(client, envelope, header, body, now)
        self.in_flight += 1
        for arrived in self._arrived:
            arrived(request)
        if client.connection.disconnected:  # libzmq delivers messages after the disconnect (A7)
            self._end(request, NEVER_STARTED)
            return None
        if client.lock_step and client.requests:
            self.cancel_all(client, SUPERSEDED)
        if not body or (header is not None and not self._name_request(request, header)):
            self._refuse(request, MALFORMED)
            return None
        if self._streams and (client.lock_step or (header is not None and header.kind == REQUEST)):
            self._refuse(request, STREAMING)
            return None
        if self.closing:
            self._refuse(request, SHUT_OUT)
            return None
        if self._queue.take():
            runnable: PendingRequest | None = request
        elif self._queue.push(client, request):
            runnable = None
        else:
            self._refuse(request, OVERLOADED)
            return None
        client.requests[request] = None
        if header is not None:
            client.named[request.name] = request
            if header.correlation & WANTS_HELLO:
                self._say_hello(request)
        if self._timeout != math.inf or (header is not None and header.left):
            self._limit_time(request)
        return runnable

    def _name_request(self, request: PendingRequest, header: Header) -> bool:
        """Set the name that its client cancels it by; returns False if the header is malformed."""
        request.name = _name(request.envelope, header)
        # 0 is reserved: a reply with that correlation is a hello.
        return (
            (header.kind == REQUEST or header.kind == STREAM)
            and request.name[1] != 0
            and request.name not in request.owner.named
        )

    def _limit_time(self, request: PendingRequest) -> None:
        """Set its deadline by its own time limit, or by the server's if that is shorter."""
        left = self._timeout
        if request.header is not None and request.header.left:
            left = min(left, request.header.left / 1000)
        request._deadline = request.arrived_at + left  # noqa: SLF001  # its own class
        request.timer = self.deadlines.add(request.deadline, request)

    def _say_hello(self, request: PendingRequest) -> None:
        """Send a hello before the first reply: what the client may send to this server."""
        hello = Header(REQUEST, WANTS_HELLO)
        # No packs through a proxy: it would add its frames before the pack, and not to each message
        # in it.
        direct = len(request.envelope) == 2
        body = hello_body(self._own_max_pack_size if direct else 0)
        connection = request.owner.connection
        self._outbox.send(connection, answer(request.envelope, hello, OK, (body,)))
        if direct:
            self._go_aways.greeted(request.owner)

    def begin(self, request: PendingRequest) -> bool:
        """Record that its handler is called now; returns False if the request has ended."""
        if (request.ended or request.owner.connection.disconnected) and self.has_ended(request):
            return False
        request.started = True
        request.started_at = self.now
        for started in self._started:
            started(request)
        return True

    def begin_in_thread(self, request: PendingRequest, now: float) -> None:
        """The same for a plain function, in its thread.

        `cancel` sets the reason, and then checks `started`. This sets `started`, and then checks
        the reason. So a request that ends as never started is never started.

        Raises:
            RequestCancelled: The request has ended.
        """
        if request.owner.connection.disconnected:  # its disconnect was read, and is not handled yet
            raise RequestCancelled(CancelReason.DISCONNECTED)
        request.started = True
        request.check_cancelled()
        request.started_at = now
        for started in self._started:
            started(request)

    # A request ends.

    @trio.lowlevel.enable_ki_protection
    def finish(self, request: PendingRequest, result: object) -> None:
        """Its handler has returned."""
        if (
            request.ended or request.owner.connection.disconnected or request.timer is not None
        ) and self.has_ended(request):
            if request.cancel_reason is CancelReason.DISCONNECTED:
                self.late_replies += 1
            close_unawaited(result)
        elif type(result) is bytes:  # the usual case
            self._end(request, REPLIED, (result,))
        else:
            try:
                body = reply_body(result)
            except BaseException as error:  # also what the result's own code raises
                if ends_program(error):
                    raise
                self.fail(request, error)
            else:
                self._end(request, REPLIED, body)

    def may_send(self, request: StreamRequest) -> bool:
        """Whether the next reply of a stream may be sent now."""
        return bool(request.credit) and request.owner.connection not in self._outbox.unsent

    @trio.lowlevel.enable_ki_protection
    async def wait_to_send(self, request: StreamRequest, *, part: bool = True) -> None:
        """Wait until the next reply of a stream may be sent, or the request has ended.

        Args:
            request: The request.
            part: Whether it needs credit: the end does not.
        """
        has_waited = False
        while not request.ended:
            unsent = self._outbox.unsent.get(request.owner.connection)
            if unsent is None:
                if request.credit or not part:
                    break
                await request.park()
            else:
                unsent.waiting[request.wake] = None
                try:
                    await request.park()
                finally:
                    del unsent.waiting[request.wake]
            has_waited = True
        if not has_waited:
            await trio.lowlevel.checkpoint()

    @trio.lowlevel.enable_ki_protection
    def send_part(self, request: StreamRequest, body: Frames) -> bool:
        """Send a reply of a stream, unless the request has ended; returns whether it was sent."""
        if (
            request.ended or request.owner.connection.disconnected or request.timer is not None
        ) and self.has_ended(request):
            return False
        request.credit.spend(body)
        self._outbox.send(request.owner.connection, request.part_envelope + body)
        self.streamed += 1
        return True

    @trio.lowlevel.enable_ki_protection
    def end_stream(self, request: StreamRequest) -> None:
        """Its handler has returned."""
        if not self.has_ended(request):
            body = END_MARK if request.header is None else DELIMITER
            self._end(request, REPLIED, (body,), END)

    @trio.lowlevel.enable_ki_protection
    def fail(self, request: PendingRequest, error: BaseException) -> None:
        """Its handler has raised an exception that does not end the program."""
        if self.has_ended(request):
            if not is_cancellation(error):
                self._report_failure(request, error)
            return
        reason = only_error(error)
        if isinstance(reason, ReplyError):
            try:
                body = self._error_body(request, reason.code, reason.text)
                status = status_of(reason.code)
            except Exception as broken:  # noqa: BLE001  # a subclass without super().__init__()
                broken.__context__ = reason
                broken.add_note(
                    f"the handler raised a {type(reason).__name__} whose code or text is not a "
                    "str: call super().__init__(code, text) in it"
                )
                self._fail(request, broken)
            else:
                self._end(request, ERROR_REPLY, body, status)
        else:
            self._fail(request, error)

    def _fail(self, request: PendingRequest, error: BaseException) -> None:
        self._report_failure(request, error)
        text = FAILED.text.format(error=type(error).__name__)
        body = self._error_body(request, Code.HANDLER_FAILED, text)
        self._end(request, FAILED, body, FAILED.status)

    def _error_body(self, request: PendingRequest, code: str, text: str) -> Frames:
        """The body of an error reply: by the user's `error_reply`, or the standard one.

        A client that uses the header gets the standard one, which it can parse.
        """
        standard = error_body(code, text)
        if self._error_reply is None or request.header is not None:
            return standard
        try:
            return reply_body(self._error_reply(str(code), text), "error_reply must be plain")
        except BaseException as error:
            if ends_program(error):
                self._error_reply = None  # all requests are answered next, as the server ends
                raise
            if not self._error_reply_failed:
                self._error_reply_failed = True
                log_failure("error_reply failed (further failures are not logged)", error)
            return standard

    def _report_failure(self, request: PendingRequest, error: BaseException) -> None:
        for failed in self._failed:
            failed(request, error)

    @trio.lowlevel.enable_ki_protection
    def cancel(self, request: PendingRequest, ending: Ending) -> None:
        """End a request now, and cancel its handler.

        If it has no scope of its own, the caller cancels that of its client.
        """
        if request.ended:
            return
        # The reason first, then check `started`: `begin_in_thread` does it the other way round.
        reason = ending.reason or CancelReason.CANCELLED  # the client's fault: malformed credit
        request._cancel_reason = reason  # noqa: SLF001  # its own class
        scope = request.scope
        if not request.started:
            ending = UNSTARTED.get(ending, ending)
        self._refuse(request, ending)
        if scope is not None:
            scope.cancel(reason=reason)
        if isinstance(request, StreamRequest):
            request.wake()  # also where it shields itself

    def cancel_all(self, client: Client, ending: Ending) -> None:
        """End all requests of a client now, and cancel its scope."""
        for request in tuple(client.requests):
            self.cancel(request, ending)
        client.cancel(str(ending.reason))

    def _follow_up(self, client: Client, kind: int, name: Name, body: Frames) -> None:
        """The client cancels a request, or gives credit. The request may have ended meanwhile."""
        request = client.named.get(name)
        if request is None:
            return
        if kind == CANCEL:
            self.cancel(request, CANCELLED)
        elif isinstance(request, StreamRequest):
            if request.credit.add_untrusted(body):
                request.wake()
            else:
                self.cancel(request, MALFORMED)

    def _expire(self, request: PendingRequest) -> None:
        self.cancel(request, self._time_out(request))

    def _time_out(self, request: PendingRequest) -> Ending:
        """Its ending at its deadline. A client that set the limit itself is not sent a reply."""
        left = 0 if request.header is None else request.header.left / 1000
        return EXPIRED if 0 < left <= self._timeout else TIMED_OUT

    def has_ended(self, request: PendingRequest) -> bool:
        """Whether it has ended. A disconnect or timeout that is not handled yet is handled now."""
        if not request.ended:
            if request.owner.connection.disconnected:
                self.cancel(request, DISCONNECTED)
            elif request.timer is not None and request.timed_out:
                self.cancel(request, self._time_out(request))
        return request.ended

    def _refuse(self, request: PendingRequest, ending: Ending) -> None:
        """End it with the error reply of its ending, if there is one."""
        if ending.code is None:
            self._end(request, ending)
        else:
            body = self._error_body(request, ending.code, ending.text)
            self._end(request, ending, body, ending.status)

    def _end(
        self,
        request: PendingRequest,
        ending: Ending,
        body: Frames | None = None,
        status: int = OK,
    ) -> None:
        """The one place where a request ends: forget it, reply, report it."""
        request.ended_at = self.now if self.in_batch else self._clock()
        request.ended = True  # only now: threads look at it, and then at the time
        client, header = request.owner, request.header
        if request in client.requests:  # else it was refused
            del client.requests[request]
            if header is not None:
                del client.named[request.name]
            if request.timer is not None:
                self.deadlines.forget(request.timer)
            if not request.started:
                self._queue.remove(client, request)
        if body is not None:
            envelope = request.envelope
            message = envelope + body if header is None else answer(envelope, header, status, body)
            self._outbox.send(client.connection, message)
        self.in_flight -= 1
        for ended in self._ended:
            ended(request, ending)
        if self.closing and not self.in_flight:
            self.idle.set()

    def close(self) -> None:
        """Accept no more requests."""
        self.closing = True
        if not self.in_flight:
            self.idle.set()


def _name(envelope: Frames, header: Header) -> Name:
    """The name of a request, unique on its connection, which clients behind a proxy share."""
    return envelope[:-2], header.correlation & CORRELATION


def _overrides(observer: Observer, method: str) -> bool:
    return getattr(type(observer), method) is not getattr(Observer, method)
