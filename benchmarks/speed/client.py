"""Requests a second of one Python client with 256 requests in flight over one connection.

Each figure is a ratio to the C generator that drives the raw server in the same way, in the same
round. `open_client` adds a frame to the envelope, so its bare server is the one that receives
messages of any number of frames, `raw-multipart`.
"""

from __future__ import annotations

import argparse
import importlib.util
import statistics
import sys
from collections import defaultdict
from dataclasses import dataclass

from harness.generator import Load, Shape, generator

from ..shared import report
from ..shared.load import drive, drive_python
from ..shared.servers import MULTIPART, RAW, TRIOREQ, serving

IN_FLIGHT = 256


@dataclass(frozen=True)
class Pair:
    """A client and the server that it asks."""

    client: str  # a kind of `clients.py`, or empty for `load.c`
    server: str
    title: str
    needs: str = "trioreq"  # a module


REFERENCE = Pair("", RAW, "load.c to raw")
PAIRS = [
    REFERENCE,
    Pair("", MULTIPART, "load.c to raw-multipart"),
    Pair("", TRIOREQ, "load.c to trioreq"),
    Pair("trioreq", TRIOREQ, "open_client to trioreq"),
    Pair("trioreq", MULTIPART, "open_client to raw-multipart"),
    Pair("trioreq-many", TRIOREQ, "request_many to trioreq"),
    Pair("trioreq-many", MULTIPART, "request_many to raw-multipart"),
    Pair("", "pynng", "load.c to pynng", "pynng"),
    Pair("sp", "pynng", "pynng to pynng", "pynng"),
]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's options."""
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=2.0, help="for each figure of a round (2)")
    titles = [pair.title for pair in PAIRS]
    parser.add_argument("--only", nargs="+", choices=titles, default=titles, metavar="PAIR")
    report.add_output(parser)


def load(pair: Pair, seconds: float) -> Load:
    """One pair."""
    shape = Shape(clients=1, in_flight=IN_FLIGHT, seconds=seconds)
    with serving(pair.server) as server:
        if pair.client:
            return drive_python(pair.client, server.port, shape)
        return drive(server, shape)


def run(options: argparse.Namespace) -> int:
    """Measure and show."""
    generator()  # the reference needs it
    wanted = [pair for pair in PAIRS if pair is REFERENCE or pair.title in options.only]
    pairs = [pair for pair in wanted if importlib.util.find_spec(pair.needs)]
    for pair in wanted:
        if pair not in pairs:
            print(f"left out: {pair.title}, since {pair.needs} is not installed", file=sys.stderr)
    loads: dict[str, list[Load]] = defaultdict(list)
    for number in range(options.rounds):
        print(f"round {number + 1} of {options.rounds}", file=sys.stderr)
        for pair in pairs:
            loads[pair.title].append(load(pair, options.seconds))
    table = report.Table(
        ["client and server", "requests a second", "ratio"],
        note=f"One connection with {IN_FLIGHT} requests in flight. Medians; ratio to "
        f"{REFERENCE.title} in the same round: median (least..greatest).",
    )
    for title, of_rounds in loads.items():
        references = zip(of_rounds, loads[REFERENCE.title], strict=True)
        ratio = report.spread(load.rps / reference.rps for load, reference in references)
        faults = " !" if any(load.faults() for load in of_rounds) else ""
        rps = statistics.median(load.rps for load in of_rounds)
        table.rows.append([title, f"{rps:,.0f}", ratio + faults])
    told = {title: [vars(load) for load in of_rounds] for title, of_rounds in loads.items()}
    how = f"{options.rounds} rounds of {options.seconds:g} s a figure."
    report.show(options, "client", how, [table], told)
    return 0
