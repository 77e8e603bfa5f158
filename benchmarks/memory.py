"""What an idle client costs the server: Python's memory, and the process's.

Clients connect, ask once, and stay. Python's part is what tracemalloc counts; the whole is the
growth of the process's resident memory, after what is free was given back to the system. Each is
read in a server of its own, since tracing needs memory too. One client is there before the first
reading, so that what is made once is not counted.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections import defaultdict

from . import report
from .load import holding
from .servers import ASYNC, RAW, serving

SERVERS = [RAW, ASYNC]
SPARE_FILES = 200
SETTLE = 0.1  # seconds for the server to end what it does for the last request
KINDS = ("python", "resident")

Figures = dict[tuple[int, str, str], list[float]]  # by clients, server and kind: bytes a client


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's options."""
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--clients", type=int, nargs="+", default=[1000, 10_000])
    report.add_output(parser)


def bytes_a_client(name: str, clients: int, kind: str) -> float:
    """The growth of a server by its clients."""
    files = clients + SPARE_FILES
    with serving(name, files=files, trace=kind == "python") as server, holding(server, 1):
        time.sleep(SETTLE)
        before = server.memory()[kind]
        with holding(server, clients):
            time.sleep(SETTLE)
            return (server.memory()[kind] - before) / clients


def table(figures: Figures, clients: list[int]) -> report.Table:
    """A row for each number of clients and server."""
    shown = report.Table(
        ["clients, server", "Python, KiB a client", "resident, KiB a client", "ratio to raw"],
        note="Median (least..greatest). The ratio is of the medians of resident memory.",
    )
    for count in clients:
        base = statistics.median(figures[count, RAW, "resident"])
        for name in SERVERS:
            cells = [
                report.spread(value / 1024 for value in figures[count, name, kind])
                for kind in KINDS
            ]
            ratio = statistics.median(figures[count, name, "resident"]) / base
            shown.rows.append([f"{count:,}, {name}", *cells, f"{ratio:.2f}"])
    return shown


def run(options: argparse.Namespace) -> int:
    """Measure and show."""
    figures: Figures = defaultdict(list)
    for number in range(options.rounds):
        print(f"round {number + 1} of {options.rounds}", file=sys.stderr)
        for count in options.clients:
            for name in SERVERS:
                for kind in KINDS:
                    figures[count, name, kind].append(bytes_a_client(name, count, kind))
    told = [
        {"clients": count, "server": name, "kind": kind, "bytes a client": values}
        for (count, name, kind), values in figures.items()
    ]
    how = f"{options.rounds} rounds."
    report.show(options, "memory", how, [table(figures, options.clients)], told)
    return 0
