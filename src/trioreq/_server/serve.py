"""`serve`: the nursery that owns all of it."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Sequence
from functools import partial

import trio

from .._errors import CancelReason
from .._options import check_count, check_limit, check_seconds
from .._protocol.connection_limits import Limits
from .._protocol.fair_queue import SharedTurns, Turns
from .._protocol.zap import Admit
from .._statistics import Statistics
from .._transport.curve import CurveServer
from .._transport.endpoints import is_exposed
from .._transport.interfaces import Link
from .._transport.router import Router
from .._transport.server_sockets import BoundSockets, Sockets
from .._transport.zap_handler import Rules
from .connection import Call, Connection, Desk
from .handlers import Handler, Workers, is_async
from .lanes import Lanes
from .network import Network
from .threads import Threads
from .watchdog import Watchdog

log = logging.getLogger("trioreq")


class Server:
    """A running server; `serve` hands it to ``task_status.started``."""

    def __init__(
        self,
        sockets: Sockets,
        rules: Rules,
        limits: Limits,
        turns: Turns[Connection, Call],
        timeout: float,
        workers: Callable[[Desk], Workers],
        watchdog: Watchdog | None,
    ) -> None:
        self._watchdog = watchdog
        self._transport = Router(sockets, rules, limits, watchdog)
        self._desk = Desk(turns, timeout, self._transport, self._stop)
        self._workers = workers(self._desk)
        # What has arrived (the transport calls this).
        self.start: Callable[[], None] = self._workers.start
        self._scope = trio.CancelScope(shield=True)
        self._drained = trio.Event()
        self._closed = trio.Event()

    @property
    def endpoints(self) -> tuple[str, ...]:
        """The addresses as really bound, with the port that was chosen for port 0."""
        return self._transport.endpoints

    def statistics(self) -> Statistics:
        """A snapshot of what the server has done."""
        turns = self._desk.turns
        return self._desk.tally.snapshot(
            in_flight=self._desk.in_flight,
            waiting=turns.waiting,
            running=turns.slots - turns.free,
            connections=self._transport.connections,
            sent=self._transport.outbox.handed_over,
            abandoned=self._workers.abandoned,
            refused=self._transport.refused,
            thrown_out=self._transport.thrown_out,
        )

    async def drain(self, grace: float) -> None:
        """End gently: start nothing new, give what is here its time, then let `serve` return.

        Newcomers are told ``shutting-down``. What runs and waits has `grace` seconds, and who
        has no answer by then is told the same.

        Args:
            grace: Seconds; 0 for at once, `math.inf` for as long as it takes.

        Raises:
            ValueError: `grace` is negative, or not a number.
        """
        if not grace >= 0:
            raise ValueError(f"grace is a number of seconds, at least 0, not {grace!r}")
        desk = self._desk
        if not desk.closing:
            log.info("draining: %d requests in flight, %s s for them", desk.in_flight, grace)
        desk.closing = True
        if desk.in_flight:
            with trio.move_on_after(grace):
                await desk.idle.wait()
        self._drained.set()
        await self._closed.wait()

    @trio.lowlevel.enable_ki_protection  # what is shielded is told to end, whatever comes
    async def _run(self, task_status: trio.TaskStatus[Server]) -> None:
        # The work runs in a shield, so that the words of `_stop` go out before the handlers
        # are cancelled, whatever ends the server: a cancel, Ctrl-C, or a crash.
        try:
            async with trio.open_nursery() as nursery:
                await nursery.start(self._work)
                log.info("serving on %s", ", ".join(self.endpoints))
                try:
                    task_status.started(self)
                    await self._drained.wait()
                finally:
                    self._stop()
        finally:
            await self._transport.aclose()
            self._closed.set()
            log.info("stopped: %s", self.statistics())

    async def _work(self, task_status: trio.TaskStatus[None]) -> None:
        with self._scope:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._transport.run, self)
                nursery.start_soon(self._keep_deadlines)
                if self._watchdog is not None:
                    nursery.start_soon(self._watchdog.run)
                await nursery.start(self._workers.run)
                task_status.started()

    @trio.lowlevel.enable_ki_protection  # half a message would begin the next one
    async def _keep_deadlines(self) -> None:
        """Protected here, and not in `Deadlines`: see docs/design.md on what is compiled."""
        await self._desk.deadlines.run()

    def _stop(self) -> None:
        """End what is in flight, with a word to each client, and then everything else."""
        self._desk.closing = True
        self._transport.outbox.gather(self._end_all)
        self._scope.cancel()

    def _end_all(self) -> None:
        for connection in tuple(self._desk.connections):
            connection.cancel_all(CancelReason.SHUTDOWN)

    def joined(self, link: Link) -> Connection:
        """A connection has sent its first message (the transport calls this)."""
        log.debug(
            "client %d: %s at %s", link.client.id, link.client.socket_type, link.client.address
        )
        return Connection(link, self._desk)

    def unattributed(self) -> None:
        """A message came whose connection is forgotten (the transport calls this)."""
        tally = self._desk.tally
        tally.requests += 1
        tally.unattributed += 1
        tally.ended["never_started"] += 1


async def serve(
    handler: Handler,
    addr: str | Sequence[str] | Network,
    *,
    workers: int = 40,
    max_in_flight: int = 1000,
    max_queued_per_client: int = 1000,
    timeout: float | None = None,  # of each request, not of this call
    heartbeat: float | None = 15.0,
    max_message_size: int = 16 * 1024 * 1024,
    send_queue: int = 1000,
    watchdog: float | None = 1.0,
    curve: CurveServer | None = None,
    plain_insecure: bool = False,
    admit: Admit | None = None,
    max_connections: int | None = None,
    max_connections_per_address: int | None = None,
    task_status: trio.TaskStatus[Server] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Serve requests over ZeroMQ until cancelled, or drained with `Server.drain`.

    Any REQ or DEALER client can ask, in any language (ZMTP 3, RFC 28). When a client's
    connection goes, its work is cancelled, and nothing is sent or kept for it.

    Args:
        handler: Called with each `Request`; returns the reply: bytes-like for one frame, a
            sequence of them for several. An async function runs in trio's loop, and is
            cancelled when its request ends. A plain function runs in a worker thread, and sees
            that its request has ended in `check_cancelled`. What it raises is answered with an
            error and logged; raise `ReplyError` for an error on purpose.
        addr: An endpoint, or several: ``tcp://127.0.0.1:5555``, ``tcp://*:0`` (a free port, on
            all interfaces), ``ipc:///run/my-service.sock``.
        workers: Plain functions that run at once, each in a thread.
        max_in_flight: Handlers that run at once. More requests wait, and clients take turns.
        max_queued_per_client: Requests of one client that may wait. More are answered
            ``overloaded`` at once.
        timeout: Seconds that a request may take from when it was read, the wait for its turn
            included; then its work is cancelled, and the client told ``timed-out``. None for
            no limit.
        heartbeat: Seconds in which a client that is stopped or cut off is noticed, by ZMTP
            heartbeats; one that closes or dies is noticed at once anyway. None sends none, for
            REQ clients older than libzmq 4.3.0, which break on them.
        max_message_size: Bytes that a frame may have; who sends more is disconnected. On tcp a
            message may have 512 KiB more than that in all its frames together.
        send_queue: Replies that may wait for a client that does not read. More are dropped.
        watchdog: Seconds that a handler may hold trio's loop up before the log names it, and
            shows where it is. None for no look at it; so it is with a `Network`.
        curve: The server's keys, and who may come in: everything is encrypted then, and clients
            prove who they are. None for no encryption, and nobody to prove anything.
        plain_insecure: Let clients prove who they are by a user name and a password, which
            anybody on the way can read and use; `admit` decides.
        admit: Called with each `Applicant` that no list decides about; returns its user id, which
            may be empty, or None to refuse it. It has 5 seconds. An async function.
        max_connections: Connections there may be; more are ended at once. None for no limit.
        max_connections_per_address: The same for one IP address and, on ipc, for one user of the
            machine.
        task_status: `trio.Nursery.start` gives the `Server` when it is bound.

    Raises:
        EndpointError: An address cannot be served; the message says why.
        TypeError: An option is of the wrong type.
        ValueError: An option is out of its range, or does not go with another.

    Example:
        >>> async def shout(request):
        ...     return request.body.upper()
        >>> trio.run(trioreq.serve, shout, "tcp://127.0.0.1:5555")  # doctest: +SKIP
    """
    if not callable(handler):
        raise TypeError(f"the handler is a function of a request, not {type(handler).__name__}")
    check_count("workers", workers, 1)
    check_count("max_in_flight", max_in_flight, 1)
    check_count("max_queued_per_client", max_queued_per_client, 0)
    check_count("max_message_size", max_message_size, 1)
    check_count("send_queue", send_queue, 1)
    check_seconds("timeout", timeout)
    check_seconds("heartbeat", heartbeat)
    check_seconds("watchdog", watchdog)
    check_limit("max_connections", max_connections)
    check_limit("max_connections_per_address", max_connections_per_address)
    rules = _rules(curve, plain_insecure, admit)
    bind: Callable[..., Sockets]
    if isinstance(addr, Network):
        if rules.mechanism != "NULL":
            raise ValueError("a network in memory knows no mechanism but NULL: leave it out there")
        bind, threads, watchdog = addr.bind, addr.threads, None  # its time is not real
    else:
        bind = partial(
            BoundSockets,
            (addr,) if isinstance(addr, str) else tuple(addr),
            curve=None if curve is None else curve.keys,
            plain=plain_insecure,
        )
        threads = Threads
    sockets = bind(heartbeat=heartbeat, max_message_size=max_message_size, send_queue=send_queue)
    in_loop = is_async(handler)
    slots = max_in_flight if in_loop else min(workers, max_in_flight)
    turns: Turns[Connection, Call] = (Turns if in_loop else SharedTurns)(
        slots, max_queued_per_client
    )
    if rules.mechanism != "CURVE":
        _warn_of_the_exposed(sockets.endpoints, rules.mechanism)
    server = Server(
        sockets,
        rules,
        Limits(max_connections, max_connections_per_address),
        turns,
        math.inf if timeout is None else timeout,
        partial(Lanes if in_loop else threads, handler),
        None if watchdog is None else Watchdog(watchdog, lambda: turns.free < turns.slots),
    )
    try:
        await server._run(task_status)  # noqa: SLF001  # the two are one
    except BaseExceptionGroup as group:
        error = _innermost(group)
        raise error from error.__cause__


