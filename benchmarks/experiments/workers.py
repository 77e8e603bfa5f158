"""Worker processes: how soon one is killed with its client, and what a call costs.

    python -m benchmarks workers [--kills 300] [--mixed 200] [--others 2000]

A client, a process of its own, asks for a power, which is computed in one call into C, and is
killed. The end of its worker is seen by a pidfd. Another client's request has waited for the slot
meanwhile, and a spare answers it. Then kills are mixed with requests of others, each of which is
counted where it runs. Last, calls and throughput are compared with trio-parallel alone, with
`concurrent.futures`, and with threads.
"""

from __future__ import annotations

import argparse
import os
import socket
import statistics
import sys
import tempfile
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import psutil
import trio
import trio_parallel

import trioreq
from harness.clients import open_client_process
from harness.latency import percentile
from harness.memory import resident_memory

from ..shared import report

EXPONENT = 10**8  # of a power that takes minutes
REPORTS = "TRIOREQ_BENCHMARK_REPORTS"
LARGE = 16 * 1024 * 1024  # bytes
CLIENTS = 64
BUSY = 0.005  # seconds of pure Python


def tell(text: str) -> None:
    """Report to the parent which process does what."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender:
        sender.sendto(f"{text} {os.getpid()}".encode(), os.environ[REPORTS])


def work(request: trioreq.Request) -> bytes:
    """The handler."""
    match request.body[:20].split(b" "):
        case [b"compute"]:
            tell("compute")
            pow(7, EXPONENT)
        case [b"count", number]:
            tell(f"count {number.decode()}")
        case [b"busy"]:
            spin(BUSY)
    return request.body


def spin(seconds: float) -> None:
    """Use the processor for so long, in Python."""
    end = time.thread_time() + seconds
    while time.thread_time() < end:
        pass


def same(body: bytes) -> bytes:
    """What is called by others than trioreq."""
    return body


@contextmanager
def reports() -> Iterator[socket.socket]:
    """Where workers report what they do."""
    with (
        tempfile.TemporaryDirectory() as folder,
        socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as receiver,
    ):
        os.environ[REPORTS] = str(Path(folder) / "reports")
        receiver.bind(os.environ[REPORTS])
        receiver.setblocking(False)
        yield receiver


async def gone(pid: int) -> float:
    """Wait for the end of a process; returns when it was seen."""
    try:
        descriptor = os.pidfd_open(pid)
    except ProcessLookupError:
        return time.monotonic()
    try:
        await trio.lowlevel.wait_readable(descriptor)
        return time.monotonic()
    finally:
        os.close(descriptor)


async def spares_are_ready(server: trioreq.Server, many: int) -> None:
    """Wait until all killed processes have been replaced."""
    while server.statistics().workers.spare < many:  # noqa: ASYNC110  # no event tells
        await trio.sleep(0.005)


async def measure_kills(kills: int) -> dict[str, list[float]]:
    """Seconds from a client's SIGKILL to the end of its worker, and to the next one's reply."""
    deaths, slots = list[float](), list[float]()
    with reports() as receiver:
        workers = trioreq.ProcessWorkers(1, spares=1)
        async with (
            trioreq.open_server(work, "tcp://127.0.0.1:0", workers=workers) as server,
            trioreq.open_client(server.endpoints[0]) as other,
        ):
            for _ in range(kills):
                await spares_are_ready(server, 2)
                async with open_client_process() as client, trio.open_nursery() as nursery:
                    await client.connect(server.endpoints[0])
                    await client.send("compute")
                    await trio.lowlevel.wait_readable(receiver)
                    pid = int(receiver.recv(100).split()[1])

                    async def next_one() -> None:
                        await other.request(b"next")
                        slots.append(time.monotonic())

                    nursery.start_soon(next_one)
                    while server.statistics().waiting < 1:
                        await trio.lowlevel.checkpoint()
                    start = time.monotonic()
                    client.kill()
                    deaths.append(await gone(pid) - start)
                slots[-1] -= start
    return {"death": deaths, "slot": slots}


async def measure_mixed(kills: int, others: int) -> dict[str, Any]:
    """Kills among requests of others: what becomes of these, and what stays of those."""
    me = psutil.Process()
    counts, outcomes, computing = Counter[str](), Counter[str](), trio.Event()
    with reports() as receiver:
        workers = trioreq.ProcessWorkers(2, spares=2)
        before = descriptors = memory = 0
        before = len(me.children(recursive=True))
        async with trioreq.open_server(work, "tcp://127.0.0.1:0", workers=workers) as server:
            endpoint = server.endpoints[0]

            async def ask(client: trioreq.Client, numbers: Iterator[int]) -> None:
                for number in numbers:
                    reply = await client.request(b"count %d" % number)
                    outcomes["answered" if reply == b"count %d" % number else "wrong"] += 1

            async def kill() -> None:
                nonlocal computing
                computing = trio.Event()
                async with trioreq.open_client(endpoint) as client, trio.open_nursery() as asking:
                    asking.start_soon(client.request, b"compute")
                    await computing.wait()
                    asking.cancel_scope.cancel()

            async def count() -> None:
                while True:
                    await trio.lowlevel.wait_readable(receiver)
                    text, _, _ = receiver.recv(100).decode().rpartition(" ")
                    counts[text] += 1
                    if text == "compute":
                        computing.set()

            async with trioreq.open_client(endpoint) as client, trio.open_nursery() as nursery:
                nursery.start_soon(count)
                await kill()
                await spares_are_ready(server, 4)
                descriptors, memory = me.num_fds(), resident_memory()
                numbers = iter(range(others))
                async with trio.open_nursery() as asking:
                    asking.start_soon(ask, client, numbers)
                    for _ in range(kills):
                        await kill()
                await spares_are_ready(server, 4)
                descriptors, memory = me.num_fds() - descriptors, resident_memory() - memory
                killed = server.statistics().killed
                nursery.cancel_scope.cancel()
        left = len(me.children(recursive=True)) - before
    runs = [counts[f"count {number}"] for number in range(others)]
    return {
        "kills": killed,
        "others answered": outcomes["answered"],
        "others lost": others - outcomes["answered"],
        "others run twice": sum(run > 1 for run in runs),
        "processes left": max(left - 1, 0),  # one is Python's tracker
        "descriptors more": descriptors,
        "memory more, KiB": memory // 1024,
    }


async def mean(call: Callable[[], Awaitable[object]], calls: int) -> float:
    """Seconds of a call, one after the other."""
    start = time.perf_counter()
    for _ in range(calls):
        await call()
    return (time.perf_counter() - start) / calls


async def measure_calls(rounds: int) -> dict[str, dict[str, float]]:
    """Seconds of a call in one process: of trio-parallel alone, and of a server's handler."""
    from trioreq._server.processes import open_processes

    peer = trioreq.Peer(1, "127.0.0.1", "DEALER")
    limiter = trio.CapacityLimiter(1)
    figures = dict[str, dict[str, float]]()
    async with (
        trio_parallel.open_worker_context() as context,
        open_processes(work, trioreq.ProcessWorkers(1, spares=0)) as processes,
    ):
        for name, body, calls in ("empty", b"", 300), ("16 MiB", os.urandom(LARGE), 3):
            request = trioreq.Request(peer, (body,))

            async def bare(body: bytes = body) -> None:
                await context.run_sync(same, body, kill_on_cancel=True, limiter=limiter)

            async def ours(request: trioreq.Request = request) -> None:
                await processes.run(request)

            await bare()
            pairs = [(await mean(bare, calls), await mean(ours, calls)) for _ in range(rounds)]
            figures[name] = {
                "trio-parallel": statistics.median(pair[0] for pair in pairs),
                "trioreq": statistics.median(pair[1] for pair in pairs),
                "ratio": statistics.median(pair[1] / pair[0] for pair in pairs),
            }
    return figures


