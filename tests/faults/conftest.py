"""What the tests of faults share: a client process, and a limit on real time."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
from support.clients import Peer, open_peer


@pytest.fixture
async def peer() -> AsyncIterator[Peer]:
    async with open_peer() as opened:
        yield opened
