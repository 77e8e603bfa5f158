"""ZAP: requests in, verdicts and replies out. Pure: no clock, no sockets."""

from __future__ import annotations

import pytest
import zmq
from zmq.utils import z85

import trioreq
from trioreq._protocol.zap import (
    Applicant,
    Mechanism,
    Verdict,
    ZapRequest,
    accept,
    postpone,
    refuse,
    reply,
    request_untrusted,
)
from trioreq._transport.zap_handler import AccessRules

FRAMES = [b"session", b"", b"1.0", b"17", b"trioreq", b"127.0.0.1", b"routing id"]
KEY = zmq.curve_keypair()[0]
RAW_KEY = z85.decode(KEY)
SECRET = "a secret word"


def encode_key(key: bytes) -> str:
    return z85.encode(key).decode()


def asked(mechanism: bytes, *credentials: bytes) -> ZapRequest:
    return request_untrusted([*FRAMES, mechanism, *credentials], b"trioreq", encode_key)


def applicant(mechanism: bytes, *credentials: bytes) -> Applicant | None:
    return asked(mechanism, *credentials).applicant


def test_an_accepted_connection_gets_its_user_id_and_the_properties() -> None:
    metadata = b"\x0fX-Trioreq-Epoch" + b"\0\0\0\x0242" + b"\x01A" + b"\0\0\0\x00"
    frames = reply(asked(b"NULL"), accept("alice", ""), {"X-Trioreq-Epoch": "42", "A": ""})
    assert frames == [b"", b"1.0", b"17", b"200", b"OK", b"alice", metadata]


@pytest.mark.parametrize(("verdict", "code"), [(refuse("why"), b"400"), (postpone("why"), b"300")])
def test_a_connection_that_is_not_accepted_gets_neither_and_no_reason(
    verdict: Verdict, code: bytes
) -> None:
    frames = reply(asked(b"NULL"), verdict, {"X-Trioreq-Epoch": "42"})
    assert frames[:4] == [b"", b"1.0", b"17", code]
    assert frames[5:] == [b"", b""]
    assert b"why" not in frames[4]
    assert verdict.reason == "why"


def test_a_request_is_read() -> None:
    assert asked(b"NULL") == ZapRequest(
        b"session", b"17", "127.0.0.1", Applicant("NULL", "127.0.0.1")
    )
    assert applicant(b"CURVE", RAW_KEY) == Applicant("CURVE", "127.0.0.1", public_key=KEY.decode())
    assert applicant(b"PLAIN", b"me", b"word") == Applicant(
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
        (b"PLAIN", [b"me", b"\xff"]),
        (b"GSSAPI", [b"me"]),
        (b"", []),
    ],
)
def test_malformed_credentials_have_no_applicant(
    mechanism: bytes, credentials: list[bytes]
) -> None:
    """But the request can be answered, and the refusal logged."""
    assert asked(mechanism, *credentials) == ZapRequest(b"session", b"17", "127.0.0.1", None)


@pytest.mark.parametrize(("position", "value"), [(2, b"2.0"), (4, b"other")])
def test_another_version_or_domain_has_no_applicant(position: int, value: bytes) -> None:
    frames = [*FRAMES, b"NULL"]
    frames[position] = value
    request = request_untrusted(frames, b"trioreq", encode_key)
    assert request == ZapRequest(b"session", b"17", "127.0.0.1", None)


def test_an_address_that_is_not_text_can_be_logged() -> None:
    frames = [*FRAMES, b"NULL"]
    frames[5] = b"\xff1"
    assert request_untrusted(frames, b"trioreq", encode_key).address == r"\xff1"


def test_null_accepts_every_client_and_no_other_mechanism() -> None:
    verdict = AccessRules("NULL").decide(applicant(b"NULL"))
    assert verdict is not None
    assert (verdict.code, verdict.user_id) == (b"200", "")
    for other in (applicant(b"CURVE", RAW_KEY), applicant(b"PLAIN", b"me", b"word"), None):
        verdict = AccessRules("NULL").decide(other)
        assert verdict is not None
        assert verdict.code == b"400"


def test_an_allow_list_accepts_its_keys() -> None:
    allow = trioreq.AllowList({KEY.decode(): "alice"})
    rules = AccessRules("CURVE", allow)
    verdict = rules.decide(applicant(b"CURVE", RAW_KEY))
    assert verdict is not None
    assert (verdict.code, verdict.user_id, verdict.public_key) == (b"200", "alice", KEY.decode())
    stranger = rules.decide(applicant(b"CURVE", bytes(32)))
    assert stranger is not None
    assert stranger.code == b"400"
    allow.replace({})
    verdict = rules.decide(applicant(b"CURVE", RAW_KEY))
    assert verdict is not None
    assert verdict.code == b"400"


def test_a_connection_may_stay_while_its_key_is_the_same_users() -> None:
    allow = trioreq.AllowList({KEY.decode(): "alice"})
    rules = AccessRules("CURVE", allow)
    alice = trioreq.Peer(1, "127.0.0.1", "REQ", user_id="alice", public_key=KEY.decode())
    assert rules.still_accept(alice)
    allow.replace({KEY.decode(): "bob"})
    assert not rules.still_accept(alice)
    allow.replace({})
    assert not rules.still_accept(alice)
    assert AccessRules("NULL").still_accept(alice)


@pytest.mark.parametrize(
    ("mechanism", "credentials"),
    [("NULL", []), ("CURVE", [RAW_KEY]), ("PLAIN", [b"me", b"word"])],
)
def test_admit_is_asked_about_every_applicant_of_the_mechanism(
    mechanism: Mechanism, credentials: list[bytes]
) -> None:
    async def admit(_: Applicant) -> str:
        return ""

    rules = AccessRules(mechanism, admit=admit)
    assert rules.decide(applicant(mechanism.encode(), *credentials)) is None
    for other in (
        applicant(b"GSSAPI", b"me"),
        Applicant("PLAIN" if mechanism == "NULL" else "NULL", ""),
    ):
        verdict = rules.decide(other)
        assert verdict is not None
        assert verdict.code == b"400"


@pytest.mark.parametrize(
    ("mechanism", "credentials"), [("CURVE", [RAW_KEY]), ("PLAIN", [b"me", b"word"])]
)
def test_rules_without_a_decision_refuse_every_client(
    mechanism: Mechanism, credentials: list[bytes]
) -> None:
    verdict = AccessRules(mechanism).decide(applicant(mechanism.encode(), *credentials))
    assert verdict is not None
    assert verdict.code == b"400"


def test_an_applicant_does_not_show_its_password() -> None:
    shown = applicant(b"PLAIN", b"me", SECRET.encode())
    assert shown is not None
    assert shown.password == SECRET
    assert SECRET not in repr(shown)
    assert SECRET not in repr(asked(b"PLAIN", b"me", SECRET.encode()))
