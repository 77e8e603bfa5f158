"""The gate's answers, and what goes before them. Pure: no clock, no sockets."""

from __future__ import annotations

import pytest
import zmq
from zmq.utils import z85

import trioreq
from trioreq._protocol.connection_limits import Limits
from trioreq._protocol.zap import (
    Applicant,
    Verdict,
    applicant_untrusted,
    let_in,
    put_off,
    refuse,
    reply,
)
from trioreq._transport.zap_handler import Rules

QUESTION = [b"1.0", b"17", b"trioreq", b"127.0.0.1", b"", b"NULL"]
KEY = zmq.curve_keypair()[0]
RAW_KEY = z85.decode(KEY)
SECRET = "a secret word"


def asked(mechanism: bytes, *credentials: bytes) -> Applicant | None:
    return applicant_untrusted([*QUESTION[:5], mechanism, *credentials], b"trioreq")


def test_who_is_let_in_gets_the_stamp_and_its_user_id() -> None:
    metadata = b"\x0fX-Trioreq-Stamp" + b"\0\0\0\x0242"
    answer = reply(QUESTION, let_in("alice", ""), {"X-Trioreq-Stamp": "42"})
    assert answer == [b"1.0", b"17", b"200", b"OK", b"alice", metadata]


@pytest.mark.parametrize("verdict", [refuse("why"), put_off("why")])
def test_who_is_not_gets_neither_nor_hears_why(verdict: Verdict) -> None:
    answer = reply(QUESTION, verdict, {"X-Trioreq-Stamp": "42"})
    assert answer[1:3] == [b"17", verdict.code]
    assert verdict.code in (b"300", b"400")
    assert answer[4:] == [b"", b""]
    assert b"why" not in answer[3]


def test_a_question_is_read() -> None:
    assert asked(b"NULL") == Applicant("NULL", "127.0.0.1")
    assert asked(b"CURVE", RAW_KEY) == Applicant("CURVE", "127.0.0.1", public_key=KEY.decode())
    assert asked(b"PLAIN", b"me", b"word") == Applicant(
        "PLAIN", "127.0.0.1", username="me", password="word"
    )


@pytest.mark.parametrize(
    ("mechanism", "credentials"),
    [
        (b"NULL", [b"more"]),
        (b"CURVE", []),
        (b"CURVE", [b"short"]),
        (b"CURVE", [RAW_KEY, b"more"]),
        (b"PLAIN", [b"me"]),
        (b"PLAIN", [b"\xff", b"word"]),
        (b"GSSAPI", [b"me"]),
        (b"", []),
    ],
)
def test_what_is_no_question_is_none(mechanism: bytes, credentials: list[bytes]) -> None:
    assert asked(mechanism, *credentials) is None


@pytest.mark.parametrize(("position", "value"), [(0, b"2.0"), (2, b"other")])
def test_another_version_or_domain_is_none(position: int, value: bytes) -> None:
    question = [*QUESTION]
    question[position] = value
    assert applicant_untrusted(question, b"trioreq") is None


def test_null_lets_everybody_in_and_nothing_else() -> None:
    verdict = Rules("NULL").decide(asked(b"NULL"))
    assert verdict is not None
    assert (verdict.code, verdict.user_id) == (b"200", "")
    for other in (asked(b"CURVE", RAW_KEY), asked(b"PLAIN", b"me", b"word"), None):
        verdict = Rules("NULL").decide(other)
        assert verdict is not None
        assert verdict.code == b"400"


def test_a_list_lets_its_keys_in() -> None:
    allow = trioreq.AllowList({KEY.decode(): "alice"})
    rules = Rules("CURVE", allow)
    verdict = rules.decide(asked(b"CURVE", RAW_KEY))
    assert verdict is not None
    assert (verdict.code, verdict.user_id) == (b"200", "alice")
    stranger = rules.decide(asked(b"CURVE", bytes(32)))
    assert stranger is not None
    assert stranger.code == b"400"
    allow.replace({})
    verdict = rules.decide(asked(b"CURVE", RAW_KEY))
    assert verdict is not None
    assert verdict.code == b"400"


def test_rules_without_anybody_who_decides_let_nobody_in() -> None:
    for mechanism, question in (
        ("CURVE", asked(b"CURVE", RAW_KEY)),
        ("PLAIN", asked(b"PLAIN", b"me", b"word")),
    ):
        verdict = Rules(mechanism).decide(question)  # type: ignore[arg-type]
        assert verdict is not None
        assert verdict.code == b"400"


def test_an_applicant_does_not_show_its_password() -> None:
    assert SECRET not in repr(asked(b"PLAIN", b"me", SECRET.encode()))


def test_limits_count_who_is_inside() -> None:
    limits = Limits(3, 2)
    assert [limits.enter(number, "a") for number in (1, 2)] == [None, None]
    assert limits.enter(3, "a") == "max_connections_per_address is reached"
    assert limits.enter(4, "b") is None
    assert limits.enter(5, "c") == "max_connections is reached"
    limits.leave(3)  # was never in
    assert limits.enter(6, "a") == "max_connections is reached"
    limits.leave(1)
    assert limits.enter(7, "a") is None
    limits.leave(7)
    limits.leave(7)
    assert limits.enter(8, "a") is None


def test_limits_keep_nothing_of_who_has_gone() -> None:
    limits = Limits(None, 1)
    for number in range(10):
        assert limits.enter(number, f"address {number}") is None
        limits.leave(number)
    assert not limits._inside
    assert not limits._at
