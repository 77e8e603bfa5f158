"""What tests of the wire share: addresses, and what a server hands over."""

from __future__ import annotations

from typing import Any

import pytest
from support.local_ray import HAS_RAY
from support.serving import spy_on_sends

from trioreq._transport.server_sockets import BoundSockets

collect_ignore = [] if HAS_RAY else ["test_ray.py"]


@pytest.fixture(params=["tcp", "ipc"])
def addr(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> str:
    """An address of each transport to serve on."""
    if request.param == "tcp":
        return "tcp://127.0.0.1:0"
    return f"ipc://{tmp_path_factory.mktemp('ipc')}/socket"


@pytest.fixture
def handed_over(monkeypatch: pytest.MonkeyPatch) -> list[bytes]:
    """The last frames of what a server's ROUTER took, and of what it refused."""
    seen: list[bytes] = []
    init = BoundSockets.__init__

    def spied_on(self: BoundSockets, *args: Any, **options: Any) -> None:
        init(self, *args, **options)
        spy_on_sends(self.router, seen, seen)

    monkeypatch.setattr(BoundSockets, "__init__", spied_on)
    return seen
