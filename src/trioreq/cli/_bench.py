"""`trioreq-client bench`: a closed loop of requests, timed one by one."""

from __future__ import annotations

import json
import math
import os
from array import array
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import click
import trio

import trioreq

from ._output import colours_wanted
from ._streams import ERRORS, in_thread, run_while_read

PERCENTILES = (50.0, 90.0, 99.0, 99.9)
DURATION = 5.0  # seconds, by default
BAR = 30  # characters
LINE = 67  # characters of a line that shows the progress


@dataclass(frozen=True)
class Load:
    """The options of `bench`."""

    endpoint: str
    clients: int
    pipeline: int
    requests: int | None
    duration: float | None
    body: bytes
    timeout: float
    connect_timeout: float
    curve: trioreq.CurveClient | None

    @property
    def seconds(self) -> float:
        """Seconds that it may take."""
        if self.duration is None:
            return DURATION if self.requests is None else math.inf
        return self.duration


@dataclass
class Result:
    """The results."""

    seconds: float = 0.0
    took: array[float] = field(default_factory=lambda: array("d"))
    errors: Counter[str] = field(default_factory=Counter)

    def figures(self) -> dict[str, Any]:
        """The figures: rates per second, times in milliseconds."""
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
    """The exact percentile, by nearest rank; nan of an empty list."""
    if not ordered:
        return math.nan
    return ordered[max(0, math.ceil(len(ordered) * cut / 100) - 1)]


def run_bench(load: Load, *, as_json: bool) -> int:
    """Make the load, and print the results. Returns 1 if there was any error."""
    result = Result()
    if os.isatty(ERRORS):
        try:
            run_while_read(partial(make_load, load, result, show_progress))
        finally:
            click.echo("\r" + " " * LINE + "\r", nl=False, err=True)
    else:
        run_while_read(partial(make_load, load, result, lambda *_: None))
    figures = result.figures()
    if as_json:
        options = vars(load) | {"size": len(load.body), "curve": load.curve is not None}
        del options["body"]
        shown = {"load": options, **figures}
        click.echo(json.dumps(without_nan(shown)))
    else:
        click.echo(table(load, figures))
    return 1 if result.errors else 0


async def make_load(load: Load, result: Result, show: Callable[[Load, int, float], object]) -> None:
    """Send requests with all clients until the number or the time is reached; show progress."""
    left = load.requests if load.requests is not None else math.inf

    async def ask(client: trioreq.Client) -> None:
        nonlocal left
        while left > 0:
            left -= 1
            begun = trio.current_time()
            try:
                await client.request_multipart([load.body])
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
            await client.request_multipart([load.body])  # connects, or raises the reason
            task_status.started(client)
            await trio.sleep_forever()

    async def tell(begun: float) -> None:
        while True:
            await in_thread(show, load, len(result.took), trio.current_time() - begun)
            await trio.sleep(0.1)

    async with trio.open_nursery() as connections:
        clients = [await connections.start(connect) for _ in range(load.clients)]
        begun = trio.current_time()
        connections.start_soon(tell, begun)
        with trio.move_on_after(load.seconds):
            async with trio.open_nursery() as nursery:
                for client in clients:
                    nursery.start_soon(use, client)
        result.seconds = trio.current_time() - begun
        connections.cancel_scope.cancel()


def without_nan(value: object) -> object:
    """Replace nan by null: JSON does not have nan."""
    if isinstance(value, dict):
        return {key: without_nan(part) for key, part in value.items()}
    return None if isinstance(value, float) and math.isnan(value) else value


def table(load: Load, figures: dict[str, Any]) -> str:
    """The figures as a table for humans."""
    rows = [
        ("requests", f"{figures['requests']:,}"),
        ("seconds", f"{figures['seconds']:.3f}"),
        ("replies a second", f"{figures['replies_per_second']:,.0f}"),
    ]
    for name, value in figures["latency_ms"].items():
        rows.append((f"latency {name}", "-" if math.isnan(value) else f"{value:.3f} ms"))
    for name, count in figures["errors"].items():
        rows.append((f"error {name}", f"{count:,}"))
    names, values = (max(map(len, column)) for column in zip(*rows, strict=True))
    head = (
        f"{load.endpoint}: {load.clients} clients, {load.pipeline} in flight on each, "
        f"{len(load.body)} bytes"
    )
    return "\n".join([head, *(f" {name:<{names}}  {value:>{values}}" for name, value in rows)])


def show_progress(load: Load, replies: int, seconds: float) -> None:
    """Show the progress in the last line of the terminal."""
    share = min(max(replies / (load.requests or math.inf), seconds / load.seconds), 1.0)
    done = round(share * BAR)
    bar = "#" * done, "-" * (BAR - done)
    if colours_wanted():
        bar = click.style(bar[0], fg="magenta"), bar[1]
    left = f"{seconds / share - seconds:,.0f} s left" if share else ""
    click.echo(f"\r{replies:>13,} replies {''.join(bar)} {left:<14}", nl=False, err=True)
