"""What the tests of faults share: a client process, and a limit on real time."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from harness.clients import ClientProcess, open_client_process


@pytest.fixture
async def peer() -> AsyncIterator[ClientProcess]:
    async with open_client_process() as opened:
        yield opened
