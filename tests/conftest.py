"""What tests on real sockets share: clients here and in other processes, and Ctrl-C for those."""

from __future__ import annotations

import signal
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


@pytest.fixture
def interruptible() -> Iterator[None]:
    """Let processes that a test starts receive Ctrl-C, even if a shell started pytest without."""
    before = signal.getsignal(signal.SIGINT)
    if before is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)
