"""How exactly cancels and deadlines hold, from the client's caller to the server's handler.

    python -m benchmarks.client_cancel [--times 200]

Client and server share a process and its clock, over tcp on the loopback interface. Measured: from
a caller's cancel to the `Cancelled` in the handler; and how late after the deadline the caller has
its error, and the handler its `Cancelled`.
"""

from __future__ import annotations

import argparse
import statistics

import trio

import trioreq

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


async def main(times: int) -> None:
    """Measure, and print."""
    handler = Handler()
    rows: dict[str, list[float]] = {
        "cancel: caller to handler": [],
        "deadline: late at the caller": [],
        "deadline: late at the handler": [],
    }
    async with trio.open_nursery() as nursery:
        server = await nursery.start(trioreq.serve, handler, "tcp://127.0.0.1:0")
        async with trioreq.open_client(server.endpoints[0]) as client:
            for _ in range(times):
                handler.reset()
                rows["cancel: caller to handler"].append(await one_cancel(client, handler))
                handler.reset()
                caller, worker = await one_deadline(client, handler)
                rows["deadline: late at the caller"].append(caller)
                rows["deadline: late at the handler"].append(worker)
        nursery.cancel_scope.cancel()
    print(f"{'milliseconds':32}{'median':>8}{'p90':>8}{'max':>8}")
    for name, values in rows.items():
        p90 = statistics.quantiles(values, n=10)[-1]
        figures = (statistics.median(values), p90, max(values))
        print(f"{name:32}" + "".join(f"{value * 1e3:8.3f}" for value in figures))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--times", type=int, default=200)
    trio.run(main, parser.parse_args().times)
