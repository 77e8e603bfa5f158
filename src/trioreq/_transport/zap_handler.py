"""Who is let in, and with what stamp: the server's ZAP handler (ZeroMQ RFC 27).

libzmq asks before it lets a connection in, with the NULL mechanism too, if the socket has a ZAP
domain. The properties in the answer then ride on every message of that connection.

In doubt the answer is no: an error in the program's own `admit` refuses the one who asked, and
the gate goes on. What an applicant has said to prove itself is never logged.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence

import trio

from .._protocol.zap import (
    Admit,
    Applicant,
    Mechanism,
    Verdict,
    applicant_untrusted,
    let_in,
    put_off,
    refuse,
    reply,
)
from .._request import Peer
from .curve import AllowList, check_user_id
from .server_sockets import DOMAIN
from .zsocket import ZSocket

log = logging.getLogger("trioreq")

STAMP = "X-Trioreq-Stamp"
PUBLIC_KEY = "X-Trioreq-Key"
ADMISSIONS = 100  # calls of `admit` in progress
ADMISSION_TIME = 5.0  # seconds that each may take, of those that a handshake has
LOG_EVERY = 1.0  # seconds between two lines about refusals


class Rules:
    """Who may come in.

    Args:
        mechanism: The one that is served.
        allow: The keys that may come in, with CURVE.
        admit: Decides instead. With NULL, and neither of the two, everybody may come in.
    """

    def __init__(
        self, mechanism: Mechanism, allow: AllowList | None = None, admit: Admit | None = None
    ) -> None:
        self.mechanism = mechanism
        self.allow = allow
        self.admit = admit

    def decide(self, applicant: Applicant | None) -> Verdict | None:
        """What can be said at once; None if `admit` has to be asked."""
        if applicant is None or applicant.mechanism != self.mechanism:
            return refuse("what it says is not understood")
        if self.admit is not None:
            return None
        if self.allow is not None:
            user_id = self.allow.get(applicant.public_key)
            if user_id is None:
                return refuse(f"its key is not on the list: {applicant.public_key}")
            return let_in(user_id, applicant.public_key)
        if self.mechanism == "NULL":
            return let_in("", "")
        return refuse("there is no list")

    def still_hold(self, peer: Peer) -> bool:
        """Whether one that was let in may stay."""
        return self.allow is None or self.allow.get(peer.public_key) == peer.user_id


class Gate:
    """Answers libzmq's questions.

    Args:
        socket: Where they come.
        stamp: Gives the number of the newest monitor event, after it has looked for newer ones.
        rules: Who may come in.

    Attributes:
        refused: How many were not let in.
    """

    def __init__(self, socket: ZSocket, stamp: Callable[[], int], rules: Rules) -> None:
        self.rules = rules
        self.refused = 0
        self._socket = socket
        self._stamp = stamp
        self._asking = 0
        self._unlogged = 0
        self._silent_until = -1.0

    async def run(self, changed: Callable[[], None]) -> None:
        """Answer, until cancelled; call `changed` when some of those inside may not stay."""
        async with trio.open_nursery() as self._nursery:
            if self.rules.allow is not None:
                self._nursery.start_soon(self.rules.allow.watch, changed)
            self._nursery.start_soon(self._socket.keep_reading, self.answer)

    def answer(self) -> None:
        """Answer all that ask now, but those that `admit` is to be asked about.

        The order is what makes presence exact: first the questions, then the events, of which
        the opening of each connection that asks is one, then the answers.
        """
        asked = []
        while (question := self._socket.receive()) is not None:
            asked.append(question)
        answers = []
        for sender, _, *question in asked:
            applicant = applicant_untrusted(question, DOMAIN)
            verdict = self.rules.decide(applicant)
            if verdict is None and self._asking >= ADMISSIONS:
                verdict = put_off(f"{ADMISSIONS} are being asked about already")
            if verdict is not None:
                answers.append((sender, question, verdict))
            elif applicant is not None:
                self._asking += 1
                self._nursery.start_soon(self._ask, sender, question, applicant)
        self._send(answers)

    async def _ask(self, sender: bytes, question: Sequence[bytes], applicant: Applicant) -> None:
        """Answer one when `admit` has decided: the stamp is that of the answer, as always."""
        try:
            verdict = await self._admit(applicant)
        finally:
            self._asking -= 1
        self._send([(sender, question, verdict)])

    async def _admit(self, applicant: Applicant) -> Verdict:
        admit = self.rules.admit
        assert admit is not None  # noqa: S101
        try:
            with trio.move_on_after(ADMISSION_TIME):
                user_id = await admit(applicant)
                if user_id is None:
                    return refuse("admit has said no")
                return let_in(check_user_id(user_id), applicant.public_key)
        except Exception as error:  # noqa: BLE001  # one applicant's, and not the server's end
            # Not its text, nor a traceback: they may show what the applicant has said.
            log.error(  # noqa: TRY400
                "admit has failed, and %s is not let in: %s", applicant.address, _place(error)
            )
            return refuse("admit has failed")
        return put_off(f"admit has not decided within {ADMISSION_TIME:g} s")

    @trio.lowlevel.enable_ki_protection  # half a message would begin the next one
    def _send(self, answers: Sequence[tuple[bytes, Sequence[bytes], Verdict]]) -> None:
        if not answers:
            return
        stamp = str(self._stamp())
        for sender, question, verdict in answers:
            # The key also if there is none: else the peer could name one itself.
            properties = {STAMP: stamp, PUBLIC_KEY: verdict.public_key}
            if verdict.why:
                self.turned_away(question[3].decode(errors="backslashreplace"), verdict.why)
            self._socket.send_to(sender, (b"", *reply(question, verdict, properties)))
        self._socket.nudge()

    def turned_away(self, address: str, why: str) -> None:
        """Count one that is not let in, and log it unless that has just been done."""
        self.refused += 1
        now = trio.current_time()
        if now < self._silent_until:
            self._unlogged += 1
            return
        more = f"; and {self._unlogged} more since the last such line" if self._unlogged else ""
        log.warning("refused %s: %s%s", address, why, more)
        self._unlogged = 0
        self._silent_until = now + LOG_EVERY


def _place(error: BaseException) -> str:
    """What was raised, and where, without what it says."""
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    where = f" at {trace.tb_frame.f_code.co_filename}:{trace.tb_lineno}" if trace else ""
    return f"{type(error).__name__}{where}"