class Executor:
    """An async handler that calls a `ProcessPoolExecutor`."""

    def __init__(self, executor: ProcessPoolExecutor, function: Callable[[bytes], bytes]) -> None:
        self._executor = executor
        self._function = function

    async def __call__(self, request: trioreq.Request) -> bytes:
        """Wait for the call."""
        done, token = trio.Event(), trio.lowlevel.current_trio_token()
        future: Future[bytes] = self._executor.submit(self._function, request.body)
        future.add_done_callback(lambda _: token.run_sync_soon(done.set))
        await done.wait()
        return future.result()


@asynccontextmanager
async def serving(kind: str) -> AsyncIterator[str]:
    """A server with two workers of a kind; yields its address."""
    handler: Any = work
    workers: Any = trioreq.ThreadWorkers(2)
    async with AsyncExitStack() as stack:
        if kind == "processes":
            workers = trioreq.ProcessWorkers(2)
        elif kind == "executor":
            executor = stack.enter_context(ProcessPoolExecutor(2, mp_context=get_context("spawn")))
            handler = Executor(executor, same)
        server = await stack.enter_async_context(
            trioreq.open_server(handler, "tcp://127.0.0.1:0", workers=workers)
        )
        yield server.endpoints[0]


async def throughput(kind: str, body: bytes, seconds: float) -> float:
    """Requests a second of 64 clients that ask one after the other."""
    done = 0
    async with serving(kind) as endpoint, AsyncExitStack() as stack:
        clients = [
            await stack.enter_async_context(trioreq.open_client(endpoint)) for _ in range(CLIENTS)
        ]
        for client in clients:
            await client.request(body)
        start = time.perf_counter()
        with trio.move_on_after(seconds):
            async with trio.open_nursery() as nursery:

                async def ask(client: trioreq.Client) -> None:
                    nonlocal done
                    while True:
                        await client.request(body)
                        done += 1

                for client in clients:
                    nursery.start_soon(ask, client)
        return done / (time.perf_counter() - start)


