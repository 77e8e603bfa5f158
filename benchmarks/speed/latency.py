"""How long a request takes at a fixed rate, whatever the server does: an open loop over tcp.

Requests fall due at random, at the same moments in each run (a Poisson process), and go to 64
clients in turn. A latency counts from when its request was due. So a server that stalls for 10 ms
is charged with the wait of all requests that fell due meanwhile, and not with that of one only, as
in a closed loop.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from collections import defaultdict

from harness.generator import Load, Shape

from ..shared import report
from ..shared.load import drive
from ..shared.servers import PROXY, RAW, TRIOREQ, ZMQ_ASYNCIO, serving

SERVERS = {
    RAW: (RAW, "echo"),
    PROXY: (PROXY, "plain-echo"),
    ZMQ_ASYNCIO: (ZMQ_ASYNCIO, "echo"),
    "trioreq async": (TRIOREQ, "echo"),
    "trioreq plain": (TRIOREQ, "plain-echo"),
}  # with their handlers, by title
CLIENTS = 64
SHARE = 0.4  # of what raw can do
FIXED = 2000.0  # requests a second
SHOWN = {"p50": "p50", "p90": "p90", "p99": "p99", "p99.9": "p999", "max": "max"}

Figures = dict[float, dict[str, list[Load]]]  # by rate and server, one for each round


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's options."""
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=2.0, help="for each figure of a round (2)")
    parser.add_argument(
        "--rate",
        type=float,
        nargs="+",
        help=f"requests a second ({FIXED:.0f}, and {SHARE:.0%}% of what raw can do here)",
    )
    parser.add_argument("--only", nargs="+", choices=SERVERS, default=[*SERVERS], metavar="NAME")
    report.add_output(parser)


def capacity(seconds: float) -> float:
    """What raw can do in a closed loop with as many clients, in requests a second."""
    with serving(RAW) as server:
        return drive(server, Shape(clients=CLIENTS, seconds=seconds)).rps


def measure(rates: list[float], options: argparse.Namespace) -> Figures:
    """All rounds."""
    figures: Figures = {rate: defaultdict(list) for rate in rates}
    for number in range(options.rounds):
        for rate in rates:
            print(f"round {number + 1} of {options.rounds}: {rate:,.0f} a second", file=sys.stderr)
            shape = Shape(mode="open", clients=CLIENTS, rate=rate, seconds=options.seconds)
            for title in options.only:
                with serving(*SERVERS[title]) as server:
                    figures[rate][title].append(drive(server, shape))
    return figures


def table(rate: float, loads: dict[str, list[Load]]) -> report.Table:
    """A row for each server, with the medians of the rounds."""
    shown = report.Table(
        ["milliseconds", *SHOWN, "not answered"],
        title=f"{rate:,.0f} requests a second",
        note="Medians of the rounds; `max` is the greatest of all. Not answered: wrong replies, "
        "and replies that came more than 5 seconds after the end.",
    )
    for name, of_rounds in loads.items():
        cells = []
        for key in SHOWN.values():
            choose = max if key == "max" else statistics.median
            cells.append(f"{choose(getattr(load, key) for load in of_rounds) / 1000:.3f}")
        failed = sum(load.lost + load.errors for load in of_rounds)
        shown.rows.append([name, *cells, f"{failed:,}"])
    return shown


def run(options: argparse.Namespace) -> int:
    """Measure and show."""
    rates = options.rate or [FIXED, round(SHARE * capacity(options.seconds), -3)]
    figures = measure(rates, options)
    told = {
        rate: {name: [vars(load) for load in of_rounds] for name, of_rounds in loads.items()}
        for rate, loads in figures.items()
    }
    how = f"{options.rounds} rounds of {options.seconds:g} s a figure, {CLIENTS} clients."
    report.show(options, "latency", how, [table(*item) for item in figures.items()], told)
    return 0
