"""The ZAP handler: libzmq sends it a request before it accepts a connection (ZeroMQ RFC 27).

It does so with the NULL mechanism too, since the ROUTER has a ZAP domain. The properties in the
reply are attached to every message of that connection.
"""

from __future__ import annotations

from collections.abc import Sequence

import trio
from zmq.utils import z85

from .._protocol.zap import (
    Admit,
    Applicant,
    Mechanism,
    Verdict,
    ZapRequest,
    accept,
    refuse,
    reply,
    request_untrusted,
)
from .._request import Peer
from .allow_list import AllowList
from .server_sockets import DOMAIN
from .zsocket import ZSocket

EPOCH = "X-Trioreq-Epoch"
PUBLIC_KEY = "X-Trioreq-Key"


class AccessRules:
    """Decides which connections are accepted.

    Args:
        mechanism: The server's security mechanism.
        allow: The keys that are accepted, with CURVE.
        admit: Decides instead. With NULL, and neither of the two, every connection is accepted.
    """

    def __init__(
        self, mechanism: Mechanism, allow: AllowList | None = None, admit: Admit | None = None
    ) -> None:
        self.mechanism = mechanism
        self.allow = allow
        self.admit = admit

    def decide(self, applicant: Applicant | None) -> Verdict | None:
        """The verdict; None if `admit` decides."""
        if applicant is None or applicant.mechanism != self.mechanism:
            return refuse("malformed credentials, or another mechanism than the server's")
        if self.admit is not None:
            return None
        if self.allow is not None:
            user_id = self.allow.get(applicant.public_key)
            if user_id is None:
                return refuse(f"its key is not on the allow-list: {applicant.public_key}")
            return accept(user_id, applicant.public_key)
        if self.mechanism == "NULL":
            return accept("", "")
        return refuse("there is no allow-list")

    def still_accept(self, peer: Peer) -> bool:
        """Whether a connection that was accepted may stay."""
        return self.allow is None or self.allow.get(peer.public_key) == peer.user_id


class ZapHandler:
    """Reads libzmq's requests and sends the replies.

    Args:
        socket: Receives the requests.
    """

    def __init__(self, socket: ZSocket) -> None:
        self._socket = socket

    def read(self) -> list[ZapRequest]:
        """All requests that have arrived."""
        requests = []
        while (frames := self._socket.receive()) is not None:
            requests.append(request_untrusted(frames, DOMAIN, _encode_key))
        return requests

    async def wait(self) -> None:
        """Wait, after `read`, until there may be a request."""
        if self._socket.readable():
            await trio.lowlevel.checkpoint()
        else:
            await self._socket.wait()

    def reply(self, verdicts: Sequence[tuple[ZapRequest, Verdict]], epoch: int) -> None:
        """Send the replies; accepted connections have the epoch in each message."""
        for request, verdict in verdicts:
            # The key also if it is empty: otherwise the peer could set the property itself.
            properties = {EPOCH: str(epoch), PUBLIC_KEY: verdict.public_key}
            self._socket.send_to(request.sender, reply(request, verdict, properties))
        self._socket.nudge()


def _encode_key(key: bytes) -> str:
    text: bytes = z85.encode(key)
    return text.decode()
