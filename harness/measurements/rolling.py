"""Rolling restarts under load: which requests are lost, and which are executed twice?

There are two ways. *One address*: the next server is started on the address of the old one as soon
as that has ended. *Behind HAProxy*: two servers, of which each is drained and started again in
turn, while the other serves.

Clients of `open_client`, without retries, send requests all the while, each with a body of its own.
The servers count how often a handler was called for each. Plain REQ clients do the same, with a
timeout, and look at their socket monitor: each request ends with a reply, an error, or a closed
connection.
"""

from __future__ import annotations

import json
import random
import tempfile
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import trio
import trio.testing
import zmq

import trioreq

from ..balancer import open_balancer
from ..children import Child, open_child
from ..clients import ClientSocket
from ..latency import percentile
from ..processes import python_module

GRACE = 10.0  # seconds for a drain
WORK = (0.0, 0.0, 0.005, 0.05, 0.3)  # seconds that a request takes, one of these
MANY = 8  # requests of one call of `request_many`, which is one call in so many
SETTLED = 1.5  # seconds until HAProxy has noticed that a server serves again
CONNECT_TIMEOUT = 60.0  # seconds: longer than a restart, also on a busy machine
TIMEOUT = 10.0  # seconds after which a plain client gives up: it must never come to that


@dataclass
class Report:
    """What was measured: requests, and seconds."""

    clients: int
    plain_clients: int
    restarts: int = 0
    longest_restart: float = 0.0
    replied: list[str] = field(default_factory=list)
    errors: Counter[str] = field(default_factory=Counter)
    seconds: list[float] = field(default_factory=list)
    not_started: int = 0
    connections: int = 0
    plain: Counter[str] = field(default_factory=Counter)
    plain_seconds: list[float] = field(default_factory=list)
    calls: Counter[str] = field(default_factory=Counter)

    @property
    def lost(self) -> int:
        """Requests of `open_client` that have failed, or have a reply and were never executed."""
        return self.errors.total() + sum(body not in self.calls for body in self.replied)

    @property
    def twice(self) -> int:
        """Requests that were executed more than once."""
        return sum(times > 1 for times in self.calls.values())

    @property
    def hung(self) -> int:
        """Requests of plain clients that had neither a reply, an error nor a closed connection."""
        return self.plain["hung"]

    def __str__(self) -> str:
        rows = [
            ("restarts", f"{self.restarts}"),
            ("the longest, from the drain until the next serves", f"{self.longest_restart:.2f} s"),
            ("clients of open_client", f"{self.clients}"),
            ("their requests", f"{len(self.replied) + self.errors.total():,}"),
            ("lost", f"{self.lost}"),
            ("executed twice", f"{self.twice}"),
            ("not started at first, and sent again", f"{self.not_started}"),
            ("connections", f"{self.connections:,}"),
            ("p50, p99, longest wait", _milliseconds(self.seconds)),
            ("REQ clients", f"{self.plain_clients}"),
            ("their replies", f"{self.plain['reply']:,}"),
            ("errors (shutting-down)", f"{self.plain['shutting-down']}"),
            ("closed connections", f"{self.plain['closed']}"),
            (f"nothing of this for {TIMEOUT:.0f} s", f"{self.hung}"),
            ("p50, p99, longest wait", _milliseconds(self.plain_seconds)),
        ]
        lines = [f"{name:52} {value:>24}" for name, value in rows]
        return "\n".join([*lines, *(f"lost: {what}: {n}" for what, n in self.errors.items())])


def _milliseconds(seconds: list[float]) -> str:
    ordered = sorted(seconds)
    shown = (f"{percentile(ordered, share) * 1000:,.1f}" for share in (0.5, 0.99, 1))
    return ", ".join(shown) + " ms"


