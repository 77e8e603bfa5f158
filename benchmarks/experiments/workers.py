"""Worker processes: how soon one is killed with its client, and what a call costs.

    python -m benchmarks workers [--kills 300] [--mixed 200] [--others 2000]
    python -m benchmarks workers --parts mixed --mixed 10000 --others 100000 --longest 3600
    python -m benchmarks workers --parts ray [--kills 30]

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


async def all_are_alive(server: trioreq.Server, many: int) -> None:
    """Wait until all killed processes have been replaced, busy or not."""
    while server.statistics().workers.alive < many:  # noqa: ASYNC110  # no event tells
        await trio.sleep(0.005)


async def measure_kills(workers: Any, kills: int) -> dict[str, list[float]]:
    """Seconds from a client's SIGKILL to the end of its worker, and to the next one's reply.

    The workers have one slot.
    """
    deaths, slots = list[float](), list[float]()
    with reports() as receiver:
        async with (
            trioreq.open_server(work, "tcp://127.0.0.1:0", workers=workers) as server,
            trioreq.open_client(server.endpoints[0]) as other,
        ):
            for _ in range(kills):
                await spares_are_ready(server, 1 + getattr(workers, "spares", 0))
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


def shared_memory() -> set[Path]:
    """All there is on this machine, of this kind of Python's."""
    return set(Path("/dev/shm").glob("psm_*"))


class Others:
    """Requests of others, which go on while kills do.

    Args:
        many: How many there are.
    """

    def __init__(self, many: int) -> None:
        self.runs = bytearray(many)  # how often each was run
        self.answered = 0
        self.asked = 0
        self.slowest = 0.0
        self._allowed = trio.Semaphore(0)

    def allow(self, many: int) -> None:
        """Let so many more be asked."""
        for _ in range(many):
            self._allowed.release()

    async def ask(self, client: trioreq.Client) -> None:
        """Ask one after the other."""
        while self.asked < len(self.runs):
            await self._allowed.acquire()
            number, self.asked = self.asked, self.asked + 1
            start = time.monotonic()
            if await client.request(b"count %d" % number) == b"count %d" % number:
                self.answered += 1
            self.slowest = max(self.slowest, time.monotonic() - start)


