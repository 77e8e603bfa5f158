"""`trioreq-client bench`: a closed loop of requests, timed one by one."""

from __future__ import annotations

import json
import math
import sys
from array import array
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import click
import trio
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

import trioreq

PERCENTILES = (50.0, 90.0, 99.0, 99.9)
DURATION = 5.0  # seconds, if nothing else is said


@dataclass(frozen=True)
class Load:
    """What is to be done."""

    endpoint: str
    clients: int
    pipeline: int
    requests: int | None
    duration: float | None
    size: int
    timeout: float
    connect_timeout: float
    curve: trioreq.CurveClient | None


@dataclass
class Result:
    """What came of it."""

    seconds: float = 0.0
    took: array[float] = field(default_factory=lambda: array("d"))
    errors: Counter[str] = field(default_factory=Counter)

    def figures(self) -> dict[str, Any]:
        """All of it in numbers: rates a second, times in milliseconds."""
        ordered = sorted(self.took)
        return {
            "requests": len(self.took) + self.errors.total(),
            "seconds": self.seconds,
            "replies_per_second": len(self.took) / self.seconds if self.seconds else 0.0,
            "latency_ms": {
                "min": percentile(ordered, 0) * 1e3,
                **{f"p{cut:g}": percentile(ordered, cut) * 1e3 for cut in PERCENTILES},
                "max": percentile(ordered, 100) * 1e3,
            },
            "errors": dict(self.errors),
        }


def percentile(ordered: list[float], cut: float) -> float:
    """The exact one, by nearest rank; nan of nothing."""
    if not ordered:
        return math.nan
    return ordered[max(0, math.ceil(len(ordered) * cut / 100) - 1)]


async def run_bench(load: Load, *, as_json: bool) -> int:
    """Make the load, and print what came of it. Returns 1 if there was any error."""
    result = Result()
    console = Console(stderr=True)
    columns = (TextColumn("{task.completed:,.0f} replies"), BarColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, disable=not console.is_terminal) as progress:
        bar = progress.add_task("bench", total=load.requests)
        await make_load(load, result, lambda done: progress.update(bar, completed=done))
    figures = result.figures()
    if as_json:
        told = {name: value for name, value in vars(load).items() if name != "curve"}
        shown = {"load": told | {"curve": load.curve is not None}, **figures}
        click.echo(json.dumps(without_nan(shown)))
    else:
        print_table(load, figures)
    return 1 if result.errors else 0


async def make_load(load: Load, result: Result, tell: Callable[[int], object]) -> None:
    """Ask with all clients until the number or the time is reached."""
    body = b"x" * load.size
    left = load.requests if load.requests is not None else math.inf
    duration = load.duration
    if duration is None and load.requests is None:
        duration = DURATION

    async def ask(client: trioreq.Client) -> None:
        nonlocal left
        while left > 0:
            left -= 1
            begun = trio.current_time()
            try:
                await client.request_multipart([body])
            except trioreq.ReplyError as error:
                result.errors[error.code] += 1
            except trioreq.TrioreqError as error:
                result.errors[type(error).__name__] += 1
            else:
                result.took.append(trio.current_time() - begun)

    async def use(client: trioreq.Client) -> None:
        async with trio.open_nursery() as nursery:
            for _ in range(load.pipeline):
                nursery.start_soon(ask, client)

    async def connect(task_status: trio.TaskStatus[trioreq.Client]) -> None:
        async with trioreq.open_client(
            load.endpoint,
            timeout=load.timeout,
            connect_timeout=load.connect_timeout,
            curve=load.curve,
        ) as client:
            await client.request_multipart([body])  # is connected now, or says why not
            task_status.started(client)
            await trio.sleep_forever()

    async def show() -> None:
        while True:
            await trio.sleep(0.1)
            tell(len(result.took))

    async with trio.open_nursery() as connections:
        clients = [await connections.start(connect) for _ in range(load.clients)]
        connections.start_soon(show)
        begun = trio.current_time()
        with trio.move_on_after(math.inf if duration is None else duration):
            async with trio.open_nursery() as nursery:
                for client in clients:
                    nursery.start_soon(use, client)
        result.seconds = trio.current_time() - begun
        connections.cancel_scope.cancel()


def without_nan(value: object) -> object:
    """JSON has no nan: what there is no figure for is null."""
    if isinstance(value, dict):
        return {key: without_nan(part) for key, part in value.items()}
    return None if isinstance(value, float) and math.isnan(value) else value


def print_table(load: Load, figures: dict[str, Any]) -> None:
    """For people."""
    table = Table(show_header=False, box=None)
    table.add_column(justify="left")
    table.add_column(justify="right")
    table.add_row("requests", f"{figures['requests']:,}")
    table.add_row("seconds", f"{figures['seconds']:.3f}")
    table.add_row("replies a second", f"{figures['replies_per_second']:,.0f}")
    for name, value in figures["latency_ms"].items():
        table.add_row(f"latency {name}", "-" if math.isnan(value) else f"{value:.3f} ms")
    for name, count in figures["errors"].items():
        table.add_row(f"error {name}", f"{count:,}")
    console = Console(file=sys.stdout)
    console.print(
        f"{load.endpoint}: {load.clients} clients, {load.pipeline} in flight on each, "
        f"{load.size} bytes",
        highlight=False,
    )
    console.print(table)
