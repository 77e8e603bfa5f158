"""How exactly cancels and deadlines hold, from the client's caller to the server's handler.

Client and server share a process and its clock, over tcp on the loopback interface. Measured: from
a caller's cancel to the `Cancelled` in the handler; and how late after the deadline the caller has
its error, and the handler its `Cancelled`.
"""

from __future__ import annotations

import argparse

import trio

import trioreq
from harness.latency import percentile

from ..shared import report

DEADLINE = 0.05  # seconds


class Handler:
    """Waits for its end, and notes when that was."""

    def __init__(self) -> None:
        self.started = trio.Event()
        self.ended = trio.Event()
        self.when = 0.0

    async def __call__(self, _: trioreq.Request) -> bytes:
        """Never returns."""
        self.started.set()
        try:
            await trio.sleep_forever()
        finally:
            self.when = trio.current_time()
            self.ended.set()
        return b""

    def reset(self) -> None:
        """Be ready for the next request."""
        self.started, self.ended = trio.Event(), trio.Event()


async def one_cancel(client: trioreq.Client, handler: Handler) -> float:
    """Seconds from a cancel to its arrival."""
    async with trio.open_nursery() as nursery:
        nursery.start_soon(client.request, b"x")
        await handler.started.wait()
        begun = trio.current_time()
        nursery.cancel_scope.cancel()
        with trio.CancelScope(shield=True):
            await handler.ended.wait()
    return handler.when - begun


async def one_deadline(client: trioreq.Client, handler: Handler) -> tuple[float, float]:
    """Seconds after the deadline, for the caller and for the handler."""
    deadline = trio.current_time() + DEADLINE
    try:
        await client.request(b"x", timeout=DEADLINE)
    except trioreq.RequestTimeout:
        caller = trio.current_time() - deadline
    await handler.ended.wait()
    return caller, handler.when - deadline


async def measure(times: int) -> dict[str, list[float]]:
    """Seconds, of each kind."""
    handler = Handler()
    cancels: list[float] = []
    callers: list[float] = []
    handlers: list[float] = []
    async with trio.open_nursery() as nursery:
        server = await nursery.start(trioreq.serve, handler, "tcp://127.0.0.1:0")
        async with trioreq.open_client(server.endpoints[0]) as client:
            for _ in range(times):
                handler.reset()
                cancels.append(await one_cancel(client, handler))
                handler.reset()
                caller, worker = await one_deadline(client, handler)
                callers.append(caller)
                handlers.append(worker)
        nursery.cancel_scope.cancel()
    return {
        "cancel: caller to handler": cancels,
        "deadline: late at the caller": callers,
        "deadline: late at the handler": handlers,
    }


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's options."""
    parser.add_argument("--times", type=int, default=200)
    report.add_output(parser)


def run(options: argparse.Namespace) -> int:
    """Measure and show."""
    figures = trio.run(measure, options.times)
    table = report.Table(["milliseconds", "median", "p90", "p99", "max"])
    for name, values in figures.items():
        ordered = sorted(values)
        cells = [f"{percentile(ordered, share) * 1e3:.3f}" for share in (0.5, 0.9, 0.99, 1.0)]
        table.rows.append([name, *cells])
    report.show(options, "client_cancel", f"{options.times} of each.", [table], figures)
    return 0
