"""Connections that fail their handshake or are never heard, as the server sees them.

Deterministic: no kernel, and an autojump clock. The kernel's counts are made up.
"""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
import trio
from support.handlers import Worker
from support.memory import serving
from trio.testing import MockClock, wait_all_tasks_blocked

import trioreq
from trioreq._protocol.frame_sizes import GREETING
from trioreq._protocol.handshakes import Failure
from trioreq._protocol.unheard import SIZES
from trioreq._server.guard import COMPLETE
from trioreq._server.handshake_log import HandshakeLog
from trioreq._transport import server_sockets
from trioreq._transport.linux import KernelCounters
from trioreq.testing._libzmq import MemorySockets

HANDSHAKE_TIME = server_sockets.HANDSHAKE
NULL = SIZES["NULL"]
HANDSHAKE = 110  # bytes that a client sends in its handshake


def lines(caplog: pytest.LogCaptureFixture) -> list[tuple[int, str]]:
    return [(record.levelno, record.getMessage()) for record in caplog.records]


async def test_a_connection_that_ends_in_its_handshake_is_counted_once(
    autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    async with serving(Worker()) as net:
        net.connect().crash()
        await wait_all_tasks_blocked()
        assert net.server.statistics().handshakes_failed == 1
        client = net.connect()
        await wait_all_tasks_blocked()
        client.crash()
        await wait_all_tasks_blocked()
        assert net.server.statistics().handshakes_failed == 1
        text = "no handshake with an unknown address: the peer closed the connection"
        assert (logging.DEBUG, text) in lines(caplog)
        assert not [text for level, text in lines(caplog) if level > logging.INFO]


async def test_a_refused_connection_is_not_counted_as_failed(autojump_clock: MockClock) -> None:
    async def admit(applicant: trioreq.Applicant) -> None:
        return None

    async with serving(Worker(), admit=admit) as net:
        net.connect()
        await wait_all_tasks_blocked()
        assert net.server.statistics().refused == 1
        assert net.server.statistics().handshakes_failed == 0
    async with serving(Worker(), max_connections=1) as net:
        net.connect()
        net.connect()
        await wait_all_tasks_blocked()
        assert net.server.statistics().refused == 1
        assert net.server.statistics().handshakes_failed == 0


async def test_failures_are_logged_once_a_second_with_a_count(
    autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    failed = HandshakeLog().failed
    for _ in range(3):
        failed("10.0.0.7", Failure.FOREIGN)
    failed("", Failure.LEFT)
    await trio.sleep(1)
    failed("", Failure.KEYS)
    assert lines(caplog) == [
        (logging.WARNING, f"handshake with 10.0.0.7 failed: {Failure.FOREIGN.value}"),
        (
            logging.WARNING,
            "handshake with an unknown address (the last known one was 10.0.0.7) failed: "
            f"{Failure.KEYS.value} (2 more since the last such line)",
        ),
    ]


class Counters(KernelCounters):
    """What each connection has sent, as the test says, and PINGs when it is time.

    Attributes:
        messages: Bytes of messages, by descriptor.
        late: When the last command of a handshake comes, by descriptor.
        interval: Seconds between two PINGs, all of which are answered.
    """

    def __init__(self) -> None:
        self.messages: dict[int, int] = {}
        self.late: dict[int, float] = {}
        self.interval = 10.0

    def memory(self) -> int:
        return 0

    def received(self, descriptor: int) -> int:
        if trio.current_time() < self.late.get(descriptor, 0):
            return GREETING
        return HANDSHAKE + self.messages.get(descriptor, 0)

    def traffic(self, descriptor: int) -> tuple[int, int] | None:
        pings = int(trio.current_time() / self.interval)
        return self.received(descriptor) + pings * NULL.pong, NULL.sent + pings * NULL.ping


@pytest.fixture
def counters(monkeypatch: pytest.MonkeyPatch) -> Counters:
    counters = Counters()
    monkeypatch.setattr(MemorySockets, "counters", counters)
    return counters


@asynccontextmanager
async def within(seconds: float) -> AsyncIterator[None]:
    """A short limit: the guard looks four times a second, also when the clock jumps."""
    with trio.fail_after(seconds):
        yield


async def test_a_connection_whose_routing_id_is_taken_is_ended_once_it_has_sent(
    autojump_clock: MockClock, counters: Counters, caplog: pytest.LogCaptureFixture
) -> None:
    async with serving(Worker()) as net, within(200):
        first = net.connect(routing_id=b"A")
        assert await first.request(b"echo") == [b"re:echo"]
        second = net.connect(routing_id=b"A")
        await trio.sleep(100)
        assert second.connected  # it has sent nothing
        second.send(b"echo")
        counters.messages[second.connection.descriptor] = 8
        with pytest.raises(trio.BrokenResourceError, match="shut the connection down"):
            await second.receive()
        assert await first.request(b"echo") == [b"re:echo"]
        assert net.server.statistics().evicted == 1
    (line,) = [text for _, text in lines(caplog)]
    assert line.startswith("evicted connection 2 from 127.0.0.1: its messages are not delivered")


async def test_a_client_whose_line_was_cut_is_served_when_it_connects_again(
    autojump_clock: MockClock, counters: Counters
) -> None:
    async with serving(Worker(), heartbeat=15) as net, within(200):
        old = net.connect(routing_id=b"A")
        assert await old.request(b"echo") == [b"re:echo"]
        net.cut(old)
        new = net.connect(routing_id=b"A")
        await wait_all_tasks_blocked()  # it sends nothing before its handshake is over
        new.send(b"echo")
        counters.messages[new.connection.descriptor] = 8
        with pytest.raises(trio.BrokenResourceError):
            await new.receive()
        await trio.sleep(0.1)  # as a client of libzmq does before it connects again
        assert await net.connect(routing_id=b"A").request(b"echo") == [b"re:echo"]


@pytest.mark.parametrize("own_id", [True, False])
async def test_a_zap_reply_waits_for_handshakes_while_a_client_has_an_explicit_routing_id(
    autojump_clock: MockClock, counters: Counters, own_id: bool
) -> None:
    async with serving(Worker()) as net, within(200):
        first = net.connect(routing_id=b"A" if own_id else None)
        assert await first.request(b"echo") == [b"re:echo"]
        begun = trio.current_time()
        second, third = net.connect(), net.connect()
        for client, seconds in ((second, 0.05), (third, 1e9)):
            counters.late[client.connection.descriptor] = begun + seconds
        assert await second.request(b"echo") == [b"re:echo"]
        assert await third.request(b"echo") == [b"re:echo"]
        waited = trio.current_time() - begun
        assert (COMPLETE <= waited < 3 * COMPLETE) if own_id else waited == 0
        begun = trio.current_time()
        assert await net.connect().request(b"echo") == [b"re:echo"]  # it is not waited for again
        assert trio.current_time() == begun


async def test_a_connection_whose_message_is_read_just_then_is_not_ended(
    autojump_clock: MockClock, counters: Counters
) -> None:
    async with serving(Worker()) as net, within(200):
        client = net.connect()
        await wait_all_tasks_blocked()
        counters.messages[client.connection.descriptor] = 8
        guard = net.server._guard
        assert guard is not None
        judge = guard._unheard.is_unheard

        def judge_and_send(*args: object) -> bool:
            mute = judge(*args)  # type: ignore[arg-type]
            if mute:
                client.send(b"echo")
            return mute

        guard._unheard.__dict__["is_unheard"] = judge_and_send
        assert await client.receive() == [b"re:echo"]
        assert net.server.statistics().evicted == 0


async def test_a_failure_is_counted_though_an_idle_client_came_at_the_same_time(
    autojump_clock: MockClock,
) -> None:
    """One success is reported, without the connection; the idle one is open for long enough."""
    async with serving(Worker()) as net:
        idle, foreign = net.connect(), net.connect()
        net.cut(idle)
        net.cut(foreign)
        await wait_all_tasks_blocked()
        foreign.connection.through = True  # so that only its end is reported
        net.mend(idle)
        foreign.connection.end_at_server()
        await wait_all_tasks_blocked()
        assert net.server.statistics().handshakes_failed == 0  # it may have been this one
        await trio.sleep(2 * HANDSHAKE_TIME + 1)
        assert await net.connect().request(b"echo") == [b"re:echo"]  # the monitor is read
        assert net.server.statistics().handshakes_failed == 1


async def test_a_failure_is_counted_though_an_idle_client_was_evicted_meanwhile(
    autojump_clock: MockClock,
) -> None:
    async with serving(Worker()) as net:
        idle, foreign = net.connect(), net.connect()
        net.cut(idle)
        net.cut(foreign)
        await wait_all_tasks_blocked()
        foreign.connection.through = True  # so that only its end is reported
        net.mend(idle)
        await wait_all_tasks_blocked()
        router = net.server._router
        router.evict(next(iter(router.connections)), "a test")
        foreign.connection.end_at_server()
        await wait_all_tasks_blocked()
        assert not idle.connected
        assert net.server.statistics().handshakes_failed == 1
