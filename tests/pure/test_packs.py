"""Packs: many messages in one frame. Pure; hypothesis chooses."""

from __future__ import annotations

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from trioreq._protocol import packs
from trioreq._protocol.envelope import REQUEST, Frames, Header

OWN = 500

FITS = st.builds(
    lambda number, body: (Header(REQUEST, number).pack(), b"", body),
    st.integers(1, 9),
    st.binary(max_size=60),
)
MESSAGE = st.one_of(FITS, FITS, st.lists(st.binary(max_size=30), min_size=2, max_size=5).map(tuple))


def unpacked(sent: list[Frames]) -> list[Frames]:
    """What the other side makes of it."""
    found: list[Frames] = []
    for frames in sent:
        pack = packs.unpack_untrusted(frames[0]) if len(frames) == 1 else None
        found.extend([frames] if pack is None else map(tuple, pack[1]))
    return found


@given(st.lists(MESSAGE, max_size=20), st.integers(0, 300))
@example([(Header(REQUEST, 1).pack(), b"", b"x")] * 1000, packs.MAX_SIZE)
@example([(Header(REQUEST, 1).pack(), b"", bytes(packs.MAX_SIZE))] * 2, packs.MAX_SIZE)
def test_unpacking_restores_the_messages(messages: list[Frames], theirs: int) -> None:
    sent = packs.pack(messages, theirs, OWN)
    assert unpacked(sent) == messages
    assert sum(map(packs.messages_in, sent)) == len(messages)
    for frames in sent:
        if len(frames) == 1:
            pack = packs.unpack_untrusted(frames[0])
            assert pack is not None
            assert pack[0] == OWN
            assert len(frames[0]) <= theirs
            assert 2 <= len(pack[1]) == packs.messages_in(frames) <= packs.MAX_MESSAGES


def test_messages_that_fit_are_packed() -> None:
    message = (Header(REQUEST, 1).pack(), b"", b"x")
    other = (b"", b"x")
    size = packs.HEAD_SIZE + 3 * (packs.OVERHEAD + 1)
    assert len(packs.pack([message] * 6, size, OWN)) == 2
    assert len(packs.pack([message] * 6, size - 1, OWN)) == 3
    assert len(packs.pack([message] * (packs.MAX_MESSAGES + 1), packs.MAX_SIZE, OWN)) == 2
    assert packs.pack([message, other, message], packs.MAX_SIZE, OWN) == [message, other, message]


@given(st.binary(max_size=60).map(lambda rest: packs.MAGIC + rest))
@example(b"")
@example(packs.MAGIC)
def test_an_invalid_pack_is_none_and_a_pack_is_read_completely(frame: bytes) -> None:
    pack = packs.unpack_untrusted(frame)
    if pack is not None:
        size = sum(packs.OVERHEAD + len(body) for _, _, body in pack[1])
        assert size + packs.HEAD_SIZE == len(frame)


def test_a_pack_that_is_not_whole_is_none() -> None:
    message = (Header(REQUEST, 1).pack(), b"", b"body")
    (frame,) = packs.pack([message] * 3, packs.MAX_SIZE, OWN)[0]
    assert packs.unpack_untrusted(frame) is not None
    for cut in range(len(frame)):
        assert packs.unpack_untrusted(frame[:cut]) is None
    assert packs.unpack_untrusted(frame + b"x") is None
    for number in {0, 2, 4, 255}:
        at = packs.HEAD_SIZE - 1
        assert packs.unpack_untrusted(frame[:at] + bytes([number]) + frame[at + 1 :]) is None


def test_a_pack_of_too_many_is_none() -> None:
    entry = bytes(packs.OVERHEAD)
    most = packs.MAX_MESSAGES
    for number, right in ((most, True), (most + 1, False)):
        frame = packs.HEAD.pack(packs.MAGIC, OWN, number) + entry * number
        assert (packs.unpack_untrusted(frame) is not None) == right


@pytest.mark.parametrize(
    ("body", "size"),
    [
        ((b"",), 0),
        ((), 0),
        ((b"\0\0\0\x07",), 7),
        ((b"\0\0\0\x07", b""), 0),
        ((b"\0\0\x07",), 0),
        ((b"\xff\xff\xff\xff",), packs.MAX_SIZE),
    ],
)
def test_the_size_of_packs_in_a_hello(body: Frames, size: int) -> None:
    assert packs.max_size_untrusted(body) == size


def test_a_receiver_of_small_frames_gets_smaller_packs() -> None:
    assert packs.max_size(100) == 100
    assert packs.max_size(2**40) == packs.MAX_SIZE


def test_a_pack_that_is_too_large_is_none() -> None:
    for size, right in ((packs.MAX_SIZE, True), (packs.MAX_SIZE + 1, False)):
        body = bytes(size - packs.HEAD_SIZE - packs.OVERHEAD)
        entry = len(body).to_bytes(2, "big") + bytes(17) + body
        frame = packs.HEAD.pack(packs.MAGIC, OWN, 1) + entry
        assert len(frame) == size
        assert (packs.unpack_untrusted(frame) is not None) == right
