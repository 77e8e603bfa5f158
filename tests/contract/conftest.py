"""Each test here runs in memory, over tcp and over ipc: `net` is where its server is."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import pytest
import trio
from support.nets import Net, open_net
from trio.testing import MockClock


def run_on_virtual_time(main: Any, *, clock: object, instruments: Any) -> Any:
    """`trio.run`, with a clock that jumps when all tasks wait."""
    return trio.run(main, clock=MockClock(autojump_threshold=0), instruments=instruments)


@pytest.fixture(
    params=[
        pytest.param("memory", marks=pytest.mark.trio(run=run_on_virtual_time)),
        "tcp",
        "ipc",
    ]
)
async def net(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[Net]:
    addresses = {
        "memory": "memory",
        "tcp": "tcp://127.0.0.1:0",
        "ipc": f"ipc://{tmp_path_factory.mktemp('ipc')}/socket",
    }
    async with open_net(addresses[request.param]) as opened:
        yield opened
