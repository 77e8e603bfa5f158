"""`serve`: options in, a server in a nursery of its own, which is told to stop before it ends."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack
from functools import partial
from typing import TYPE_CHECKING

import trio

from .._checks import check_endpoints, check_in_trio, check_task_status
from .._log import log
from .._options import Options
from .._protocol.envelope import ErrorReply
from .._protocol.zap import Admit
from .._transport.curve import CurveServer
from .._transport.endpoints import is_exposed
from .._transport.network import Network
from .._transport.server_sockets import BoundSockets, Sockets
from .._workers import KillableWorkers, ProcessWorkers, Workers, check_plain
from .handlers import Handler, check_handler, only_error
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
    error_reply: ErrorReply | None = None,
    task_status: trio.TaskStatus[Server] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Serve requests over ZeroMQ until cancelled, or drained with `Server.drain`.

    Any REQ or DEALER client can send requests, in any language (ZMTP 3, RFC 28). When a client
    disconnects, its work is cancelled, and nothing is sent or kept for it.

    Args:
        handler: Called with each `Request`; returns the reply: bytes-like for one frame, a
            sequence of them for several. An async function runs in a trio task, and is cancelled
            when its request ends. A plain function runs in a worker thread, and learns that its
            request has ended from `check_cancelled`. An exception is answered with an error and
            logged; raise `ReplyError` to choose the error.
        addr: An endpoint, or several: ``tcp://127.0.0.1:5555``, ``tcp://*:0`` (a free port, on
            all interfaces, IPv4), ``tcp://[::]:5555`` (IPv6 and IPv4),
            ``ipc:///run/my-service.sock``, ``ipc://*`` (a new path).
        workers: Plain functions that run at once, each in a thread; or `ProcessWorkers`, to run
            them in processes, which are killed when their request ends early; or `RayWorkers`, to
            run them on a cluster.
        max_in_flight: Handlers that run at once. More requests wait, in turn by client.
        max_queued_per_client: Requests of one client that may wait. More are answered
            ``overloaded`` at once.
        timeout: Seconds that a request may take from when it was read, its wait for a slot
            included; then its handler is cancelled, and the client is answered ``timed-out``.
            None for no limit.
        heartbeat: Seconds after which a client that is stopped or cut off is disconnected, by ZMTP
            heartbeats; one that closes or dies is noticed at once anyway. None sends none, for
            REQ clients older than libzmq 4.3.0, which break on them.
        max_message_size: Bytes that a frame may have; a client that sends more is disconnected. On
            tcp a message may have 512 KiB more than that in all its frames together. At least 41,
            44 with `plain_insecure`, and 259 with CURVE, for the handshake.
        send_queue: Replies that may wait for a client that does not read. If there are more, it is
            disconnected.
        stall_timeout: Seconds after which a client is disconnected that has replies waiting and
            reads none of them. None for no limit.
        watchdog: Seconds that a handler may block the event loop before the log names it and shows
            its stack. None for no watchdog; there is none with a `Network` either.
        curve: The server's keys and its allow-list: everything is encrypted then, and clients
            are authenticated. None for neither.
        plain_insecure: Let clients authenticate with a user name and a password, which are sent
            in clear text; `admit` checks them.
        admit: An async function, called with each `Applicant` that no allow-list decides about;
            returns its user id, which may be empty, or None to refuse it. It has 5 seconds.
        max_connections: Connections there may be; more are closed at once. None for no limit.
        max_connections_per_address: The same for one IP address and, on ipc, for one user of the
            machine.
        error_reply: A plain function that makes the body of an error reply, for clients that have
            an error format of their own: called with the code and the text, it returns bytes, or a
            list of them. It runs in trio's loop, and must be quick. Clients that use the header of
            docs/protocol.md, as `open_client` does, are sent the standard error. None for that.
        task_status: `trio.Nursery.start` returns the `Server` when it is bound.

    Raises:
        EndpointError: An address cannot be served; the message says why.
        TypeError: An option is of the wrong type, or the handler or `admit` is not a function of
            one argument that returns.
        ValueError: An option is out of its range, or cannot be combined with another.
        RuntimeError: It is not trio that runs it.
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
        watchdog=None if isinstance(addr, Network) else watchdog,  # its time is not real
        curve=curve,
        plain_insecure=plain_insecure,
        admit=admit,
        max_connections=max_connections,
        max_connections_per_address=max_connections_per_address,
        error_reply=error_reply,
    )
    if isinstance(workers, KillableWorkers):
        check_plain(handler, workers)
    mechanism = options.mechanism
    bind: Callable[..., Sockets]
    if isinstance(addr, Network):
        if mechanism != "NULL":
            raise ValueError("a network in memory has no mechanism but NULL: leave the option out")
        bind, thread_pool, observers = addr.bind, addr.thread_pool, addr.observers
        open_workers = addr.open_workers
    else:
        addresses = check_endpoints("addr", addr)
        keys = None if curve is None else curve.keys
        bind = partial(BoundSockets, addresses, curve=keys, plain=plain_insecure)
        thread_pool, observers = ThreadPool, ()
        open_workers = _open_workers
    bind = partial(
        bind, heartbeat=heartbeat, max_message_size=max_message_size, send_queue=send_queue
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


@trio.lowlevel.enable_ki_protection  # what is shielded must be told to end
async def _serve(
    new_server: Callable[[trio.Nursery], Server],
    sockets: Sockets,
    task_status: trio.TaskStatus[Server],
) -> None:
    """Run a server until it is cancelled or drained, and close its sockets.

    The server's own nursery is shielded, so that clients are told before handlers are cancelled,
    whatever ends the server: a cancel, Ctrl-C, or a crash.
    """
    servers: list[Server] = []

    async def run(task_status: trio.TaskStatus[Server]) -> None:
        # From here to `started` is one step: trio ignores a start that is cancelled by then, and
        # what is shielded would never end.
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
        await sockets.aclose()
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
