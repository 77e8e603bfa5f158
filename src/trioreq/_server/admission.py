"""Access control: answers ZAP requests by the access rules, or by the user's `admit`.

An error in `admit` refuses the applicant, and the server goes on. Credentials are never logged.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Awaitable, Callable
from typing import NoReturn

import trio

from .._log import log
from .._protocol.zap import Applicant, Verdict, ZapRequest, accept, postpone, refuse
from .._transport.allow_list import check_user_id
from .._transport.limited_log import LimitedLog
from .._transport.routing_ids import LIMIT
from .._transport.zap_handler import AccessRules, ZapHandler
from .handlers import close_unawaited, ends_program, is_cancelled

ADMISSIONS = 100  # calls of `admit` in progress
PAUSE = 0.0004  # seconds until routing ids are checked again, for the first time
LONGEST_PAUSE = 0.01
ADMISSION_TIME = 5.0  # seconds that each may take, of those that a handshake has


class Admission:
    """Answers the ZAP requests of libzmq.

    Args:
        zap: Receives ZAP requests, and sends the replies.
        rules: The access rules.
        wait_complete: Waits a short time for new handshakes to be complete.
        epoch: Reads all messages and events that have arrived, and returns the epoch.
        routing_ids_free: Whether libzmq has freed the routing ids of connections that have
            disconnected, as far as the server knows them.
        start_task: Starts a named task of the server. If it fails, requests in flight are answered
            before their handlers are cancelled.

    Attributes:
        refused: How many connections were refused.
    """

    def __init__(
        self,
        zap: ZapHandler,
        rules: AccessRules,
        wait_complete: Callable[[], Awaitable[None]],
        epoch: Callable[[], int],
        routing_ids_free: Callable[[], bool],
        start_task: Callable[..., object],
    ) -> None:
        self._zap = zap
        self._rules = rules
        self._wait_complete = wait_complete
        self._epoch = epoch
        self._routing_ids_free = routing_ids_free
        self._start_task = start_task
        self.refused = 0
        self._deciding = 0  # calls of `admit` in progress
        # Those to be sent, and since when.
        self._verdicts: deque[tuple[ZapRequest, Verdict, float]] = deque()
        self._log = LimitedLog()

    @trio.lowlevel.enable_ki_protection
    async def run(self) -> NoReturn:
        """Answer, until cancelled."""
        while True:
            await self._wait_complete()
            self.answer()
            await self._reply_all()
            await self._zap.wait()

    def answer(self) -> bool:
        """Answer all requests that have arrived, except those that `admit` decides.

        The order makes the connection table exact: read the requests, then the events, which
        include the accept of each of these connections, and then reply with that epoch.

        Returns:
            Whether they were answered; otherwise `_reply_all` has to follow.
        """
        for request in self._zap.read():
            verdict = self._rules.decide(request.applicant)
            if verdict is None and self._deciding >= ADMISSIONS:
                verdict = postpone(f"{ADMISSIONS} calls of admit are in progress already")
            if verdict is not None:
                self._decided(request, verdict)
            elif request.applicant is not None:
                self._deciding += 1
                self._start_task("admit", self._ask, request, request.applicant)
        return self._reply()

    async def _ask(self, request: ZapRequest, applicant: Applicant) -> None:
        """Answer a request when `admit` has decided, in the same order."""
        try:
            verdict = await self._admit(applicant)
        finally:
            self._deciding -= 1
        self._decided(request, verdict)
        await self._reply_all()

    def _decided(self, request: ZapRequest, verdict: Verdict) -> None:
        self._verdicts.append((request, verdict, trio.current_time()))

    async def _admit(self, applicant: Applicant) -> Verdict:
        try:
            with trio.move_on_after(ADMISSION_TIME):
                user_id = await self._call_admit(applicant)
                if user_id is None:
                    return refuse("admit refused it")
                if isinstance(user_id, str):
                    return accept(check_user_id(user_id), applicant.public_key)
                close_unawaited(user_id)
                log.error(
                    "admit failed, and %s is refused: it must return a user id, a str that may be "
                    "empty, or None to refuse, got %s",
                    applicant.address,
                    type(user_id).__name__,
                )
                return refuse("admit failed")
        except BaseException as error:
            # The server's own cancellation, and not a Cancelled that `admit` kept from elsewhere.
            own = is_cancelled(error) and trio.current_effective_deadline() == -math.inf
            if own or ends_program(error) or isinstance(error, GeneratorExit):
                raise
            # Without its text and traceback, which may contain the credentials.
            log.error(  # noqa: TRY400
                "admit failed, and %s is refused: %s", applicant.address, _place(error)
            )
            return refuse("admit failed")
        return postpone(f"admit did not decide within {ADMISSION_TIME:g} s")

    @trio.lowlevel.disable_ki_protection  # the user's own code, which Ctrl-C may interrupt
    async def _call_admit(self, applicant: Applicant) -> str | None:
        assert self._rules.admit is not None  # noqa: S101
        return await self._rules.admit(applicant)

    async def _reply_all(self) -> None:
        """Send the verdicts, when the routing ids of closed connections are free.

        There is no event for it: libzmq frees them in commands between its threads.
        """
        pause = PAUSE
        while not self._reply():
            await trio.sleep(pause)
            pause = min(2 * pause, LONGEST_PAUSE)

    def _reply(self) -> bool:
        """Send the verdicts; returns False if some wait, since a routing id is not free yet.

        They wait for `LIMIT` at most. Other clients may always come and go.
        """
        if not self._verdicts:
            return True
        # After the requests were read, and with no checkpoint before `reply`.
        epoch = self._epoch()
        since = math.inf if self._routing_ids_free() else trio.current_time() - LIMIT
        replies = []
        while self._verdicts and self._verdicts[0][2] <= since:
            request, verdict, _ = self._verdicts.popleft()
            if verdict.reason:
                self.count_refused(request.address, verdict.reason)
            replies.append((request, verdict))
        self._zap.reply(replies, epoch)
        return not self._verdicts

    def count_refused(self, address: str, reason: str) -> None:
        """Count a connection that is refused, and log it unless another was logged just now."""
        self.refused += 1
        self._log.warning("refused %s: %s", address, reason)


def _place(error: BaseException) -> str:
    """The type of an exception, and where it was raised, without its text."""
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    where = f" at {trace.tb_frame.f_code.co_filename}:{trace.tb_lineno}" if trace else ""
    return f"{type(error).__name__}{where}"
