"""Replies a second of one stream, the time to its first reply, and streams that are not read.

One generator sends replies of 64 bytes to `Client.stream`, beside `request_many` with 256 requests
in flight and the server streaming of grpc.aio. Then the time to the first reply of a stream, and to
a plain reply, of the same client in turn. At last half of many streams are never read: what the
others are slowed by, and what the client's memory grows by.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import statistics
import sys
from collections import defaultdict
from contextlib import ExitStack

from harness.processes import output_of, python_module, read_line, running

from ..shared import report

MANY, STREAM = "request_many", "Client.stream"
PLAIN, GRPC = "Client.stream, plain generator", "grpc.aio, server streaming"
RATES = {  # the client and the server, by title
    MANY: ("many", "serve-replies"),
    STREAM: ("stream", "serve-streams"),
    PLAIN: ("stream", "serve-plain-streams"),
    GRPC: ("grpc", "serve-grpc"),
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's options."""
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=2.0, help="for each figure of a round (2)")
    parser.add_argument("--streams", type=int, default=500, help="read, and as many not read (500)")
    report.add_output(parser)


def measure(role: str, *numbers: object) -> dict[str, float]:
    """What a client tells."""
    command = python_module("benchmarks.shared.streaming", role, *numbers)
    told: dict[str, float] = json.loads(output_of(command))
    return told


def run(options: argparse.Namespace) -> int:
    """Measure and show."""
    titles = list(RATES)
    if importlib.util.find_spec("grpc") is None:
        print(f"left out: {GRPC}, since grpc is not installed", file=sys.stderr)
        titles.remove(GRPC)
    figures: dict[str, list[float]] = defaultdict(list)
    with ExitStack() as stack:
        ports = {}
        for title in titles:
            command = python_module("benchmarks.shared.streaming", RATES[title][1])
            ports[title] = int(read_line(stack.enter_context(running(command))))
        for number in range(options.rounds):
            print(f"round {number + 1} of {options.rounds}", file=sys.stderr)
            for title in titles:
                told = measure(RATES[title][0], ports[title], options.seconds)
                figures[title].append(told["rate"])
            told = measure("first", ports[STREAM], ports[MANY], options.seconds)
            for name, microseconds in told.items():
                figures[f"first: {name}"].append(microseconds)
            told = measure("crowd", ports[STREAM], options.streams, options.seconds)
            for name, value in told.items():
                figures[f"crowd: {name}"].append(value)
    how = f"{options.rounds} rounds of {options.seconds:g} s a figure."
    report.show(options, "streams", how, tables(titles, figures, options.streams), figures)
    return 0


def tables(titles: list[str], figures: dict[str, list[float]], streams: int) -> list[report.Table]:
    """What is shown."""

    def ratio(one: str, to: str) -> str:
        pairs = zip(figures[one], figures[to], strict=True)
        return report.spread(value / other for value, other in pairs)

    rates = report.Table(
        ["replies of 64 bytes", "replies a second", f"to {MANY}"],
        note="Medians; ratio in the same round: median (least..greatest).",
    )
    for title in titles:
        value = statistics.median(figures[title])
        rates.rows.append([title, f"{value:,.0f}", ratio(title, MANY)])
    times = report.Table(["one after the other", "microseconds", "to a plain reply"])
    for title, name in ("a plain reply", "request"), ("the first reply of a stream", "stream"):
        value = statistics.median(figures[f"first: {name}"])
        row = [title, f"{value:,.0f}", ratio(f"first: {name}", "first: request")]
        times.rows.append(row)
    grown = statistics.median(figures["crowd: grown"]) / streams / 1024
    crowd = report.Table(
        ["streams at once", "replies a second", "to those alone"],
        note=f"For each stream that is not read the client grows by {grown:.0f} KiB at most.",
    )
    for title, name in (
        (f"{streams} that are read", "alone"),
        (f"the same, beside {streams} that are not", "beside"),
    ):
        value = statistics.median(figures[f"crowd: {name}"])
        crowd.rows.append([title, f"{value:,.0f}", ratio(f"crowd: {name}", "crowd: alone")])
    return [rates, times, crowd]
