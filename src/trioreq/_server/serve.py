"""`serve`: checks the options, binds the addresses, and runs a server in its own nursery."""

from __future__ import annotations

import socket
from collections.abc import Callable, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack
from functools import partial
from typing import TYPE_CHECKING

import trio

from .._checks import check_endpoints, check_in_trio, check_task_status
from .._log import log
from .._options import Options
from .._protocol.connection_limits import Total
from .._protocol.envelope import ErrorReply
from .._protocol.zap import Admit
from .._transport.curve import CurveServer
from .._transport.endpoints import is_exposed
from .._transport.network import Network
from .._transport.server_sockets import BoundSockets, Sockets
from .._workers import KillableWorkers, ProcessWorkers, Workers, check_plain
from .handlers import Handler, check_handler, only_error
from .observer import Observer
from .server import Server
from .threads import ThreadPool

if TYPE_CHECKING:
    from .open_workers import OpenWorkers


async def serve(
    handler: Handler,
    addr: str | Sequence[str] | Network,
    *,
    workers: int | Workers = 40,
    max_in_flight: int = 1000,
    max_queued_per_client: int = 1000,
    timeout: float | None = None,  # of each request, not of this call
    heartbeat: float | None = 15.0,
    max_message_size: int = 16 * 1024 * 1024,
    send_queue: int = 1000,
    stall_timeout: float | None = 10.0,
    watchdog: float | None = 1.0,
    curve: CurveServer | None = None,
    plain_insecure: bool = False,
    admit: Admit | None = None,
    max_connections: int | None = None,
    max_connections_per_address: int | None = None,
    max_connection_age: float | None = None,
    error_reply: ErrorReply | None = None,
    task_status: trio.TaskStatus[Server] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Serve requests over ZeroMQ until cancelled, or drained with `Server.drain`.

    Any REQ or DEALER client can send requests, in any language (ZMTP 3, RFC 28). When a client
    disconnects, its requests are cancelled, and no reply is sent or stored.

    Args:
        handler: Called with each `Request`; returns the reply: bytes-like for one frame, a
            sequence of them for several. An async function runs in a trio task, and is cancelled
            when its request ends. A plain function runs in a worker thread, and checks
            with `check_cancelled` whether its request was cancelled. An exception is answered with
            an error and logged; raise `ReplyError` to choose the error.
        addr: An endpoint, or several: ``tcp://127.0.0.1:5555``, ``tcp://*:0`` (a free port, on
            all interfaces, IPv4), ``tcp://[::]:5555`` (IPv6 and IPv4),
            ``ipc:///run/my-service.sock``, ``ipc://*`` (a new path).
        workers: Plain functions that run at once, each in a thread; or `ProcessWorkers`, to run
            them in processes, which are killed when their request ends early; or `RayWorkers`, to
            run them on a cluster.
        max_in_flight: Handlers that run at once. Further requests are queued, and clients take
            turns.
        max_queued_per_client: Maximum queued requests per connection; 0 disables queueing. Further
            ones are answered ``overloaded`` at once.
        timeout: Seconds that a request may take from when it was read, its wait for a slot
            included; then its handler is cancelled, and the client is answered ``timed-out``.
            None for no limit.
        heartbeat: Seconds after which a client that is stopped or cut off is disconnected, by ZMTP
            heartbeats. (A client that closes its connection or is killed is detected at once.)
            None sends none, for REQ clients older than libzmq 4.3.0, which fail on heartbeats.
        max_message_size: Bytes that a frame may have; a client that sends more is disconnected. On
            tcp a message may have 512 KiB more than that in all its frames together. At least 41,
            44 with `plain_insecure`, and 259 with CURVE, for the handshake.
        send_queue: Maximum replies that wait for a slow client; with more it is evicted.
        stall_timeout: Seconds after which a slow client is evicted: replies wait for it, and it
            reads none of them. None for no limit.
        watchdog: Seconds that a handler may block the event loop before the log names it and shows
            its stack. None for no watchdog; a `Network` never has one.
        curve: The server's keys and its allow-list, for encryption and authentication. None for
            neither.
        plain_insecure: Let clients authenticate with a user name and a password, which are sent
            in clear text; `admit` checks them.
        admit: An async function, called with each `Applicant` that no allow-list decides about;
            returns its user id, which may be empty, or None to refuse it. It has 5 seconds.
        max_connections: Maximum open connections; further ones are closed at once. None for no
            limit.
        max_connections_per_address: The same for one IP address and, on ipc, for one user of the
            machine.
        max_connection_age: Seconds after which a client of `open_client` is asked to send its next
            requests on another connection, so that a load balancer can give it to another server;
            10 % more or less. It counts from the first request of the connection. Other clients
            stay connected. None for no limit.
        error_reply: A plain function that makes the body of an error reply, for clients that have
            an error format of their own: called with the code and the text, it returns bytes, or a
            list of them. It runs in the event loop, and must be quick. Clients that use the header
            of docs/protocol.md, as `open_client` does, are sent the standard error. None for the
            standard error.
        task_status: `trio.Nursery.start` returns the `Server` when it is bound.

    Raises:
        EndpointError: An address cannot be served; the message says why.
        TypeError: An option is of the wrong type, or the handler or `admit` is not a function of
            one argument that returns.
        ValueError: An option is out of its range, or cannot be combined with another.
        RuntimeError: It does not run in trio.
        WorkersFailed: Worker processes cannot be started, or Ray cannot.

    Example:
        >>> async def shout(request):
        ...     return request.body.upper()
        >>> trio.run(trioreq.serve, shout, "tcp://127.0.0.1:5555")  # doctest: +SKIP
    """
    check_in_trio("trio.run(trioreq.serve, handler, addr)")
    check_handler(handler)
    check_task_status(task_status)
    options = Options(
        workers=workers,
        max_in_flight=max_in_flight,
        max_queued_per_client=max_queued_per_client,
        timeout=timeout,
        heartbeat=heartbeat,
        max_message_size=max_message_size,
        send_queue=send_queue,
        stall_timeout=stall_timeout,
        # The clock of a Network is not real time.
        watchdog=None if isinstance(addr, Network) else watchdog,
        curve=curve,
        plain_insecure=plain_insecure,
        admit=admit,
        max_connections=max_connections,
        max_connections_per_address=max_connections_per_address,
        max_connection_age=max_connection_age,
        error_reply=error_reply,
    )
    if not isinstance(addr, Network):
        addr = check_endpoints("addr", addr)
    await run_server(handler, addr, options, task_status=task_status)


async def run_server(
    handler: Handler,
    addr: Sequence[str | socket.socket] | Network,
    options: Options,
    *,
    observers: Sequence[Observer] = (),
    total: Total | None = None,
    task_status: trio.TaskStatus[Server] = trio.TASK_STATUS_IGNORED,
) -> None:
    """`serve`, for what runs servers in a process of their own.

    Args:
        handler: As `serve` has it.
        addr: Endpoints, and sockets that listen already, which other processes may share.
        options: The options of `serve`.
        observers: Receive each transition of each request.
        total: The connections of all processes; None if there is no other.
        task_status: As `serve` has it.
    """
    workers = options.workers
    if isinstance(workers, KillableWorkers):
        check_plain(handler, workers)
    mechanism = options.mechanism
    bind: Callable[..., Sockets]
    if isinstance(addr, Network):
        if mechanism != "NULL":
            raise ValueError(
                "a Network supports the NULL mechanism only: leave curve and plain_insecure out"
            )
        bind, thread_pool, observers = addr.bind, addr.thread_pool, (*observers, *addr.observers)
        open_workers = addr.open_workers
    else:
        keys = None if options.curve is None else options.curve.keys
        bind = partial(BoundSockets, addr, curve=keys, plain=options.plain_insecure)
        thread_pool = ThreadPool
        open_workers = _open_workers
    bind = partial(
        bind,
        heartbeat=options.heartbeat,
        max_message_size=options.max_message_size,
        send_queue=options.send_queue,
    )
    try:
        async with AsyncExitStack() as stack:
            opened = None
            if isinstance(workers, KillableWorkers):
                opened = await stack.enter_async_context(open_workers(handler, workers))
                handler = opened.run
            sockets = bind()
            if mechanism != "CURVE":
                _warn_of_exposed(sockets.endpoints, mechanism)
            new_server = partial(
                Server,
                handler,
                sockets,
                options,
                thread_pool,
                observers,
                open_workers=opened,
                total=total,
            )
            await _serve(new_server, sockets, task_status)
    except BaseExceptionGroup as group:
        error = only_error(group)
        raise error from error.__cause__


def _open_workers(
    handler: Handler, workers: KillableWorkers
) -> AbstractAsyncContextManager[OpenWorkers]:
    """Open what needs packages that other servers do without."""
    if isinstance(workers, ProcessWorkers):
        from .processes import open_processes

        return open_processes(handler, workers)
    from .ray_tasks import open_ray_tasks

    return open_ray_tasks(handler, workers)


@trio.lowlevel.enable_ki_protection  # an interrupt must not leave the shielded nursery open
async def _serve(
    new_server: Callable[[trio.Nursery], Server],
    sockets: Sockets,
    task_status: trio.TaskStatus[Server],
) -> None:
    """Run a server until it is cancelled or drained, and close its sockets.

    The server's own nursery is shielded, so that requests in flight are answered before handlers
    are cancelled, whatever ends the server: a cancel, Ctrl-C, or a crash.
    """
    servers: list[Server] = []

    async def run(task_status: trio.TaskStatus[Server]) -> None:
        # No checkpoint from here to `started`: trio ignores a start that was cancelled meanwhile,
        # and the shielded nursery would never end.
        await trio.lowlevel.checkpoint_if_cancelled()
        async with trio.open_nursery() as nursery:
            nursery.cancel_scope.shield = True  # it ends by `Server.stop`
            server = new_server(nursery)
            servers.append(server)
            server.start()
            task_status.started(server)

    try:
        async with trio.open_nursery() as nursery:
            server: Server = await nursery.start(run, name="server")
            try:
                log.info("serving on %s", ", ".join(server.endpoints))
                task_status.started(server)
                await server.wait_drained()
            finally:
                server.stop()
    finally:
        try:
            for server in servers:
                await server.wait_finished()
        finally:  # Ctrl-C ends the wait
            try:
                await sockets.aclose()
            finally:
                for server in servers:
                    server.closed()


def _warn_of_exposed(endpoints: Sequence[str], mechanism: str) -> None:
    """Warn that other machines can reach an address that is not encrypted."""
    for endpoint in filter(is_exposed, endpoints):
        log.warning(
            "%s can be reached from other machines, and %s does not encrypt%s: "
            "use curve=trioreq.CurveServer(...), or bind 127.0.0.1",
            endpoint,
            mechanism,
            "" if mechanism == "PLAIN" else " or authenticate clients",
        )
