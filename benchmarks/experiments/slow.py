"""Clients that are stopped, and clients that never read: what is the effect on other clients?

    python -m benchmarks slow [--clients 200] [--seconds 5]

So many clients are stopped with SIGSTOP in the middle of a pipeline, and as many send without ever
reading a reply. Heartbeats are off, so none of them is disconnected: this is the worst case. Once
the server has read what they sent, it is measured how long others wait for an echo, and how much
memory the server has: it may grow by what `send_queue` allows each. The others ask a second server,
which has no such clients, in turn: what else the machine does hits both alike.
"""

from __future__ import annotations

import argparse

import trio

from harness.measurements.slow import measure


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's options."""
    parser.add_argument("--clients", type=int, default=200, help="of each kind")
    parser.add_argument("--seconds", type=float, default=5.0, help="for each measurement")


def run(options: argparse.Namespace) -> int:
    """Measure and show."""
    print(trio.run(measure, options.clients, options.seconds))
    return 0
