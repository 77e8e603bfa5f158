"""`trioreq-client` on a line without a kernel."""

from __future__ import annotations

import pytest
import trio
from support.line import FakeLine, asking
from trio.testing import MockClock

from trioreq.cli._ask import Ask


@pytest.mark.parametrize("asked_at", [3, 10])
async def test_a_first_request_took_no_longer_than_its_connection_is_old(
    autojump_clock: MockClock, asked_at: float
) -> None:
    line = FakeLine()
    ask = Ask("memory", (), None, False, False, False, 5, 5, 0, None, 0, False, None)
    async with asking(line) as nursery:

        async def serve() -> None:
            await trio.sleep(4)
            line.connect()
            await trio.sleep(max(asked_at - 4, 0) + 2)
            line.answer(0, b"y")

        nursery.start_soon(serve)
        await trio.sleep(asked_at)
        assert await ask.ask(line.client, [b"x"]) == [b"y"]
    assert ask.took == [2]
