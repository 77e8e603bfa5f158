"""Every order in which the events of two connections can come, and the server can see them.

libzmq has a queue for events (the monitor), one for ZAP requests and one for messages (the ROUTER),
and three tasks of the server read them. Nothing says which is read first. So each order is tried:
not by chance but all of them, and their number is held, so that none gets lost. Deterministic: no
task runs, each step is a call.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from types import SimpleNamespace
from typing import Any

import pytest
import trio
import zmq

from trioreq._options import Options
from trioreq._server.pending_request import PendingRequest
from trioreq._server.requests import Requests
from trioreq._server.server import Server
from trioreq._statistics import WorkerStatistics
from trioreq._transport.handshake_events import EVENT
from trioreq._transport.router import BATCH
from trioreq.testing._libzmq import Connection, MemorySockets, Peer
from trioreq.testing._ways import open_timers

Step = tuple[str, Callable[[], None]]


class Workers:
    """Starts requests at once, as worker threads do that are free."""

    abandoned = finishing = killed = died = retired = 0

    def __init__(self, requests: Requests) -> None:
        self._requests = requests
        self.started: list[PendingRequest] = []

    def statistics(self) -> WorkerStatistics:
        return WorkerStatistics(alive=0, spare=0, busy=0)

    def start(self, requests: Sequence[PendingRequest]) -> None:
        for request in requests:
            assert self._requests.begin(request)
            request.scope = trio.CancelScope()
            self.started.append(request)


class Life:
    """One connection: it is accepted, may say one thing, and ends."""

    def __init__(self, world: World, name: bytes, descriptor: int, wanted: bytes | None) -> None:
        self.name = name
        self._world = world
        self._descriptor = descriptor
        self._wanted = wanted
        self.connection: Connection | None = None
        self.said = False
        self.end_told_first = False
        """Whether its disconnect was reported before the message was read from the ROUTER."""

    @property
    def alive(self) -> bool:
        return self.connection is not None and not self.connection.ended

    def can(self) -> Iterator[Step]:
        """What may happen to it next."""
        if self.connection is None:
            if self._descriptor not in self._world.sockets._connections:
                yield "accepted", self._accepted
            return
        if self.connection in self._world.unasked:
            yield "asks", partial(self._world.ask, self.connection)
        if self.connection.unflushed:
            yield "delivered", self.connection.flush
        if self.connection.ended:
            return
        yield "ended", self.connection.end_at_server
        if self.connection.routing_id is not None and not self.said:
            yield "says", self._says
            yield "ended, and says", self._ends_before_it_has_said

    def _accepted(self) -> None:
        self.connection = Connection(
            self._world.sockets,
            Peer(),
            descriptor=self._descriptor,
            socket_type="DEALER",
            wanted=self._wanted,
        )
        self._world.accept(self.connection)

    def _says(self) -> None:
        assert self.connection is not None
        self.said = True
        self.connection.to_server.put([b"", self.name])

    def _ends_before_it_has_said(self) -> None:
        """Its disconnect is reported, and its messages are delivered later."""
        assert self.connection is not None
        self.connection.keep_unflushed()
        self._says()
        self.connection.end_at_server()


class World:
    """libzmq, two connections, and the server's code, without a task that runs it."""

    def __init__(self, *, reused: bool, wanted: bytes | None, asks_later: bool) -> None:
        self.unasked: dict[Connection, Callable[[], None]] = {}
        self._asks_later = asks_later
        self.sockets = MemorySockets(
            open_timers(),
            heartbeat=None,
            max_message_size=100,
            send_queue=10,
            closed=lambda: None,
        )
        self.workers: Workers
        nursery: Any = SimpleNamespace()
        self._server = Server(
            lambda _: b"",
            self.sockets,
            Options(max_in_flight=10, watchdog=None),
            self._make_workers,
            (),
            nursery,
        )
        self._router = self._server._router
        self.lives = [
            Life(self, b"first", 10, wanted),
            Life(self, b"second", 10 if reused else 11, wanted),
        ]
        self._ids: dict[int, bytes] = {}

    def _make_workers(self, *args: Any) -> Workers:
        self.workers = Workers(args[2])
        return self.workers

    def accept(self, connection: Connection) -> None:
        """The monitor reports it, and the ZAP request is sent: at once, or as a step of its own."""
        zap = self.sockets.raw_zap
        if self._asks_later:
            request = zap.request
            zap.__dict__["request"] = lambda *content: self.unasked.update(
                {connection: partial(request, *content)}
            )
            self.sockets.accept(connection)
            del zap.__dict__["request"]
        else:
            self.sockets.accept(connection)

    def ask(self, connection: Connection) -> None:
        self.unasked.pop(connection)()

    def can(self) -> list[Step]:
        """What may happen next; empty at the end of all."""
        first, second = self.lives
        steps = [(f"first {name}", step) for name, step in first.can()]
        if first.connection is not None:
            steps += [(f"second {name}", step) for name, step in second.can()]
        if self._has_accepted_or_disconnected():
            steps.append(("monitor", self._read_monitor))
        if self.sockets.raw_zap.waiting():
            steps.append(("gate", self._ask_gate))
        if self.sockets.raw_router.waiting():
            steps.append(("router", self._read_router))
        steps += [
            (f"reply to the {call.body.decode()}", partial(self._reply, call))
            for call in self.workers.started
        ]
        return steps

    def _has_accepted_or_disconnected(self) -> bool:
        """Whether the monitor reports a connection, and not only the end of a handshake."""
        told = [EVENT.unpack(frames[0])[0] for frames in self.sockets.raw_monitor._messages]
        return zmq.EVENT_ACCEPTED in told or zmq.EVENT_DISCONNECTED in told

    def _read_monitor(self) -> None:
        self._router.read_monitor()
        self._check_the_gone()

    def _ask_gate(self) -> None:
        def answer() -> None:
            assert self._server._admission.answer()

        self._see(answer)

    def _read_router(self) -> None:
        def read() -> None:
            self.workers.start(self._server._reader.read(BATCH) or [])

        self._see(read)

    def _see(self, read: Callable[[], None]) -> None:
        """What is read in a step is started if it is of the living, and else never (G3)."""
        unread = [life for life in self.lives if life.connection and life.connection.unread]
        alive = {life.name for life in unread if life.alive}
        before = len(self.workers.started)
        read()
        assert {call.body for call in self.workers.started[before:]} == alive
        assert not self.sockets.raw_router.waiting()
        for call in self.workers.started[before:]:
            self._check_attribution(call)
        self._check_the_gone()

    def _check_attribution(self, call: PendingRequest) -> None:
        """A request is of the connection that it came on (G2)."""
        connection = self._life(call).connection
        found = call.owner.connection
        assert connection is not None
        assert found.descriptor == connection.descriptor
        assert found.routing_id == connection.routing_id
        assert self._ids.setdefault(call.client.id, call.body) == call.body

    def _check_the_gone(self) -> None:
        """Requests of disconnected clients have ended, and nothing is kept for them (G5)."""
        if self._has_accepted_or_disconnected():
            return
        living = {
            life.connection.descriptor for life in self.lives if life.alive and life.connection
        }
        assert {connection.descriptor for connection in self._router.connections} == living
        for call in self.workers.started:
            assert call.ended is not self._life(call).alive

    def _reply(self, call: PendingRequest) -> None:
        """To its own connection; and not at all, if its disconnect was reported (G1, G2)."""
        self.workers.started.remove(call)
        seen_disconnected = call.ended
        refused = len(self.sockets.raw_router.refused)
        sent = {life.name: self._sent(life) for life in self.lives}
        self._server._requests.finish(call, b"re:" + call.body)
        self._server._queue.release()
        if self._life(call).alive:
            sent[call.body] += 1
        assert {life.name: self._sent(life) for life in self.lives} == sent
        if seen_disconnected:
            assert len(self.sockets.raw_router.refused) == refused
        for life in self.lives:
            for frames in life.connection.sent if life.connection else ():
                assert frames == [b"", b"re:" + life.name]

    def _sent(self, life: Life) -> int:
        return len(life.connection.sent) if life.connection else 0

    def _life(self, call: PendingRequest) -> Life:
        return next(life for life in self.lives if life.name == call.body)

    def check_end(self) -> None:
        stats = self._server.statistics()
        assert stats.requests == sum(life.said for life in self.lives)
        assert stats.connections == stats.in_flight == stats.running == 0
        assert not list(self._router.connections)
        assert not self._router._automatic


