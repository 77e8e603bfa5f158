"""Which connections are held, and which end is logged, in memory.

Deterministic: no kernel, and an autojump clock. `tests/wire/test_cut_off.py` has the causes.
"""

from __future__ import annotations

import pytest
import trio
from support.handlers import Worker
from support.memory import serving
from trio.testing import MockClock, wait_all_tasks_blocked

from trioreq.testing import MemoryNetwork
from trioreq.testing._libzmq import HeldConnection, MemorySockets

SIZE = 1000
LINE = (
    "connection {} from 127.0.0.1 was ended by libzmq in the middle of a message: is a frame "
    "larger than max_message_size (1000 bytes)?"
)


class Holds:
    """How many connections are held.

    Attributes:
        number: Now.
        most: At once.
    """

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.number = self.most = 0
        init, close = HeldConnection.__init__, HeldConnection.close

        def counted(hold: HeldConnection, *args: object) -> None:
            init(hold, *args)  # type: ignore[arg-type]
            self.number += 1
            self.most = max(self.most, self.number)

        def closed(hold: HeldConnection) -> None:
            self.number -= 1
            close(hold)

        monkeypatch.setattr(HeldConnection, "__init__", counted)
        monkeypatch.setattr(HeldConnection, "close", closed)


@pytest.fixture
def holds(monkeypatch: pytest.MonkeyPatch) -> Holds:
    return Holds(monkeypatch)


async def send_too_much(net: MemoryNetwork) -> None:
    net.connect().send(bytes(SIZE + 1))
    await wait_all_tasks_blocked()


async def test_lines_are_bounded_and_say_how_many_there_are_not(
    autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    async with serving(Worker(), max_message_size=SIZE) as net:
        for _ in range(10):
            await send_too_much(net)
        assert caplog.messages == [LINE.format(1)]
        await trio.sleep(1)
        await send_too_much(net)
        more = " (9 more since the last such line)"
        assert caplog.messages == [LINE.format(1), LINE.format(21) + more]
        await trio.sleep(1)
        net.connect().crash()
        client = net.connect()
        await client.request(b"echo")
        client.close()
        await wait_all_tasks_blocked()
        assert len(caplog.messages) == 2


async def test_g5_a_connection_is_held_until_it_ends(
    autojump_clock: MockClock, holds: Holds
) -> None:
    async with serving(Worker(), max_message_size=SIZE) as net:
        clients = [net.connect() for _ in range(10)]
        await wait_all_tasks_blocked()
        assert holds.number == 10
        for client in clients[:5]:
            client.close()
        await send_too_much(net)
        assert holds.number == 5
        [evicted, *_] = net.server._router.connections
        net.server._router.evict(evicted, "a test evicts it")
        assert holds.number == 4
    assert holds.number == 0


async def test_g5_connections_are_held_while_there_are_few_of_them(
    autojump_clock: MockClock, holds: Holds, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A quarter as many as there may be descriptors."""
    monkeypatch.setattr(MemorySockets, "room", 40)
    async with serving(Worker(), max_message_size=SIZE) as net:
        clients = [net.connect() for _ in range(10)]
        await wait_all_tasks_blocked()
        assert holds.number == 10
        clients.append(net.connect())
        await wait_all_tasks_blocked()
        assert holds.number == 0
        clients.pop().close()
        clients.pop().close()
        clients.append(net.connect())
        await wait_all_tasks_blocked()
        assert holds.number == 1
        assert holds.most == 10
        for client in clients:
            assert await client.request(b"echo") == [b"re:echo"]


async def test_g5_a_connection_that_is_accepted_while_the_server_stops_is_not_held(
    autojump_clock: MockClock, holds: Holds
) -> None:
    async with serving(Worker()) as net:
        net.connect()
        await wait_all_tasks_blocked()
        net.server.stop()
        assert holds.number == 0
        net.connect()
        net.server._router.read_monitor()
        assert holds.number == 0
