"""What tests against hostile bytes share."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from harness.clients import Clients, open_clients


@pytest.fixture
def clients() -> Iterator[Clients]:
    with open_clients() as opened:
        yield opened
