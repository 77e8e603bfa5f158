"""A server process under hostile peers, with a healthy client beside them.

The peers are made of a seed; `python -m benchmarks fuzz` runs more of them. Time is real. What is
looked at after the end is waited for by asking the server until it is so.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from harness.measurements import fuzz
from harness.outcomes import ended

SEED = 21
MIB = 2**20


@pytest.mark.slow
@pytest.mark.parametrize("transport", ["tcp", "ipc"])
async def test_hostile_peers_affect_no_other_client(transport: str, tmp_path: Path) -> None:
    endpoint = "tcp://127.0.0.1:0" if transport == "tcp" else f"ipc://{tmp_path}/socket"
    report = await fuzz.measure(endpoint, SEED, first=500, number=1500)
    before, after = report.before, report.after
    assert report.replies > 0
    assert after["requests"] == ended(after)
    assert after["replied"] - before["replied"] >= report.replies
    assert after["malformed"] > before["malformed"] > 0
    assert after["memory"] - before["memory"] < 4 * MIB
    assert len(report.log) == len(set(report.log)) < 2000  # nothing twice of one connection
    assert [line for line in report.log if len(line) > 400 or "Traceback" in line] == []
