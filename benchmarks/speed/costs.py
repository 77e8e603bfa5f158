"""What a request costs the server, counted and not timed, so that it is the same on any machine.

Counted are calls of Python functions, lines of Python that run, steps of trio's tasks, and calls of
libzmq; `harness.measurements.costs` says how.
"""

from __future__ import annotations

import argparse
import json

from harness.measurements.costs import CASES, COUNTERS, measure

from ..shared import report

SLACK = 1.4  # a bound is so many times the greatest of several measurements,
LEAST_SLACK = 0.3  # and so much above that, since some costs are next to nothing
MEASUREMENTS = 5


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's options."""
    parser.add_argument(
        "--bounds", action="store_true", help="print the table for tests/wire/test_costs.py"
    )


def print_bounds() -> None:
    """Print the table for the test. Threads make some costs uncertain: hence many measurements."""
    measured = [measure() for _ in range(MEASUREMENTS)]
    for name in CASES:
        bounds = {
            counter: round(
                max(each[name][counter] or 0 for each in measured) * SLACK + LEAST_SLACK, 1
            )
            for counter in COUNTERS
        }
        print(f"    {json.dumps(name)}: {json.dumps(bounds)},")


def run(options: argparse.Namespace) -> int:
    """Print the costs, or the bounds that follow from them."""
    if options.bounds:
        print_bounds()
        return 0
    rows = [
        [name, *("-" if cost is None else f"{cost:.2f}" for cost in costs.values())]
        for name, costs in measure().items()
    ]
    print(report.Table(["for a request", *COUNTERS], rows).text())
    return 0