def orders(make: Callable[[], World]) -> Iterator[list[str]]:
    """Each order, from the first event to when nothing can happen any more.

    The world is made again for each, and led along the steps that were chosen; the last choice
    that has another way to go takes it next.
    """
    choices: list[int] = []
    while True:
        world = make()
        names: list[str] = []
        widths: list[int] = []
        while steps := world.can():
            depth = len(names)
            if depth == len(choices):
                choices.append(0)
            widths.append(len(steps))
            name, step = steps[choices[depth]]
            names.append(name)
            try:
                step()
            except AssertionError as error:
                error.add_note(f"after {', '.join(names)}")
                raise
        world.check_end()
        yield names
        while choices and choices[-1] + 1 == widths[len(choices) - 1]:
            choices.pop()
        if not choices:
            return
        choices[-1] += 1


CASES = {
    "one descriptor": (True, None, True, 11_528),
    "one descriptor, one routing id": (True, b"id", True, 9_941),
    "two descriptors, the question at once": (False, None, False, 37_236),
    "two descriptors, one routing id, the question at once": (False, b"id", False, 7_326),
}
if "TRIOREQ_MACHINE_EXAMPLES" in os.environ:  # these take minutes
    CASES |= {
        "two descriptors": (False, None, True, 313_187),
        "two descriptors, one routing id": (False, b"id", True, 97_811),
    }


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
async def test_each_order(case: str) -> None:
    reused, wanted, asks_later, number = CASES[case]
    make = partial(World, reused=reused, wanted=wanted, asks_later=asks_later)
    assert sum(1 for _ in orders(make)) == number


async def test_the_orders_are_all_different_and_have_those_that_matter() -> None:
    found = [
        tuple(names) for names in orders(partial(World, reused=True, wanted=None, asks_later=False))
    ]
    assert len(found) == len(set(found)) == 2_668
    before_its_delivery = (
        *("first accepted", "gate", "first ended, and says", "second accepted", "monitor"),
        *("first delivered", "router"),
    )
    assert any(names[: len(before_its_delivery)] == before_its_delivery for names in found)
