"""A request costs the server no more than it did: a guard against becoming slower unnoticed.

Counted, not timed, in processes of their own; `harness.measurements.costs` says what and how, and
the least of several tries counts, so a busy machine does not matter. The bounds are what
`python -m benchmarks costs --bounds` prints, somewhat above what was measured. A change that makes
the server faster lowers them; one that has to raise them shows what it costs.
"""

from __future__ import annotations

import os

import pytest

from harness.measurements import costs

BOUNDS = {
    "async, one at a time": {"calls": 188.0, "lines": 564.1, "steps": 1.7, "zmq": 15.7},
    "async, 256 in one breath": {"calls": 42.3, "lines": 161.7, "steps": 0.3, "zmq": 11.5},
    "plain, one at a time": {"calls": 227.5, "lines": 618.2, "steps": 1.7, "zmq": 15.7},
    "plain, 256 in one breath": {"calls": 55.0, "lines": 180.2, "steps": 0.3, "zmq": 11.5},
}

Costs = dict[str, dict[str, float | None]]


@pytest.fixture(scope="module")
def measured() -> Costs:
    return costs.measure()


@pytest.mark.slow
@pytest.mark.parametrize("case", BOUNDS)
def test_a_request_costs_no_more_than_it_did(measured: Costs, case: str) -> None:
    counted = {name: cost for name, cost in measured[case].items() if cost is not None}
    assert {name: cost for name, cost in counted.items() if cost > BOUNDS[case][name]} == {}
    # Calls of libzmq are counted with a C compiler, which need not be everywhere.
    missing = BOUNDS[case].keys() - counted.keys()
    assert missing <= (set() if os.environ.get("CI") else {"zmq"})


def test_each_case_has_its_bounds() -> None:
    assert BOUNDS.keys() == costs.CASES.keys()
    assert all(bounds.keys() == costs.COUNTERS.keys() for bounds in BOUNDS.values())
