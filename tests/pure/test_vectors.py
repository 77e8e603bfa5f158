"""The header, and the vectors of docs/protocol-vectors.json that need no server. Pure."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trioreq._errors import Code
from trioreq._protocol import envelope as wire
from trioreq._protocol import packs
from trioreq._protocol.credit import CREDIT, Credit
from trioreq._protocol.endings import status_of
from trioreq._protocol.envelope import Frames, Header
from trioreq._protocol.hello import unpack_untrusted

VECTORS = json.loads((Path(__file__).parents[2] / "docs/protocol-vectors.json").read_text())

frames = st.lists(st.binary(max_size=40), max_size=6).map(tuple)
headers = st.builds(
    Header,
    st.integers(0, 255),
    st.integers(0, 2**64 - 1),
    st.integers(0, 2**32 - 1),
)


def each(section: str) -> pytest.MarkDecorator:
    """Parametrize a test with the vectors of a section."""
    return pytest.mark.parametrize("vector", VECTORS[section], ids=lambda vector: vector["name"])


def frames_of(words: list[str]) -> Frames:
    return tuple(bytes.fromhex(word) for word in words)


def header_of(vector: dict[str, Any]) -> Header:
    return Header(vector["kind"], int(vector["correlation"], 16), vector["left"])


def test_the_sections() -> None:
    assert list(VECTORS) == [
        "headers",
        "not_headers",
        "left",
        "messages",
        "answers",
        "credits",
        "hellos",
        "unasked",
        "packs",
        "not_packs",
        "conversations",
    ]
    for vectors in VECTORS.values():
        names = [vector["name"] for vector in vectors]
        assert len(names) == len(set(names))


@each("headers")
def test_a_header(vector: dict[str, Any]) -> None:
    frame = bytes.fromhex(vector["frame"])
    assert header_of(vector).pack() == frame
    assert wire.header_untrusted((frame, b"")) == header_of(vector)


@each("not_headers")
def test_invalid_headers_are_not_headers(vector: dict[str, Any]) -> None:
    assert wire.header_untrusted((bytes.fromhex(vector["frame"]), b"")) is None


@each("packs")
def test_a_pack(vector: dict[str, Any]) -> None:
    frame = bytes.fromhex(vector["frame"])
    messages = [frames_of(words) for words in vector["messages"]]
    pack = packs.unpack_untrusted(frame)
    assert pack is not None
    assert (pack[0], [tuple(frames) for frames in pack[1]]) == (vector["max_size"], messages)
    if len(messages) > 1:  # we make no others
        assert packs.pack(messages, packs.MAX_SIZE, vector["max_size"]) == [(frame,)]


@each("not_packs")
def test_invalid_packs_are_not_packs(vector: dict[str, Any]) -> None:
    assert packs.unpack_untrusted(bytes.fromhex(vector["frame"])) is None


@each("credits")
def test_credit(vector: dict[str, Any]) -> None:
    frame = bytes.fromhex(vector["frame"])
    assert CREDIT.pack(vector["replies"], vector["bytes"]) == frame
    credit, before = Credit(limited=True), Credit(limited=True)
    assert credit.add_untrusted((frame,))
    assert credit.replies - before.replies == vector["replies"]
    assert credit.bytes - before.bytes == vector["bytes"]


@each("hellos")
def test_a_hello(vector: dict[str, Any]) -> None:
    body = (bytes.fromhex(vector["frame"]),)
    assert unpack_untrusted(body) == (vector["max_pack_size"], vector["capabilities"])


@each("unasked")
def test_a_message_that_answers_no_request(vector: dict[str, Any]) -> None:
    frames = frames_of(vector["frames"])
    _, header, body = wire.request_untrusted(frames)
    assert header is not None
    assert (header.correlation, header.left) == (wire.WANTS_HELLO, wire.SPEAKS)
    statuses = {wire.OK: "hello", wire.GO_AWAY: "go-away"}
    assert statuses.get(header.kind) == vector["taken_for"]
    if vector["taken_for"] == "hello":
        assert unpack_untrusted(body)[0] == vector["max_pack_size"]
    if vector["taken_for"] == "go-away":
        assert wire.reason_untrusted(body) == vector["reason"]
        if frames[2].decode(errors="replace").encode() == frames[2]:
            assert wire.go_away(vector["reason"]) == frames


@each("left")
def test_the_time_left(vector: dict[str, Any]) -> None:
    seconds = math.inf if vector["seconds"] is None else vector["seconds"]
    assert wire.milliseconds(seconds) == vector["left"]


@each("messages")
def test_a_message(vector: dict[str, Any]) -> None:
    parts = wire.split_untrusted(frames_of(vector["frames"]))
    if vector["envelope"] is None:
        assert parts is None
        return
    assert parts is not None
    assert parts == ((*frames_of(vector["envelope"]), b""), frames_of(vector["body"]))
    header = None if vector["header"] is None else header_of(vector["header"])
    assert wire.header_untrusted(parts[0]) == header


@each("answers")
def test_an_answer(vector: dict[str, Any]) -> None:
    parts = wire.split_untrusted(frames_of(vector["request"]))
    assert parts is not None
    envelope = parts[0]
    if vector["code"] is None:
        body = frames_of(vector["body"])
    else:
        body = wire.error_body(vector["code"], vector["text"])
        if vector["status"] != wire.NOT_STARTED:  # no handler answers that
            assert status_of(vector["code"]) == vector["status"]
        assert wire.error_untrusted(body) == (vector["code"], vector["text"])
    header = wire.header_untrusted(envelope)
    reply = wire.answer(envelope, header, vector["status"], body)
    assert reply == frames_of(vector["reply"])


def test_there_is_an_answer_for_each_code() -> None:
    shown = {vector["code"] for vector in VECTORS["answers"] if vector["status"] not in (0, 255)}
    assert shown == {code.value for code in Code}


@given(headers)
def test_a_header_comes_back_as_it_went(header: Header) -> None:
    frame = header.pack()
    assert len(frame) == 17
    assert wire.header_untrusted((frame, b"")) == header


@given(headers, frames)
def test_the_header_is_the_last_frame_of_the_envelope(header: Header, before: Frames) -> None:
    assert wire.header_untrusted((*before, header.pack(), b"")) == header


@given(frames)
def test_no_frames_make_it_raise(envelope: Frames) -> None:
    wire.header_untrusted(envelope)


@given(st.binary(min_size=13, max_size=13), frames)
def test_any_bytes_behind_the_magic_are_a_header(rest: bytes, before: Frames) -> None:
    frame = wire.MAGIC + rest
    header = wire.header_untrusted((*before, frame, b""))
    assert header is not None
    assert header.pack() == frame


@given(frames, headers, st.integers(0, 255), st.lists(st.binary(), min_size=1).map(tuple))
def test_an_answer_changes_no_more_than_the_header(
    before: Frames, header: Header, status: int, body: Frames
) -> None:
    reply = wire.answer((*before, header.pack(), b""), header, status, body)
    own = Header(status, header.correlation, wire.SPEAKS)
    assert reply == (*before, own.pack(), b"", *body)


@given(st.floats(-1e9, 1e300) | st.just(math.inf))
def test_the_time_left_is_never_less_than_it_is(seconds: float) -> None:
    left = wire.milliseconds(seconds)
    assert 0 <= left < wire.SPEAKS
    assert (left == 0) == (seconds == math.inf)
    assert left == 0 or left == wire.MOST_MILLISECONDS or left / 1000 >= seconds
