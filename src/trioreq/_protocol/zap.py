"""Who asks to come in, and what is said to that, sans-IO (ZeroMQ RFC 27)."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import Literal

from zmq.utils import z85

Mechanism = Literal["NULL", "PLAIN", "CURVE"]


@dataclass(frozen=True, slots=True)
class Applicant:
    """Who asks to come in, as `serve`'s `admit` sees it. Its ``repr`` shows no password."""

    mechanism: Mechanism
    """How it proves who it is: ``NULL`` does not at all."""
    address: str
    """Where it is: an IP address, or ``localhost:uid:gid:pid`` (ipc)."""
    public_key: str = ""
    """With CURVE: the key that it has proved to own."""
    username: str = ""
    """With PLAIN: who it says it is."""
    password: str = field(default="", repr=False)
    """With PLAIN: what it says to prove it."""


Admit = Callable[[Applicant], Awaitable[str | None]]
"""Says who an applicant is, by a user id that may be empty; None refuses it."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """What an applicant is told.

    Attributes:
        code: A status of ZAP.
        text: What it means.
        user_id: Who it is.
        public_key: The key that it owns.
        why: What the log has about a refusal; without anything secret.
    """

    code: bytes
    text: bytes
    user_id: str = ""
    public_key: str = ""
    why: str = ""


def let_in(user_id: str, public_key: str) -> Verdict:
    """Yes."""
    return Verdict(b"200", b"OK", user_id, public_key)


def refuse(why: str) -> Verdict:
    """No. libzmq tells the client, and a stock client does not ask again."""
    return Verdict(b"400", b"you are not let in here", why=why)


def put_off(why: str) -> Verdict:
    """Not now. libzmq tells nothing, and ends it when its time for a handshake is over."""
    return Verdict(b"300", b"ask again later", why=why)


def applicant_untrusted(question: Sequence[bytes], domain: bytes) -> Applicant | None:
    """Read a question of libzmq's; None if it is none that can be answered with yes.

    Args:
        question: Version, request id, domain, address, routing id, mechanism, credentials.
        domain: The one that is served.
    """
    version, _, its_domain, its_address, _routing_id, mechanism, *credentials = question
    if (version, its_domain) != (b"1.0", domain):
        return None
    address = its_address.decode(errors="backslashreplace")
    match mechanism, credentials:
        case b"NULL", []:
            return Applicant("NULL", address)
        case b"CURVE", [key] if len(key) == 32:
            return Applicant("CURVE", address, public_key=z85.encode(key).decode())
        case b"PLAIN", [username, password]:
            try:
                return Applicant(
                    "PLAIN", address, username=username.decode(), password=password.decode()
                )
            except UnicodeDecodeError:
                return None
    return None


def reply(question: Sequence[bytes], verdict: Verdict, properties: dict[str, str]) -> list[bytes]:
    """The answer to a question.

    Args:
        question: What was asked.
        verdict: What is said to it.
        properties: What rides on each message of the connection, if it is let in.
    """
    metadata = b""
    if verdict.code == b"200":
        metadata = b"".join(
            _property(name.encode(), value.encode()) for name, value in properties.items()
        )
    return [b"1.0", question[1], verdict.code, verdict.text, verdict.user_id.encode(), metadata]


def _property(name: bytes, value: bytes) -> bytes:
    """One property as ZMTP's metadata has it."""
    return b"%c%b%b%b" % (len(name), name, len(value).to_bytes(4, "big"), value)