class Load:
    """Clients that send requests until the nursery is closed.

    Args:
        endpoint: Where they connect.
        pause: Seconds between two requests of one client, on average.
        report: What they have done.
    """

    def __init__(self, endpoint: str, pause: float, report: Report) -> None:
        self._endpoint = endpoint
        self._pause = pause
        self.report = report
        self._number = 0
        self._over = trio.Event()
        self._unserved: set[trio.lowlevel.Task] = set()
        self._all_served = trio.Event()
        self._clients: set[trio.lowlevel.Task] = set()
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()

    async def wait_served(self) -> None:
        """Wait until each client has had a reply."""
        self._unserved = set(self._clients)
        self._all_served = trio.Event()
        await self._all_served.wait()

    def _was_served(self) -> None:
        """The client of this task has had a reply."""
        self._unserved.discard(trio.lowlevel.current_task())
        if not self._unserved:
            self._all_served.set()

    def end(self) -> None:
        """Let each client finish its request."""
        self._over.set()

    def close(self) -> None:
        """Close the sockets of plain clients."""
        self._context.destroy(linger=0)

    def _next_body(self) -> str:
        self._number += 1
        return f"r{self._number} {random.choice(WORK)}"

    async def _paused(self) -> bool:
        """Wait before the next request; returns False if there is none."""
        with trio.move_on_after(self._pause * random.uniform(0, 2)):
            await self._over.wait()
        return not self._over.is_set()

    async def use(self) -> None:
        """Be a client of `open_client`."""
        report = self.report
        self._clients.add(trio.lowlevel.current_task())
        async with trioreq.open_client(self._endpoint, connect_timeout=CONNECT_TIMEOUT) as client:
            while await self._paused():
                if random.randrange(MANY):
                    await self._ask(client)
                else:
                    await self._ask_many(client)
            statistics = client.statistics()
        report.not_started += statistics.not_started
        report.connections += statistics.connections

    async def _ask(self, client: trioreq.Client) -> None:
        body = self._next_body()
        begun = trio.current_time()
        try:
            await client.request(body.encode())
        except trioreq.TrioreqError as error:
            self._failed(error)
        else:
            self.report.replied.append(body)
            self._was_served()
        self.report.seconds.append(trio.current_time() - begun - float(body.split()[1]))

    async def _ask_many(self, client: trioreq.Client) -> None:
        bodies = [self._next_body() for _ in range(MANY)]
        replies = await client.request_many([body.encode() for body in bodies])
        for body, reply in zip(bodies, replies, strict=True):
            if isinstance(reply, Exception):
                self._failed(reply)
            else:
                self.report.replied.append(body)

    def _failed(self, error: Exception) -> None:
        self.report.errors[f"{type(error).__name__}: {error}"] += 1

    async def use_plainly(self) -> None:
        """Be a REQ client, which opens another socket when its connection was closed."""
        report = self.report
        self._clients.add(trio.lowlevel.current_task())
        while not self._over.is_set():
            client, monitor = self._open()
            try:
                how = "reply"
                while how in ("reply", "shutting-down") and await self._paused():
                    body = self._next_body()
                    begun = trio.current_time()
                    how = await self._ask_plainly(client, monitor, body.encode())
                    report.plain[how] += 1
                    if how == "reply":
                        self._was_served()
                    work = float(body.split()[1])
                    report.plain_seconds.append(trio.current_time() - begun - work)
            finally:
                client.raw.disable_monitor()
                monitor.close()
                client.close()

    def _open(self) -> tuple[ClientSocket, ClientSocket]:
        """Connect a socket, with a monitor that reports the end of the connection."""
        socket = self._context.socket(zmq.REQ)
        monitor = socket.get_monitor_socket(zmq.EVENT_DISCONNECTED)
        socket.connect(self._endpoint)
        return ClientSocket(socket), ClientSocket(monitor)

    async def _ask_plainly(self, client: ClientSocket, monitor: ClientSocket, body: bytes) -> str:
        """Send a request; returns how it has ended."""
        while monitor.raw.poll(0):
            await monitor.receive()  # the connection was closed between two requests
        await client.send(body)
        ways: list[str] = []

        async def wait_answered() -> None:
            frames = await client.receive()
            ways.append("reply" if len(frames) == 1 else frames[1].decode())
            nursery.cancel_scope.cancel()

        async def wait_closed() -> None:
            await monitor.receive()
            ways.append("closed")
            nursery.cancel_scope.cancel()

        with trio.move_on_after(TIMEOUT):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(wait_answered)
                nursery.start_soon(wait_closed)
        return min(ways, key="closed".__eq__, default="hung")  # an answer, if both have come


@asynccontextmanager
async def _loaded(
    endpoint: str, clients: int, plain_clients: int, pause: float
) -> AsyncIterator[Load]:
    """Clients that are all served, while the block runs; afterwards the report is complete."""
    report = Report(clients, plain_clients)
    load = Load(endpoint, pause, report)
    try:
        async with trio.open_nursery() as nursery:
            for _ in range(clients):
                nursery.start_soon(load.use)
            for _ in range(plain_clients):
                nursery.start_soon(load.use_plainly)
            await trio.testing.wait_all_tasks_blocked()
            await load.wait_served()
            yield load
            load.end()
    finally:
        load.close()


async def _start(stack: AsyncExitStack) -> Child:
    """Start a process, which serves as soon as it is told where."""
    command = python_module("harness.programs.restarted", GRACE)
    return await stack.enter_async_context(open_child(command))


async def _drain(server: Child, report: Report) -> None:
    """Let a server drain and end, and take in what it has counted."""
    report.calls.update(json.loads(await server.ask()))
    await server.process.wait()


async def _restart(old: Child, endpoint: str, report: Report, stack: AsyncExitStack) -> Child:
    following = await _start(stack)
    begun = trio.current_time()
    await _drain(old, report)
    await following.ask(endpoint)
    report.restarts += 1
    report.longest_restart = max(report.longest_restart, trio.current_time() - begun)
    return following


async def one_address(times: int, clients: int, plain_clients: int, pause: float) -> Report:
    """Each server is followed by another one on its address, so many times."""
    async with AsyncExitStack() as stack:
        server = await _start(stack)
        endpoint = await server.ask("tcp://127.0.0.1:0")
        async with _loaded(endpoint, clients, plain_clients, pause) as load:
            for _ in range(times):
                server = await _restart(server, endpoint, load.report, stack)
                await load.wait_served()
        await _drain(server, load.report)
    return load.report


async def behind_haproxy(times: int, clients: int, plain_clients: int, pause: float) -> Report:
    """Each of two servers is restarted so many times, in turn."""
    async with AsyncExitStack() as stack:
        servers = [await _start(stack) for _ in range(2)]
        endpoints = [await server.ask("tcp://127.0.0.1:0") for server in servers]
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        endpoint = await stack.enter_async_context(open_balancer(folder, endpoints))
        async with _loaded(endpoint, clients, plain_clients, pause) as load:
            for number in range(2 * times):
                which = number % 2
                servers[which] = await _restart(
                    servers[which], endpoints[which], load.report, stack
                )
                await trio.sleep(SETTLED)
                await load.wait_served()
        for server in servers:
            await _drain(server, load.report)
    return load.report


WAYS: dict[str, Callable[[int, int, int, float], Awaitable[Report]]] = {
    "one address": one_address,
    "behind HAProxy": behind_haproxy,
}
