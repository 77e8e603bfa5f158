"""What tests on real sockets share: clients in this process, and in one that can be killed."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator

import pytest

from harness.clients import ClientProcess, Clients, open_client_process, open_clients


@pytest.fixture
def clients() -> Iterator[Clients]:
    with open_clients() as opened:
        yield opened


@pytest.fixture
async def peer() -> AsyncIterator[ClientProcess]:
    async with open_client_process() as opened:
        yield opened
