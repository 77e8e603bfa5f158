"""Ten thousand connected clients, half of which die at once.

    python -m benchmarks crowd [--clients 10000]

The clients are DEALER sockets of libzmq in four processes. They connect, ask once, and then ask
for what takes forever; two of the processes are killed with SIGKILL. Another client asks for an
echo all the while, and its wait is the effect on live clients. Server and clients need a limit of
descriptors (`ulimit -n`) that is as high: the soft limit is raised to the hard one.
"""

from __future__ import annotations

import argparse
import resource
import sys

import trio

from harness.measurements.crowd import measure


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's options."""
    parser.add_argument("--clients", type=int, default=10_000)


def run(options: argparse.Namespace) -> int:
    """Measure and show."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    if hard < options.clients * 1.2:
        most = f"{options.clients} clients need more descriptors than the {hard} of ulimit -Hn"
        print(most, file=sys.stderr)
        return 1
    print(trio.run(measure, options.clients))
    return 0