def _rules(curve: CurveServer | None, plain: bool, admit: Admit | None) -> Rules:
    """Who may come in, if the options go together."""
    if curve is not None and not isinstance(curve, CurveServer):
        raise TypeError(f"curve is a CurveServer, not {type(curve).__name__}")
    if admit is not None and not callable(admit):
        raise TypeError(f"admit is an async function, not {type(admit).__name__}")
    if curve is not None and plain:
        raise ValueError("curve and plain_insecure: a server has one mechanism")
    if plain and admit is None:
        raise ValueError("plain_insecure needs admit, which looks at the password")
    if curve is None:
        return Rules("PLAIN" if plain else "NULL", admit=admit)
    if curve.allow is None and admit is None:
        raise ValueError("curve without an allow-list needs admit, which decides about the keys")
    if curve.allow is not None and admit is not None:
        raise ValueError("curve's allow-list and admit: choose who decides")
    return Rules("CURVE", curve.allow, admit)


def _warn_of_the_exposed(endpoints: Sequence[str], mechanism: str) -> None:
    """Say that others than this machine can reach an address, unencrypted."""
    for endpoint in filter(is_exposed, endpoints):
        log.warning(
            "%s can be reached from other machines, and with %s nothing is encrypted%s: "
            "use curve=trioreq.CurveServer(...), or bind 127.0.0.1",
            endpoint,
            mechanism,
            "" if mechanism == "PLAIN" else ", and nobody has to prove who he is",
        )


def _innermost(error: BaseException) -> BaseException:
    """The one cause in nested groups: a Ctrl-C comes out as what it is."""
    while isinstance(error, BaseExceptionGroup) and len(error.exceptions) == 1:
        error = error.exceptions[0]
    return error
