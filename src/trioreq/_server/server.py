"""A running server: the tasks in its nursery, and what they share.

A trio nursery owns the ROUTER reader, per-client cancel scopes and a worker pool via
`trio.to_thread`. A client's disconnect cancels its scope, which aborts processing and guarantees
that no reply is ever sent or buffered for it. No client, whether dead, stopped or slow, delays
another.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Final, NoReturn

import trio
from trio_util import AsyncBool

from .._checks import check_duration, check_instance
from .._functions import is_async, yields
from .._log import log
from .._options import Options
from .._protocol.connection_limits import ConnectionLimits, Total
from .._protocol.connection_table import Connection
from .._protocol.endings import DISCONNECTED, SHUT_DOWN, Ending
from .._protocol.fair_queue import FairQueue, SharedFairQueue
from .._protocol.unheard import UnheardGuard
from .._statistics import ConnectedClient, Statistics
from .._transport.curve_keys import KeyPair
from .._transport.heartbeats import heartbeat_times
from .._transport.router import Router
from .._transport.server_sockets import Sockets
from .._transport.zap_handler import AccessRules, ZapHandler
from .admission import Admission
from .client import Client
from .go_aways import GoAways
from .guard import Guard
from .handlers import Forwarder, Handler, name_of
from .handshake_log import HandshakeLog
from .observer import Counters, Observer, RequestLog
from .pending_request import PendingRequest
from .reader import Reader
from .requests import Requests
from .sessions import Sessions
from .slow_clients import SlowClients
from .streams import UNSENT, Streams
from .tasks import HandlerTasks
from .threads import ThreadPool
from .watchdog import Watchdog

if TYPE_CHECKING:
    from .open_workers import OpenWorkers

UNHEARD_PATIENCE: Final = 15.0  # seconds, without heartbeats
PARTING: Final = 10.0  # seconds for clients to close their connections after a go-away
LAST_CALL: Final = 0.1  # seconds for requests that were sent before their client knew of the drain
AT_ONCE: Final = 128  # disconnects, and requests that they end, in one pass of the event loop


class Server:
    """A running server: `open_server` yields it, and ``nursery.start`` returns it for `serve`."""

    def __init__(
        self,
        handler: Handler,
        sockets: Sockets,
        options: Options,
        thread_pool: Callable[..., Any],
        observers: Sequence[Observer],
        nursery: trio.Nursery,
        open_workers: OpenWorkers | None = None,
        total: Total | None = None,
    ) -> None:
        handler_name, streams = name_of(handler), yields(handler)
        slots, per_client = options.max_in_flight, options.max_queued_per_client
        if open_workers is not None or not is_async(handler):
            slots = min(slots, options.plain_functions)
        self._forwarder = handler if isinstance(handler, Forwarder) else None
        if self._forwarder is not None:
            slots = min(slots, self._forwarder.slots)
        queue: FairQueue[Client, PendingRequest]
        workers: Callable[..., HandlerTasks | ThreadPool]
        if is_async(handler):
            queue, workers = FairQueue(slots, per_client), HandlerTasks
        else:
            queue = SharedFairQueue(slots, per_client)
            workers = thread_pool
        rules = access_rules(options)
        limits = ConnectionLimits(
            options.max_connections, options.max_connections_per_address, total
        )
        self._nursery = nursery
        self._sockets = sockets
        self._queue = queue
        self._rules = rules
        self._counters = Counters()
        observers = [self._counters, RequestLog(), *observers]
        self._watchdog: Watchdog | None = None
        if options.watchdog is not None:
            self._watchdog = Watchdog(
                options.watchdog,
                lambda: queue.free < queue.slots,
                lambda: self._workers.processor_times(),
            )
            observers.append(self._watchdog)
        most_unsent = options.send_queue - sockets.send_queue + (UNSENT if streams else 0)
        self._router = Router(
            sockets,
            limits,
            most_unsent,
            self._disconnected,
            self._refused,
            HandshakeLog().failed,
        )
        self._slow_clients = SlowClients(self._router, sockets.counters, options.stall_timeout)
        self._go_aways = GoAways(self._router.outbox, options.max_connection_age)
        self._requests = Requests(
            options,
            queue,
            self._router.outbox,
            self._router.own_max_pack_size,
            self._go_aways,
            observers,
            streams=streams,
        )
        self._blocks = self._requests.blocks
        sessions = Sessions(self._router, nursery, observers, self._blocks, self._crashed)
        self._reader = Reader(self._router, self._requests, rules, handler_name, sessions)
        self._streams: Streams | None = None
        if streams and is_async(handler):
            self._streams = Streams(handler, self._requests, self._router.outbox)
            handler = self._streams.run  # type: ignore[assignment]  # all requests are streams
        self._workers = workers(
            handler,
            self._reader,
            self._requests,
            queue,
            self._router.outbox,
            nursery,
            self._crashed,
        )
        self._counted = open_workers or self._workers
        self._admission = Admission(
            ZapHandler(sockets.zap),
            rules,
            self._wait_complete,
            self._epoch,
            self._router.closed_routing_ids.all_free,
            self._start_task,
        )
        self._guard: Guard | None = None
        if sockets.counters is not None:
            unheard = unheard_guard(options, rules)
            self._guard = Guard(self._router, sockets.counters, unheard, self._catch_up)
        self._departed: deque[Client] = deque()  # clients whose disconnect is to be handled
        self._has_departed = AsyncBool(False)
        self._stopped = False
        self._drained = trio.Event()
        self._closed = trio.Event()

    @property
    def endpoints(self) -> tuple[str, ...]:
        """The addresses as bound, with the port that was chosen for port 0."""
        return self._sockets.endpoints

    def statistics(self) -> Statistics:
        """A snapshot of what the server has done.

        It may be called in any thread, as an exporter of metrics does. In another thread than
        trio's a request that ends at that moment may be counted both as ended and as in flight, or
        as neither; for an exact snapshot call it with `trio.from_thread.run_sync` there.
        """
        # For calls in other threads: a collection that changes is iterated in one step of the
        # interpreter, and values that must be consistent are read once.
        outbox, queue = self._router.outbox, self._queue
        in_flight = self._requests.in_flight
        outcomes = self._counters.outcomes()
        unattributed = self._router.unattributed
        outcomes["never_started"] += unattributed
        return Statistics(
            requests=sum(outcomes.values()) + in_flight,
            **outcomes,
            in_flight=in_flight,
            finishing=len(self._blocks) + self._counted.finishing,
            waiting=queue.waiting,
            running=queue.slots - queue.free,
            connections=0 if self._stopped else len(self._router),
            replies_sent=outbox.sent,
            streamed=self._requests.streamed,
            replies_waiting=sum(len(unsent.messages) for unsent in tuple(outbox.unsent.values())),
            replies_dropped=outbox.dropped + self._requests.late_replies,
            unattributed=unattributed,
            abandoned_threads=self._workers.abandoned,
            refused=self._admission.refused,
            handshakes_failed=self._router.handshakes.failed,
            evicted=self._router.evicted,
            evicted_slow=self._slow_clients.evicted,
            go_aways=self._go_aways.sent,
            workers=self._counted.statistics(),
            killed=self._counted.killed,
            died=self._counted.died,
            retired=self._counted.retired,
        )

    def clients(self) -> tuple[ConnectedClient, ...]:
        """A snapshot of all connections, the oldest first.

        It may be called in any thread.
        """
        connections = () if self._stopped else self._router.connections
        return tuple(self._describe(connection) for connection in connections)

    def _describe(self, connection: Connection) -> ConnectedClient:
        peer, client = connection.peer, connection.client
        unsent = self._router.outbox.unsent.get(connection)
        return ConnectedClient(
            id=connection.id,
            address=connection.address if peer is None else peer.address,
            user_id="" if peer is None else peer.user_id,
            socket_type="" if peer is None else peer.socket_type,
            connected_since=connection.since,
            in_flight=0 if client is None else len(client.requests),
            replies_waiting=0 if unsent is None else len(unsent.messages),
            last_heard=None if client is None else client.last_heard,
        )

    @trio.lowlevel.enable_ki_protection
    async def evict(self, client_id: int) -> bool:
        """Close the connection of a client; its requests and its session are cancelled.

        Most clients connect again, and are other clients then. To keep one out, take its key off
        the allow-list, or refuse it in `admit`.

        Args:
            client_id: Its `Peer.id`, or `ConnectedClient.id`.

        Returns:
            Whether it was connected.

        Raises:
            TypeError: `client_id` is not an int.
        """
        check_instance("client_id", client_id, int, "an int")
        await trio.lowlevel.checkpoint()
        for connection in self._router.connections:
            if connection.id == client_id and not self._stopped:
                self._router.evict(connection, "the program has evicted it")
                return True
        return False

    async def drain(self, grace: float) -> None:
        """Shut down gracefully: refuse connections and requests, and let those in flight finish.

        New connections are refused, so a load balancer sends clients elsewhere. New requests
        are answered ``shutting-down``. Requests in flight have `grace` seconds, and so have replies
        that wait for slow clients, and blocks of `finishing`; requests that have not ended by then
        are cancelled and answered the same, and no block is protected. Then `serve` returns.

        Clients of `open_client` open another connection for new requests, and close this one when
        their requests have ended. The server waits for that up to 10 seconds, and then 0.1 seconds
        for requests that other clients have sent meanwhile, but no longer than `grace`.

        Args:
            grace: Seconds; 0 for at once, `math.inf` for no limit.

        Raises:
            TypeError: `grace` is not a number.
            ValueError: `grace` is negative.
        """
        check_duration("grace", grace, math.inf)
        requests = self._requests
        if not requests.closing:
            log.info("draining: %d requests in flight, %s s for them", requests.in_flight, grace)
            self._begin_drain()
        with trio.move_on_after(grace):
            if requests.in_flight:
                await requests.idle.wait()
            await self._blocks.wait_none()
            with trio.move_on_after(PARTING):
                await self._go_aways.wait_followed()
            if len(self._router):  # others do not close theirs, and may have sent a request
                with trio.move_on_after(LAST_CALL):
                    await self._closed.wait()
            await self._router.outbox.has_unsent.wait_value(False)
        self._drained.set()
        await self._closed.wait()

    @trio.lowlevel.enable_ki_protection  # a drain that has half begun would not end
    def _begin_drain(self) -> None:
        try:
            self._router.refuse_connections()
            self._requests.close()
            self._go_aways.send_all("the server is shutting down")
        except BaseException:
            self._crashed()
            raise

    def refuse_connections(self) -> None:
        """Accept no more connections. Those that there are go on, and so do their requests.

        `drain` begins with it.
        """
        if not self._stopped:
            self._router.refuse_connections()

    def replace_keys(self, keys: KeyPair) -> None:
        """Have other CURVE keys for the clients that connect from now on.

        Those that are connected stay so. The allow-list is not affected.

        Args:
            keys: The server's.

        Raises:
            TypeError: It is not a KeyPair.
            RuntimeError: The server has no CURVE, does not run on Linux, or has ended.
        """
        check_instance("keys", keys, KeyPair, "a KeyPair", secret=True)
        if self._stopped:
            raise RuntimeError("there are no keys to replace: the server has ended")
        self._router.replace_keys(keys)

    def start(self) -> None:
        """Start the tasks of the server in its nursery."""
        self._nursery.start_soon(self._workers.lead, name="reader")
        self._start_task("monitor", self._router.watch)
        self._start_task("ZAP handler", self._admission.run)
        self._start_task("deadlines", self._requests.deadlines.run)
        self._start_task("disconnects", self._handle_departed)
        self._start_task("slow clients", self._slow_clients.run)
        self._start_task("connection ages", self._go_aways.run)
        if self._rules.allow is not None:
            self._start_task("allow-list", self._rules.allow.watch, self._evict_revoked)
        if self._guard is not None:
            self._start_task("message guard", self._guard.run)
        if self._streams is not None:
            self._start_task("passes", self._streams.time_passes)
        if self._watchdog is not None:
            self._start_task("watchdog", self._watchdog.run)

    def _start_task(self, name: str, run: Callable[..., Any], *args: object) -> None:
        self._nursery.start_soon(self._run_task, run, *args, name=name)

    @trio.lowlevel.enable_ki_protection  # an interrupt must not leave half a message or event
    async def _run_task(self, run: Callable[..., Any], *args: object) -> None:
        """Run one of the server's tasks. If it fails, requests are answered before the cancel."""
        try:
            await run(*args)
        except BaseException:
            self._crashed()
            raise

    def _crashed(self) -> None:
        """A task of the server has failed. `serve` raises its exception."""
        try:
            self.stop()
        except Exception:
            log.exception("not all requests could be answered at the shutdown")

    @trio.lowlevel.enable_ki_protection
    def stop(self) -> None:
        """End the requests in flight, each with an error reply, and then cancel everything."""
        if self._stopped:
            return
        self._stopped = True
        requests, outbox = self._requests, self._router.outbox
        try:
            requests.close()
            self._handle_some(math.inf)
            if self._drained.is_set():
                self._blocks.lift_all()
            outbox.cork()
            try:
                self._end_all_clients()
            except BaseException:  # of `error_reply`, which is not called again
                self._end_all_clients()
                raise
            finally:
                outbox.flush()
                outbox.close()
                self._go_aways.close()
        finally:  # the nursery is shielded: nothing else cancels it
            self._router.close()
            if self._forwarder is not None:
                self._forwarder.stop()
            self._nursery.cancel_scope.cancel(reason="the server is shutting down")

    async def wait_drained(self) -> None:
        """Wait until a drain is over."""
        await self._drained.wait()

    async def wait_finished(self) -> None:
        """Wait for plain functions in finishing blocks, within their limits."""
        await self._blocks.wait_limits()

    def closed(self) -> None:
        """The sockets are closed."""
        self._closed.set()
        log.info("stopped: %s", self.statistics())

    # Connections.

    async def _wait_complete(self) -> None:
        if self._guard is not None:
            await self._guard.wait_complete()

    def _epoch(self) -> int:
        """Read the messages and events that have arrived; returns the epoch."""
        self._catch_up()  # first, so that the routing ids of closed connections are free
        epoch = self._router.epoch_of_replies()
        if self._guard is not None:
            self._guard.look_at_handshakes()
        return epoch

    def _catch_up(self) -> bool:
        """Read the messages that have arrived, and start requests; returns whether it read all."""
        runnable, dry = self._reader.catch_up()
        self._workers.start(runnable)
        return dry

    def _disconnected(self, connections: list[Connection]) -> None:
        """Clients have disconnected (the router calls this in each task that reads the monitor).

        Nothing is sent to them from now on. Their scopes are cancelled at once. If there are very
        many, only some are cancelled in each pass of the event loop, to delay no other client.
        """
        self._departed.extend([c.client for c in connections if c.client is not None])
        if not self._has_departed.value:
            self._handle_some(AT_ONCE)
            self._has_departed.value = bool(self._departed)

    async def _handle_departed(self) -> NoReturn:
        while True:
            await self._has_departed.wait_value(True)
            while self._departed:
                self._handle_some(AT_ONCE)
                await trio.lowlevel.checkpoint()
            self._has_departed.value = False

    @trio.lowlevel.enable_ki_protection
    def _handle_some(self, most: float) -> None:
        while self._departed and most > 0:
            client = self._departed.popleft()
            most -= 1 + len(client.requests)
            self._end_client(client, DISCONNECTED)
            self._go_aways.forget(client)

    def _end_all_clients(self) -> None:
        for connection in self._router.connections:
            if connection.client is not None:
                self._end_client(connection.client, SHUT_DOWN)

    def _end_client(self, client: Client, ending: Ending) -> None:
        """End the requests of a client, and its session."""
        self._requests.cancel_all(client, ending)
        client.end_session(str(ending.reason))

    def _refused(self, address: str, reason: str) -> None:
        self._admission.count_refused(address, reason)

    def _evict_revoked(self) -> None:
        """Evict clients whose keys were removed from the allow-list."""
        for connection in self._router.connections:
            if connection.peer is not None and not self._rules.still_accept(connection.peer):
                self._router.evict(connection, "its key is no longer on the allow-list")


def access_rules(options: Options) -> AccessRules:
    """Which connections the options accept."""
    allow = None if options.curve is None else options.curve.allow
    return AccessRules(options.mechanism, allow, options.admit)


def unheard_guard(options: Options, rules: AccessRules) -> UnheardGuard:
    """Decides about the connections from which nothing was read."""
    if options.heartbeat is None:
        return UnheardGuard(rules.mechanism, None, UNHEARD_PATIENCE)
    interval, _ = heartbeat_times(options.heartbeat)
    return UnheardGuard(rules.mechanism, interval, options.heartbeat)