async def measure_throughput(rounds: int, seconds: float) -> dict[str, dict[str, float]]:
    """Requests a second, and ratios within each round."""
    figures = dict[str, dict[str, float]]()
    for name, body, other in ("empty", b"", "executor"), ("5 ms of Python", b"busy", "threads"):
        pairs = [
            (await throughput(other, body, seconds), await throughput("processes", body, seconds))
            for _ in range(rounds)
        ]
        figures[f"{name}, to {other}"] = {
            "other": statistics.median(pair[0] for pair in pairs),
            "processes": statistics.median(pair[1] for pair in pairs),
            "ratio": statistics.median(pair[1] / pair[0] for pair in pairs),
        }
    return figures


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's options."""
    parser.add_argument("--kills", type=int, default=300, help="clients that are killed (300)")
    parser.add_argument("--mixed", type=int, default=200, help="kills among requests (200)")
    parser.add_argument("--others", type=int, default=2000, help="requests of others (2000)")
    parser.add_argument("--rounds", type=int, default=5, help="for calls and throughput (5)")
    parser.add_argument("--seconds", type=float, default=2.0, help="of each throughput (2)")
    report.add_output(parser)


def run(options: argparse.Namespace) -> int:
    """Measure all."""
    figures: dict[str, Any] = {}
    times = report.Table(["milliseconds", "n", "median", "p99", "max"], title="Kills")
    mixed = report.Table(["kills among requests", "number"], title="Others")
    calls = report.Table(["a call", "trio-parallel, us", "trioreq, us", "ratio"], title="Calls")
    rates = report.Table(["throughput", "other", "processes", "ratio"], title="Requests a second")
    print("kills", file=sys.stderr)
    kills = figures["kills"] = trio.run(measure_kills, options.kills)
    for title, name in ("worker is dead", "death"), ("a spare has answered the next", "slot"):
        ordered = sorted(kills[name])
        values = (percentile(ordered, share) * 1000 for share in (0.5, 0.99, 1))
        times.rows.append([title, str(len(ordered)), *(f"{value:.2f}" for value in values)])
    print("kills among requests", file=sys.stderr)
    figures["mixed"] = trio.run(measure_mixed, options.mixed, options.others)
    mixed.rows += [[name, str(value)] for name, value in figures["mixed"].items()]
    print("calls", file=sys.stderr)
    figures["calls"] = trio.run(measure_calls, options.rounds)
    for name, row in figures["calls"].items():
        micros = (f"{row[of] * 1e6:,.0f}" for of in ("trio-parallel", "trioreq"))
        calls.rows.append([name, *micros, f"{row['ratio']:.2f}"])
    print("throughput", file=sys.stderr)
    figures["throughput"] = trio.run(measure_throughput, options.rounds, options.seconds)
    for name, row in figures["throughput"].items():
        numbers = (f"{row[of]:,.0f}" for of in ("other", "processes"))
        rates.rows.append([name, *numbers, f"{row['ratio']:.2f}"])
    report.show(
        options, "workers", f"{options.kills} kills.", [times, mixed, calls, rates], figures
    )
    return 0
