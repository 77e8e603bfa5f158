"""When libzmq has freed the routing ids of closed connections, on trio's virtual clock."""

from __future__ import annotations

from collections.abc import Sequence
from errno import EAGAIN, EHOSTUNREACH
from typing import cast

import pytest
import trio
from support.handlers import Worker
from support.memory import serving
from trio.testing import MockClock

from trioreq._server import admission
from trioreq._transport.routing_ids import LIMIT, MOMENT, PROBE, RoutingIds
from trioreq._transport.zsocket import ZSocket

pytestmark = pytest.mark.usefixtures("autojump_clock")


class Router:
    """A ROUTER that holds some routing ids."""

    def __init__(self) -> None:
        self.answers: dict[bytes, int] = {}
        self.probed: list[bytes] = []

    def send_to(self, routing_id: bytes, frames: Sequence[bytes]) -> int:
        assert frames == PROBE
        self.probed.append(routing_id)
        return self.answers.get(routing_id, EHOSTUNREACH)

    def nudge(self) -> None:
        pass


@pytest.fixture
def router() -> Router:
    return Router()


@pytest.fixture
def ids(router: Router) -> RoutingIds:
    return RoutingIds(cast("ZSocket", router))


async def test_without_closed_connections_all_are_free(ids: RoutingIds, router: Router) -> None:
    assert ids.all_free()
    assert router.probed == []


async def test_one_is_free_a_moment_after_it_is_unreachable(
    ids: RoutingIds, router: Router
) -> None:
    ids.closed(b"a")
    assert not ids.all_free()
    assert not ids.all_free()
    await trio.sleep(MOMENT)
    assert ids.all_free()
    assert router.probed == [b"a"] * 3
    assert ids.all_free()  # it is not probed again, when another connection may have it
    assert router.probed == [b"a"] * 3


@pytest.mark.parametrize("answer", [0, EAGAIN])
async def test_one_that_is_held_is_waited_for(ids: RoutingIds, router: Router, answer: int) -> None:
    ids.closed(b"a")
    ids.closed(b"b")
    router.answers[b"a"] = answer
    for _ in range(3):
        assert not ids.all_free()
        await trio.sleep(MOMENT)
    assert router.probed.count(b"b") == 2
    del router.answers[b"a"]
    assert not ids.all_free()
    await trio.sleep(MOMENT)
    assert ids.all_free()


async def test_one_is_not_waited_for_without_end(
    ids: RoutingIds, router: Router, autojump_clock: MockClock
) -> None:
    router.answers[b"a"] = 0
    ids.closed(b"a")
    await trio.sleep(LIMIT)
    assert not ids.all_free()
    await trio.sleep(LIMIT)
    assert ids.all_free()
    assert ids.all_free()
    assert router.probed == [b"a"] * 2


async def test_one_that_another_connection_has_is_not_probed(
    ids: RoutingIds, router: Router
) -> None:
    ids.closed(b"a")
    assert not ids.all_free()
    ids.heard(b"a")
    assert ids.all_free()
    assert router.probed == [b"a"]
    ids.closed(b"a")  # it is waited for as long as the first time
    assert not ids.all_free()
    await trio.sleep(MOMENT)
    assert ids.all_free()


async def test_others_are_accepted_while_clients_with_routing_ids_come_and_go(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """There is always one that is not free yet."""
    monkeypatch.setattr(RoutingIds, "all_free", lambda _: False)
    async with serving(Worker()) as net:
        start = trio.current_time()
        for _ in range(3):
            assert await net.connect().request(b"echo") == [b"re:echo"]
        assert trio.current_time() - start <= 3 * (LIMIT + admission.LONGEST_PAUSE)
