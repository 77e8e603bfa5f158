"""What tests on real sockets share: clients, a client process, and a limit on real time."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator

import pytest
from support.clients import Clients, Peer, open_clients, open_peer


@pytest.fixture
def clients() -> Iterator[Clients]:
    with open_clients() as opened:
        yield opened


@pytest.fixture
async def peer() -> AsyncIterator[Peer]:
    async with open_peer() as opened:
        yield opened


@pytest.fixture(params=["tcp", "ipc"])
def addr(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> str:
    """An address of each transport to serve on."""
    if request.param == "tcp":
        return "tcp://127.0.0.1:0"
    return f"ipc://{tmp_path_factory.mktemp('ipc')}/socket"
