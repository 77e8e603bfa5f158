"""The decoders of what peers say, and the way of a message through the server, in memory.

hypothesis chooses the frames for the decoders, and shows the smallest that fails. The server's
are made of a seed.
"""

from __future__ import annotations

import random

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from support.handlers import Worker
from support.memory import serving
from support.outcomes import outcomes
from trio.testing import MockClock, wait_all_tasks_blocked

from harness.fuzz import frames
from trioreq._protocol import envelope as wire

FRAME = st.one_of(
    st.just(b""),
    st.binary(max_size=20),
    st.binary(max_size=13).map(lambda rest: wire.MAGIC + rest),
    st.just(wire.ERROR_MARK),
)


@settings(max_examples=1000, deadline=None)
@given(st.lists(FRAME, max_size=8))
@example([])
@example([b""])
@example([b"", b""])
@example([wire.MAGIC + bytes(13), b"", b"x"])
def test_a_request_is_taken_apart_and_nothing_is_lost(parts: list[bytes]) -> None:
    envelope, header, body = wire.request_untrusted(parts)
    if b"" in parts[:-1]:
        assert [*envelope, *body] == parts
        assert envelope.index(b"") == len(envelope) - 1
    else:
        assert (envelope, header, body) == (wire.BARE_ENVELOPE, None, ())
    if header is not None:
        assert header.pack() == envelope[-2]
        answer = wire.answer(envelope, header, wire.OK, (b"reply",))
        assert answer[: len(envelope) - 2] == envelope[:-2]
        assert answer[-2:] == (b"", b"reply")


@settings(max_examples=500, deadline=None)
@given(st.lists(FRAME, max_size=5))
def test_an_error_is_one_of_three_frames_and_any_text(parts: list[bytes]) -> None:
    error = wire.error_untrusted(tuple(parts))
    assert (error is not None) == (len(parts) == 3 and parts[0] == wire.ERROR_MARK)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(5))
async def test_any_frames_from_many_are_counted_and_cost_others_nothing(
    seed: int, autojump_clock: MockClock
) -> None:
    source = random.Random(seed)
    async with serving(Worker(), timeout=5) as net:
        healthy = net.connect()
        for _ in range(50):
            hostile = net.connect(socket_type=source.choice(("REQ", "DEALER")))
            for _ in range(10):
                hostile.send_raw(*frames(source))
            assert await healthy.request(b"echo") == [b"re:echo"]
            if source.random() < 0.5:
                hostile.crash()
        await wait_all_tasks_blocked()
        statistics = net.server.statistics()
        outcomes(net.server)  # which sees that they add up
        assert min(statistics.malformed, statistics.failed) > 0
        assert statistics.replied >= 50
