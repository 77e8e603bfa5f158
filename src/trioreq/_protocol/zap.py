"""ZAP: libzmq's requests for access control of connections, and the replies (RFC 27)."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Literal

from .addresses import canonical

Mechanism = Literal["NULL", "PLAIN", "CURVE"]

KEY_SIZE = 32  # bytes of a CURVE key


@dataclass(frozen=True, slots=True)
class Applicant:
    """A connection that asks to be accepted, as `serve`'s `admit` sees it.

    Its ``repr`` does not show the password.
    """

    mechanism: Mechanism
    """The security mechanism; ``NULL`` for no authentication."""
    address: str
    """Its IP address, or ``localhost:uid:gid:pid`` (ipc). An IPv4 address is written as such on an
    IPv6 socket too, and a link-local one has its zone: ``fe80::1%eth0``."""
    public_key: str = ""
    """Its public key, authenticated by CURVE; empty without CURVE."""
    username: str = ""
    """Its user name; empty without PLAIN."""
    password: str = field(default="", repr=False)
    """Its password; empty without PLAIN."""


Admit = Callable[[Applicant], Awaitable[str | None]]
"""Returns an applicant's user id, which may be empty; None refuses it."""


@dataclass(frozen=True, slots=True)
class ZapRequest:
    """libzmq's request about one connection.

    Attributes:
        sender: The routing id for the reply.
        request_id: Repeated in the reply.
        address: The client's address.
        applicant: None if the request is invalid, and must be refused.
    """

    sender: bytes
    request_id: bytes
    address: str
    applicant: Applicant | None


@dataclass(frozen=True, slots=True)
class Verdict:
    """The decision about an applicant.

    Attributes:
        code: The ZAP status code.
        text: The ZAP status text.
        user_id: The applicant's user id.
        public_key: The applicant's public key.
        reason: The log's reason for a refusal, without secrets.
    """

    code: bytes
    text: bytes
    user_id: str = ""
    public_key: str = ""
    reason: str = ""


def accept(user_id: str, public_key: str) -> Verdict:
    """Accept the applicant."""
    return Verdict(b"200", b"OK", user_id, public_key)


def refuse(reason: str) -> Verdict:
    """Refuse the applicant. libzmq sends an ERROR, and a stock client does not connect again."""
    return Verdict(b"400", b"access denied", reason=reason)


def postpone(reason: str) -> Verdict:
    """Decide later. libzmq sends nothing, and the handshake times out."""
    return Verdict(b"300", b"try again later", reason=reason)


def request_untrusted(
    frames: Sequence[bytes], domain: bytes, encode_key: Callable[[bytes], str]
) -> ZapRequest:
    """Parse a request of libzmq.

    Args:
        frames: Sender, empty, version, request id, domain, address, routing id, mechanism,
            credentials.
        domain: The ZAP domain that is served.
        encode_key: Encodes a CURVE key as text (Z85).
    """
    sender, _, version, request_id, its_domain, raw_address, _, mechanism, *credentials = frames
    address = canonical(raw_address.decode(errors="backslashreplace"))
    applicant = None
    if (version, its_domain) == (b"1.0", domain):
        match mechanism, credentials:
            case b"NULL", []:
                applicant = Applicant("NULL", address)
            case b"CURVE", [key] if len(key) == KEY_SIZE:
                applicant = Applicant("CURVE", address, public_key=encode_key(key))
            case b"PLAIN", [username, password]:
                with suppress(UnicodeDecodeError):
                    applicant = Applicant(
                        "PLAIN", address, username=username.decode(), password=password.decode()
                    )
    return ZapRequest(sender, request_id, address, applicant)


def reply(request: ZapRequest, verdict: Verdict, properties: dict[str, str]) -> list[bytes]:
    """The frames of a reply, behind the sender.

    Args:
        request: The request.
        verdict: The decision.
        properties: libzmq attaches these to each message of the connection, if it is accepted.
    """
    metadata = b""
    if verdict.code == b"200":
        metadata = b"".join(
            _property(name.encode(), value.encode()) for name, value in properties.items()
        )
    user_id = verdict.user_id.encode()
    return [b"", b"1.0", request.request_id, verdict.code, verdict.text, user_id, metadata]


def _property(name: bytes, value: bytes) -> bytes:
    """One property, as ZMTP encodes metadata."""
    return b"%c%b%b%b" % (len(name), name, len(value).to_bytes(4, "big"), value)