async def measure_mixed(kills: int, others: int, longest: float) -> dict[str, Any]:
    """Kills among requests of others: what becomes of these, and what stays of those.

    All of it ends after so many seconds, if not before.
    """
    me = psutil.Process()
    asking, computing = Others(others), trio.Event()
    shared = shared_memory()
    done = 0
    with reports() as receiver:
        workers = trioreq.ProcessWorkers(2, spares=2)
        before = len(me.children(recursive=True))
        async with trioreq.open_server(work, "tcp://127.0.0.1:0", workers=workers) as server:
            endpoint = server.endpoints[0]

            async def kill() -> None:
                nonlocal computing
                await all_are_alive(server, 4)
                computing = trio.Event()
                async with trioreq.open_client(endpoint) as client, trio.open_nursery() as nursery:
                    nursery.start_soon(client.request, b"compute")
                    await computing.wait()
                    nursery.cancel_scope.cancel()

            async def count() -> None:
                while True:
                    await trio.lowlevel.wait_readable(receiver)
                    match receiver.recv(100).split():
                        case [b"compute", _]:
                            computing.set()
                        case [b"count", number, _]:
                            asking.runs[int(number)] += 1

            async def kept() -> tuple[int, int]:
                await spares_are_ready(server, 4)
                return me.num_fds(), resident_memory()

            async with trioreq.open_client(endpoint) as client, trio.open_nursery() as nursery:
                nursery.start_soon(count)
                for _ in range(min(kills, 20)):  # what is kept for good is allocated
                    await kill()
                marks = [await kept()]
                end = time.monotonic() + longest
                async with trio.open_nursery() as asks:
                    asks.start_soon(asking.ask, client)
                    asks.start_soon(asking.ask, client)
                    while done < kills and time.monotonic() < end:
                        asking.allow(others * (done + 1) // kills - others * done // kills)
                        await kill()
                        done += 1
                        if done % 500 == 0:
                            marks.append(await kept())
                            print(f"{done} kills, {marks[-1]}", file=sys.stderr, flush=True)
                    while asking.answered < others * done // kills:  # noqa: ASYNC110
                        await trio.sleep(0.01)
                    asks.cancel_scope.cancel()
                marks.append(await kept())
                killed, died = server.statistics().killed, server.statistics().died
                nursery.cancel_scope.cancel()
        left = len(me.children(recursive=True)) - before
    middle = marks[len(marks) // 2]
    return {
        "kills": done,
        "workers killed, with the first 20": killed,
        "workers that died": died,
        "others asked": asking.asked,
        "others answered": asking.answered,
        "others lost": asking.asked - asking.answered,
        "others run twice": sum(run > 1 for run in asking.runs),
        "slowest of others, ms": round(asking.slowest * 1000),
        "processes left": max(left - 1, 0),  # one is Python's tracker
        "shared memory left": len(shared_memory() - shared),
        "descriptors more": marks[-1][0] - marks[0][0],
        "memory more, KiB": (marks[-1][1] - marks[0][1]) // 1024,
        "of that in the second half, KiB": (marks[-1][1] - middle[1]) // 1024,
    }


async def mean(call: Callable[[], Awaitable[object]], calls: int) -> float:
    """Seconds of a call, one after the other."""
    start = time.perf_counter()
    for _ in range(calls):
        await call()
    return (time.perf_counter() - start) / calls


async def compare(
    other: Callable[[], Awaitable[object]],
    ours: Callable[[], Awaitable[object]],
    calls: int,
    rounds: int,
) -> dict[str, float]:
    """Medians of the seconds of a call in rounds that alternate, and of the ratios of a round."""
    await other()
    await ours()
    pairs = [(await mean(other, calls), await mean(ours, calls)) for _ in range(rounds)]
    return {
        "other": statistics.median(pair[0] for pair in pairs),
        "trioreq": statistics.median(pair[1] for pair in pairs),
        "ratio": statistics.median(pair[1] / pair[0] for pair in pairs),
    }


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
        for name, body, calls, times in ("empty", b"", 50, 40), ("16 MiB", os.urandom(LARGE), 3, 1):
            request = trioreq.Request(peer, (body,))

            async def bare(body: bytes = body) -> None:
                await context.run_sync(same, body, kill_on_cancel=True, limiter=limiter)

            async def ours(request: trioreq.Request = request) -> None:
                await processes.run(request)

            figures[name] = await compare(bare, ours, calls, rounds * times)
    return figures


async def measure_ray_calls(rounds: int) -> dict[str, dict[str, float]]:
    """The same of Ray's own call, which blocks, and of a server's handler."""
    import ray

    from trioreq._server.ray_tasks import open_ray_tasks

    request = trioreq.Request(trioreq.Peer(1, "127.0.0.1", "DEALER"), (b"",))
    async with open_ray_tasks(work, trioreq.RayWorkers(2)) as tasks:
        remote = ray.remote(max_retries=0)(same)

        async def bare() -> None:
            ray.get(remote.remote(b""))

        async def ours() -> None:
            await tasks.run(request)

        return {"empty": await compare(bare, ours, 20, rounds * 10)}


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


PARTS = ("kills", "mixed", "calls", "throughput", "ray")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's options."""
    parser.add_argument(
        "--parts", nargs="+", choices=PARTS, default=PARTS[:-1], help="which (all but ray)"
    )
    parser.add_argument("--kills", type=int, default=300, help="clients that are killed (300)")
    parser.add_argument("--mixed", type=int, default=200, help="kills among requests (200)")
    parser.add_argument("--others", type=int, default=2000, help="requests of others (2000)")
    parser.add_argument("--longest", type=float, default=3600, help="seconds of these (3600)")
    parser.add_argument("--rounds", type=int, default=5, help="for calls and throughput (5)")
    parser.add_argument("--seconds", type=float, default=2.0, help="of each throughput (2)")
    report.add_output(parser)


def run(options: argparse.Namespace) -> int:
    """Measure the parts."""
    figures: dict[str, Any] = {}
    tables = []
    for part in options.parts:
        print(part, file=sys.stderr)
        match part:
            case "kills":
                workers = trioreq.ProcessWorkers(1, spares=1)
                figures[part] = trio.run(measure_kills, workers, options.kills)
                tables.append(_table_of_kills(figures[part]))
            case "mixed":
                args = options.mixed, options.others, options.longest
                figures[part] = trio.run(measure_mixed, *args)
                table = report.Table(["kills among requests", "number"], title="Others")
                table.rows += [[name, str(value)] for name, value in figures[part].items()]
                tables.append(table)
            case "calls":
                figures[part] = trio.run(measure_calls, options.rounds)
                tables.append(_table_of_calls(figures[part]))
            case "throughput":
                figures[part] = trio.run(measure_throughput, options.rounds, options.seconds)
                tables.append(_table_of_throughput(figures[part]))
            case "ray":
                kills = trio.run(measure_kills, trioreq.RayWorkers(1), options.kills)
                calls = trio.run(measure_ray_calls, options.rounds)
                figures[part] = {"kills": kills, "calls": calls}
                tables += [_table_of_kills(kills), _table_of_calls(calls, "ray.get")]
    report.show(options, "workers", f"{options.kills} kills.", tables, figures)
    return 0


def _table_of_kills(kills: dict[str, list[float]]) -> report.Table:
    table = report.Table(["milliseconds", "n", "median", "p99", "max"], title="Kills")
    for title, name in ("worker is dead", "death"), ("a spare has answered the next", "slot"):
        ordered = sorted(kills[name])
        values = (percentile(ordered, share) * 1000 for share in (0.5, 0.99, 1))
        table.rows.append([title, str(len(ordered)), *(f"{value:.2f}" for value in values)])
    return table


def _table_of_calls(
    calls: dict[str, dict[str, float]], other: str = "trio-parallel"
) -> report.Table:
    head = ["a call", f"{other}, us", "trioreq, us", "ratio"]
    table = report.Table(head, title="Calls")
    for name, row in calls.items():
        micros = (f"{row[of] * 1e6:,.0f}" for of in ("other", "trioreq"))
        table.rows.append([name, *micros, f"{row['ratio']:.2f}"])
    return table


def _table_of_throughput(rates: dict[str, dict[str, float]]) -> report.Table:
    head = ["throughput", "other", "processes", "ratio"]
    table = report.Table(head, title="Requests a second")
    for name, row in rates.items():
        numbers = (f"{row[of]:,.0f}" for of in ("other", "processes"))
        table.rows.append([name, *numbers, f"{row['ratio']:.2f}"])
    return table
