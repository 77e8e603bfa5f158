"""Rolling restarts under load: which requests are lost, and which are executed twice?

    python -m benchmarks rolling [--times 20] [--clients 200] [--plain 50] [--pause 0.5]

Servers are drained and started again, so many times, while clients of `open_client` and REQ clients
send requests: on one address, and behind HAProxy, which must be installed. No request of
`open_client` may be lost or executed twice. Each request of a REQ client must end, with a reply, an
error, or a closed connection.
"""

from __future__ import annotations

import argparse

import trio

from harness.measurements.rolling import WAYS


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's options."""
    parser.add_argument("--times", type=int, default=20, help="restarts of each server (20)")
    parser.add_argument("--clients", type=int, default=200, help="of open_client (200)")
    parser.add_argument("--plain", type=int, default=50, help="REQ clients (50)")
    parser.add_argument(
        "--pause", type=float, default=0.5, help="seconds between two requests of a client (0.5)"
    )
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=list(WAYS))


def run(options: argparse.Namespace) -> int:
    """Measure and show; the exit code is 1 if a request was lost, executed twice, or has hung."""
    failed = False
    for way in options.ways:
        report = trio.run(WAYS[way], options.times, options.clients, options.plain, options.pause)
        print(f"{way}:\n{report}\n", flush=True)
        failed = failed or bool(report.lost or report.twice or report.hung)
    return int(failed)
