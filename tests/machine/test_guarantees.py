"""The guarantees, as a state machine that drives the whole server on the network in memory.

Deterministic: the seed of trio's schedule is drawn with the example, time is a clock that jumps,
and in CI the examples are the same each time. ``TRIOREQ_MACHINE_EXAMPLES=100000`` looks for new
ones instead. docs/testing-trioreq.md has more.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import pytest
import trio
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)
from support.stepped import Stepped
from support.story import Guest, Story
from support.watched import WatchedNetwork

import trioreq
from trioreq._protocol import envelope as wire
from trioreq._protocol.envelope import Header
from trioreq._server import reader, tasks
from trioreq._transport import router
from trioreq.testing import _network
from trioreq.testing._schedule import scheduled

MOST_GUESTS = 5
LONG = 1000  # seconds in which everything ends that has an end
PROGRAMS = [
    "now",
    "wait",
    "yield",
    "sleep 1",
    "sleep 3",
    "fail",
    "refuse",
    "garbage",
    "deaf 2",
    "slow 2",
    "swallow",
    "group",
    "dirty",
    "crash",
]
WHICH = st.integers(0, MOST_GUESTS - 1)


class Machine(RuleBasedStateMachine):
    """Clients, the passing of time, and the end of the server."""

    begun = 0
    """Examples, in this process."""
    found: int | None = None
    """The first of them that has found a fault."""

    run: Stepped | None = None

    # The run, from its beginning to its end.

    @initialize(
        seed=st.integers(0, 2**16),
        plain=st.sampled_from([False, False, True]),
        slots=st.sampled_from([1, 1, 2, 3]),
        queued=st.integers(0, 3),
        timeout=st.sampled_from([None, None, 5]),
        heartbeat=st.sampled_from([None, 4]),
        send_queue=st.integers(1, 4),
        admission=st.sampled_from([None, None, 1]),
        ending=st.sampled_from([None, 0, 1, 3]),
        crowd=st.lists(st.sampled_from(["DEALER", "REQ"]), max_size=3),
    )
    def start(
        self,
        seed: int,
        plain: bool,
        slots: int,
        queued: int,
        timeout: float | None,
        heartbeat: float | None,
        send_queue: int,
        admission: float | None,
        ending: float | None,
        crowd: list[str],
    ) -> None:
        Machine.begun += 1
        self.stopping = False
        self.later_tasks = 0
        self.over = False
        self.story = Story(slots, queued, timeout, plain=plain, admits=admission is not None)
        self.plain = plain
        self.ending = ending
        options: dict[str, Any] = {
            "max_in_flight": slots,
            "max_queued_per_client": queued,
            "timeout": timeout,
            "heartbeat": heartbeat,
            "send_queue": send_queue,
        }
        if admission is not None:

            async def admit(applicant: trioreq.Applicant) -> str:
                await trio.sleep(admission)
                return ""

            options["admit"] = admit
        self.run = Stepped(partial(self._main, seed, options))
        for socket_type in crowd:
            self._connect(socket_type=socket_type)
        self._settle()

    async def _main(
        self, seed: int, options: dict[str, Any], do_steps: Callable[[], Awaitable[None]]
    ) -> None:
        with scheduled(seed):
            async with trio.open_nursery() as nursery:
                self.nursery = nursery
                self.net = self.story.net = WatchedNetwork(nursery, self.story)
                self.scope = trio.CancelScope()
                self.tasks = trio.lowlevel.current_statistics().tasks_living
                with pytest.MonkeyPatch.context() as patch:
                    patch.setattr(_network, "IN_LIBZMQ", 1)  # messages; the others wait in ours
                    self.story.server = await nursery.start(self._serve, options)
                await do_steps()
                nursery.cancel_scope.cancel()

    async def _serve(
        self, options: dict[str, Any], task_status: trio.TaskStatus[trioreq.Server]
    ) -> None:
        handler = self.story.handle_plain if self.plain else self.story.handle
        with self.scope:
            await trioreq.serve(handler, self.net, task_status=task_status, **options)
        self.over = True

    def teardown(self) -> None:
        if self.run is None:
            return
        try:
            if self._serving:
                self._come_to_an_end()
        finally:
            self.run.end()

    def _come_to_an_end(self) -> None:
        """The server is drained; or what waits goes on, what is long passes, and then it stops."""
        if self.ending is not None and self.story.grace is None:
            self.drain(self.ending)
            self.settle()
            for guest in self.story.present():
                if self._serving and not guest.stalled:
                    self.story.ask(guest, "now")
        else:
            self.clear_the_way()
            self.release_all()
            self.pass_time(LONG)
            assert not self.story.server.statistics().in_flight
            if self._serving:
                self.stop()
        self.pass_time(LONG)
        assert self.over

    @property
    def _serving(self) -> bool:
        return not self.stopping and not self.story.server._nursery.cancel_scope.cancel_called

    @property
    def _accepting(self) -> bool:
        """Whether a client can connect: a server that drains refuses connections."""
        return self._serving and self.story.grace is None

    def _present(self, which: int) -> Guest | None:
        present = self.story.present()
        return present[which % len(present)] if present else None

    # What clients do.

    def _connect(self, **options: Any) -> Guest:
        client = self.net.connect(**options)
        return self.story.join(client, explicit=options.get("routing_id") is not None)

    @precondition(lambda self: self._accepting and len(self.story.present()) < MOST_GUESTS)
    @rule(
        routing_id=st.sampled_from([None, None, b"A", b"B"]),
        socket_type=st.sampled_from(["DEALER", "REQ"]),
        held_back=st.sampled_from([False, False, False, True]),
        program=st.none() | st.sampled_from(PROGRAMS),
    )
    def connect(
        self,
        routing_id: bytes | None,
        socket_type: str,
        held_back: bool,
        program: str | None,
    ) -> None:
        """Connect, on the lowest descriptor that is free, and perhaps speak at once."""
        guest = self._connect(routing_id=routing_id, socket_type=socket_type)
        if program is not None:
            self.story.ask(guest, program)
        if held_back:
            self._cut(guest)

    @precondition(lambda self: self._accepting)
    @rule(which=WHICH, program=st.sampled_from(PROGRAMS), last=st.booleans())
    def come_back(self, which: int, program: str, last: bool) -> None:
        """Crash, perhaps with a last word, and come back with the same descriptor and id."""
        guest = self._present(which)
        if guest is None or guest.cut or guest.stalled:
            return
        if last:
            self.story.ask(guest, program)
        guest.client.crash()
        if not guest.connection.ended:
            return  # its end is on its way
        again = self._connect(
            routing_id=guest.connection.wanted,
            socket_type=guest.client.socket_type,
            reuse=guest.client,
        )
        self.story.ask(again, program)

    @precondition(lambda self: self._serving)
    @rule(
        which=WHICH,
        programs=st.lists(st.sampled_from(PROGRAMS), min_size=1, max_size=4),
        bare=st.booleans(),
        knock=st.booleans(),
    )
    def ask(
        self,
        which: int,
        programs: list[str],
        bare: bool,
        knock: bool,
    ) -> None:
        """Send requests, perhaps just when another connects: the ZAP handler may read them."""
        guest = self._present(which)
        if guest is None or guest.stalled:
            return
        if knock and self._accepting and len(self.story.present()) < MOST_GUESTS:
            self._connect()
        for program in programs:
            self.story.ask(guest, program, bare=bare)

    @precondition(lambda self: self._serving)
    @rule(
        which=WHICH,
        programs=st.lists(st.sampled_from(PROGRAMS), min_size=1, max_size=3),
        seconds=st.sampled_from([0, 1, 2, 9]),
        hello=st.booleans(),
        direct=st.booleans(),
    )
    def ask_with_header(
        self,
        which: int,
        programs: list[str],
        seconds: int,
        hello: bool,
        direct: bool,
    ) -> None:
        guest = self._present(which)
        if guest is None or guest.stalled:
            return
        for program in programs:
            correlation = len(self.story.asked) + 1 + (wire.WANTS_HELLO if hello else 0)
            header = Header(wire.REQUEST, correlation, seconds * 1000)
            self.story.ask(guest, program, header, direct=direct)

    @precondition(lambda self: self._serving)
    @rule(which=st.integers(0, 7))
    def take_back(self, which: int) -> None:
        """Cancel a request, one that has not ended if there is one."""
        able = [
            asked
            for asked in self.story.asked
            if asked.header is not None and asked.guest.client.connected
            if not asked.guest.stalled
        ]
        able = [asked for asked in able if asked.returned is None and not asked.answers] or able
        if able:
            self.story.take_back(able[-1 - which % len(able)])

    @precondition(lambda self: self._serving)
    @rule(which=WHICH)
    def say_nonsense(self, which: int) -> None:
        guest = self._present(which)
        if guest is not None and not guest.stalled:
            guest.client.send_raw(b"nonsense")

    @precondition(lambda self: self._serving)
    @rule(which=WHICH)
    def crash(self, which: int) -> None:
        guest = self._present(which)
        if guest is not None:
            guest.client.crash()

    @precondition(lambda self: self._serving)
    @rule(which=WHICH, program=st.sampled_from(PROGRAMS), reused=st.booleans())
    def end_before_the_last_word(
        self,
        which: int,
        program: str,
        reused: bool,
    ) -> None:
        """Its disconnect is reported before its last message is read; others may come between."""
        guest = self._present(which)
        if guest is None or guest.cut or guest.stalled or guest.connection.routing_id is None:
            return
        guest.connection.keep_unflushed()
        self.story.ask(guest, program)
        guest.client.crash()
        if guest.connection.ended and reused and self._accepting:
            self._connect(reuse=guest.client)

    @precondition(lambda self: self._serving)
    @rule()
    def flush(self) -> None:
        for guest in self.story.guests:
            guest.connection.flush()

    @precondition(lambda self: self._serving)
    @rule(which=WHICH, after=st.integers(1, 2))
    def crash_meanwhile(self, which: int, after: int) -> None:
        """Crash while the server reads a batch."""
        guest = self._present(which)
        if guest is not None:
            self.net.meanwhile.extend([lambda: None] * (after - 1))
            self.net.meanwhile.append(guest.client.crash)

    @precondition(lambda self: self._accepting)
    @rule(which=WHICH)
    def take_over(self, which: int) -> None:
        """Connect with the routing id of a live client, and send when that one is killed.

        In the same breath its reply is ready.
        """
        guest = self._present(which)
        if guest is None or guest.connection.wanted is None or guest.cut or guest.stalled:
            return
        self.story.ask(guest, "wait")
        heir = self._connect(routing_id=guest.connection.wanted, socket_type="DEALER")
        self._cut(heir)
        self._settle()
        guest.client.crash()
        self._cut(heir)
        for asked in guest.asked:
            asked.release.set()

    @precondition(lambda self: self._serving and len(self.story.present()) < MOST_GUESTS)
    @rule(
        which=WHICH, seconds=st.sampled_from([1, 2, 3]), what=st.sampled_from(["connect", "crash"])
    )
    def later(self, which: int, seconds: float, what: str) -> None:
        """Do something when time has passed, and other things may happen just then."""

        async def act() -> None:
            await trio.sleep(seconds)
            self.later_tasks -= 1
            guest = self._present(which)
            if not self._serving:
                return
            if what == "connect":
                if self._accepting:
                    self.story.ask(self._connect(), "now")
            elif guest is not None:
                guest.client.crash()

        self.later_tasks += 1
        self.nursery.start_soon(act)

    @precondition(lambda self: self._serving)
    @rule(which=WHICH, programs=st.lists(st.sampled_from(PROGRAMS), max_size=4))
    def stall_or_resume(self, which: int, programs: list[str]) -> None:
        """Stop, perhaps after some requests; or go on."""
        guest = self._present(which)
        if guest is None:
            return
        if not guest.stalled:
            for program in programs:
                self.story.ask(guest, program)
        guest.slow = True
        guest.stalled = not guest.stalled
        if guest.stalled:
            guest.client.stall()
        else:
            guest.client.resume()

    def _cut(self, guest: Guest) -> None:
        guest.slow = True
        guest.cut = not guest.cut
        if guest.cut:
            self.net.cut(guest.client)
        else:
            self.net.mend(guest.client)

    @precondition(lambda self: self._serving)
    @rule(which=WHICH)
    def cut_or_mend(self, which: int) -> None:
        guest = self._present(which)
        if guest is not None:
            self._cut(guest)

    @precondition(lambda self: self._serving)
    @rule(which=WHICH, seconds=st.sampled_from([0, 1]))
    def delay(self, which: int, seconds: int) -> None:
        guest = self._present(which)
        if guest is not None:
            guest.slow = True
            self.net.delay(guest.client, seconds)

    def clear_the_way(self) -> None:
        self.flush()
        for guest in self.story.guests:
            if guest.stalled and guest.client.connected:
                guest.stalled = False
                guest.client.resume()
            if guest.cut:
                self._cut(guest)

    # What handlers wait for, and what passes.

    @rule(which=st.integers(0, 7))
    def release(self, which: int) -> None:
        waiting = [a for a in self.story.asked if a.started is not None and a.returned is None]
        if waiting:
            waiting[which % len(waiting)].release.set()

    def release_all(self) -> None:
        for asked in self.story.asked:
            asked.release.set()

    @rule(passes=st.integers(1, 5))
    def go_on(self, passes: int) -> None:
        """Let trio make a few passes: in between is where things can go wrong."""

        async def step() -> None:
            for _ in range(passes):
                await trio.lowlevel.checkpoint()

        self._do(step)

    @rule()
    def settle(self) -> None:
        self._settle()

    def _settle(self) -> None:
        self._do(trio.testing.wait_all_tasks_blocked)
        self._check()

    @rule(seconds=st.sampled_from([1, 2, 4, 10]))
    def pass_time(self, seconds: float) -> None:
        async def step() -> None:
            await trio.sleep(seconds)
            await trio.testing.wait_all_tasks_blocked()

        self._do(step)
        self._check()

    def _do(self, step: Callable[[], Awaitable[object]]) -> None:
        assert self.run is not None
        with self._looking():
            self.run.do(step)

    @contextmanager
    def _looking(self) -> Iterator[None]:
        """Remember which example was the first to find a fault."""
        try:
            yield
        except Exception:
            if Machine.found is None:
                Machine.found = Machine.begun
            raise

    def _check(self) -> None:
        with self._looking():
            self._see_that_all_is_well()

    def _see_that_all_is_well(self) -> None:
        assert self.story.faults == []
        if self.over:
            inside = trio.lowlevel.current_statistics().tasks_living - self.tasks
            threads = sum(a.started is not None and a.returned is None for a in self.story.asked)
            self.story.check_end(inside - self.later_tasks - (threads if self.plain else 0))
        elif self._serving:
            self.story.check()

    # The end of the server.

    @precondition(lambda self: self._serving and len(self.story.asked) > 3)
    @rule()
    def stop(self) -> None:
        self.stopping = True
        self.scope.cancel()

    @precondition(lambda self: self._serving and len(self.story.asked) > 3)
    @rule(grace=st.sampled_from([0, 1, 3]))
    def drain(self, grace: float) -> None:
        self.story.drain(grace)
        self.nursery.start_soon(self.story.server.drain, grace)

    @precondition(lambda self: self._serving and self.story.grace is not None)
    @rule()
    def follow(self) -> None:
        """Clients that were told to go close their connections, if they wait for nothing."""
        for guest in self.story.present():
            if guest.go_aways and all(asked.answers or asked.over for asked in guest.asked):
                guest.client.close()

    @invariant()
    def nothing_has_gone_wrong(self) -> None:
        if self.run is not None:
            with self._looking():
                assert self.story.faults == []


EXAMPLES = int(os.environ.get("TRIOREQ_MACHINE_EXAMPLES", "0"))
PHASES = [Phase.generate, Phase.shrink]  # to explain traces each line, which takes minutes
if os.environ.get("TRIOREQ_MACHINE_SHRINK") == "no":
    PHASES.remove(Phase.shrink)
PROFILE = settings(
    max_examples=EXAMPLES or 4000,
    derandomize=not EXAMPLES,
    database=None,
    deadline=None,
    phases=PHASES,
    report_multiple_bugs=False,
    stateful_step_count=30,
    suppress_health_check=list(HealthCheck),
)


@pytest.fixture
def _narrow(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is done in one go is little, so that few messages are more than that."""
    monkeypatch.setattr(router, "BATCH", 2 * router.MESSAGE)
    monkeypatch.setattr(reader, "CATCH_UP", 2)
    monkeypatch.setattr(tasks, "IN_A_ROW", 3 * router.MESSAGE)
    monkeypatch.setattr(tasks, "FIRST", router.MESSAGE)
    monkeypatch.setattr(tasks, "BATCH", 2 * router.MESSAGE)
    monkeypatch.setattr(reader, "BATCH", 2 * router.MESSAGE)


@pytest.fixture
def _quiet() -> Iterator[None]:
    """What handlers raise goes to the log, with its traceback, and that takes its time."""
    log = logging.getLogger("trioreq")
    before = log.level
    log.setLevel(logging.CRITICAL)
    yield
    log.setLevel(before)


@pytest.mark.slow
@pytest.mark.usefixtures("_quiet", "_narrow")
def test_the_guarantees() -> None:
    try:
        run_state_machine_as_test(Machine, settings=PROFILE)
    except BaseException as error:
        error.add_note(f"found by example {Machine.found}")
        raise
