"""Envelopes and bodies. Pure: no clock, no sockets."""

from __future__ import annotations

from array import array

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trioreq._protocol import envelope as wire

frame = st.binary(max_size=4)
filled = st.binary(min_size=1, max_size=4)


@given(st.lists(filled, max_size=4), st.lists(frame, min_size=1, max_size=4))
def test_the_envelope_ends_with_the_first_empty_frame(
    envelope: list[bytes], body: list[bytes]
) -> None:
    assert wire.split_untrusted([*envelope, b"", *body]) == ((*envelope, b""), tuple(body))


@given(st.lists(filled, max_size=4))
def test_a_message_without_an_empty_frame_is_malformed(frames: list[bytes]) -> None:
    assert wire.split_untrusted(frames) is None


@given(st.lists(filled, max_size=4))
def test_a_message_without_a_body_is_malformed(envelope: list[bytes]) -> None:
    assert wire.split_untrusted([*envelope, b""]) is None


@pytest.mark.parametrize(
    ("frames", "is_malformed"),
    [
        ([b"x" * 4096, b"", b"body"], False),
        ([b"x" * 4097, b"", b"body"], True),
        ([b"x" * 4090, b"y" * 7, b"", b"body"], True),
        ([b"x"] * 63 + [b"", b"body"], False),
        ([b"x"] * 64 + [b"", b"body"], True),
        ([b"x"] * 63 + [wire.Header(wire.REQUEST, 1).pack(), b"", b"body"], True),
    ],
)
def test_an_envelope_is_limited(frames: list[bytes], is_malformed: bool) -> None:
    """Each reply of a stream repeats it. The error is sent with it, once."""
    envelope, header, body = wire.request_untrusted(frames)
    assert [*envelope, b"body"] == frames
    assert (body == ()) is is_malformed
    assert (header is not None) is (len(frames[-3]) == wire.SIZE)


@given(st.lists(frame, max_size=6))
def test_nothing_is_lost_or_made_up(frames: list[bytes]) -> None:
    parts = wire.split_untrusted(frames)
    assert parts is None or [*parts[0], *parts[1]] == frames


@pytest.mark.parametrize(
    ("result", "body"),
    [
        (b"one", (b"one",)),
        (b"", (b"",)),
        (bytearray(b"one"), (b"one",)),
        (memoryview(b"one"), (b"one",)),
        (array("B", b"one"), (b"one",)),
        ([b"one", bytearray(b"two")], (b"one", b"two")),
        ((b"one",), (b"one",)),
    ],
)
def test_a_handler_may_return_bytes_or_frames(result: object, body: tuple[bytes, ...]) -> None:
    frames = wire.body("its result", result)
    assert frames == body
    assert all(type(part) is bytes for part in frames)


@pytest.mark.parametrize(
    ("result", "hint"),
    [
        ("text", r"its result must be .* got 'text': .* text\.encode\(\)"),
        (None, "got None: use b'' for an empty frame"),
        (17, r"got 17: .* json\.dumps\(x\)\.encode\(\)"),
        ([b"one", "two"], r"its result\[1\] must be bytes, got 'two': .* text\.encode\(\)"),
        ([b"one", None], r"its result\[1\] must be bytes, got None"),
        ([[b"one"]], r"its result\[0\] must be bytes, got \[b'one'\]"),
        ([], "at least one frame"),
        ((), "at least one frame"),
        ({"a": 1}, r"got \{'a': 1\}: .* json\.dumps\(x\)\.encode\(\)"),
        ({b"a"}, r"b''\.join\(x\)"),
        (object(), "encode it first"),
    ],
)
def test_other_results_of_a_handler_are_errors(result: object, hint: str) -> None:
    with pytest.raises(TypeError, match=hint):
        wire.body("its result", result)


def test_an_error_does_not_show_a_secret() -> None:
    for result in ("text", [b"", "text"]):
        with pytest.raises(TypeError, match="got str: ") as refused:
            wire.body("its result", result, secret=True)
        assert "'text'" not in str(refused.value)


def test_a_reply_does_not_change_with_the_buffer_it_was_made_from() -> None:
    buffer = bytearray(b"before")
    body = wire.body("its result", buffer)
    buffer[:] = b"after!"
    assert body == (b"before",)


def test_an_error_is_three_frames() -> None:
    assert wire.error_body("not-found", "nö") == (b"trioreq-error", b"not-found", "nö".encode())
