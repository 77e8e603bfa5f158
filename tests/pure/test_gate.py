"""The gate's answers. Pure: no clock, no sockets."""

from __future__ import annotations

import pytest

from trioreq import _gate

QUESTION = [b"1.0", b"17", b"trioreq", b"127.0.0.1", b"", b"NULL"]


def test_who_is_let_in_gets_the_stamp() -> None:
    metadata = b"\x0fX-Trioreq-Stamp" + b"\0\0\0\x0242"
    assert _gate.reply(QUESTION, b"42") == [b"1.0", b"17", b"200", b"OK", b"", metadata]


@pytest.mark.parametrize(
    ("position", "value"), [(0, b"2.0"), (2, b"other"), (5, b"PLAIN"), (5, b"CURVE"), (5, b"")]
)
def test_in_doubt_the_answer_is_no(position: int, value: bytes) -> None:
    question = [*QUESTION]
    question[position] = value
    answer = _gate.reply([*question, b"credentials"], b"42")
    assert answer[1:3] == [b"17", b"400"]
    assert b"Stamp" not in answer[5]
