"""What an idle client costs the server: Python's objects, and the process's memory.

Clients connect, ask once, and stay. Python's part is what tracemalloc counts; the whole is the
growth of the process's resident memory, after what is free was given back to the system. Each is
read in a server of its own, since tracing needs memory too. Some clients are there before the first
reading, so that what is made once is not counted, also for requests at the same time. trioreq is
measured with a handler that never waits, and with one that has waited once.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections import defaultdict

from ..shared import report
from ..shared.load import holding
from ..shared.servers import RAW, TRIOREQ, serving

SERVERS = {
    "raw": (RAW, "echo"),
    "trioreq": (TRIOREQ, "echo"),
    "trioreq, the handler waits once": (TRIOREQ, "checkpoint"),
}  # with their handlers, by title
FIRST = 64  # clients, twice as many as connect at the same time
SPARE_FILES = 200
SETTLE = 0.1  # seconds for the server to end what it does for the last request
KINDS = ("python", "resident")

Figures = dict[tuple[int, str, str], list[float]]  # by clients, title and kind: bytes a client


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's options."""
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--clients", type=int, nargs="+", default=[1000, 10_000])
    report.add_output(parser)


def bytes_a_client(title: str, clients: int, kind: str) -> float:
    """The growth of a server by its clients."""
    files = clients + SPARE_FILES
    name, handler = SERVERS[title]
    with (
        serving(name, handler, files=files, trace=kind == "python") as server,
        holding(server.port, FIRST),
    ):
        time.sleep(SETTLE)
        before = server.memory()[kind]
        with holding(server.port, clients):
            time.sleep(SETTLE)
            return (server.memory()[kind] - before) / clients


def table(figures: Figures, clients: list[int]) -> report.Table:
    """A row for each number of clients and server."""
    shown = report.Table(
        ["clients, server", "Python's objects, KiB a client", "resident, KiB a client", "to raw"],
        note="Median (least..greatest). The ratio to raw is of the medians of resident memory.",
    )
    for count in clients:
        base = statistics.median(figures[count, "raw", "resident"])
        for title in SERVERS:
            cells = [
                report.spread(value / 1024 for value in figures[count, title, kind])
                for kind in KINDS
            ]
            ratio = statistics.median(figures[count, title, "resident"]) / base
            shown.rows.append([f"{count:,}, {title}", *cells, f"{ratio:.2f}"])
    return shown


def run(options: argparse.Namespace) -> int:
    """Measure and show."""
    figures: Figures = defaultdict(list)
    for number in range(options.rounds):
        print(f"round {number + 1} of {options.rounds}", file=sys.stderr)
        for count in options.clients:
            for title in SERVERS:
                for kind in KINDS:
                    figures[count, title, kind].append(bytes_a_client(title, count, kind))
    told = [
        {"clients": count, "server": title, "kind": kind, "bytes a client": values}
        for (count, title, kind), values in figures.items()
    ]
    how = f"{options.rounds} rounds."
    report.show(options, "memory", how, [table(figures, options.clients)], told)
    return 0
