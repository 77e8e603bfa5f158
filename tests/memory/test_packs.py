"""What becomes of packs that go nowhere."""

from __future__ import annotations

from support.handlers import Worker
from support.memory import serving
from trio.testing import MockClock, wait_all_tasks_blocked

import trioreq
from trioreq import _pack
from trioreq._wire import REQUEST, Header


def pack(messages: int) -> bytes:
    request = (Header(REQUEST, 1).pack(), b"", b"echo")
    numbered = [(Header(REQUEST, number + 1).pack(), *request[1:]) for number in range(messages)]
    return _pack.pack(numbered, _pack.LARGEST, _pack.LARGEST)[0][0]


async def test_each_reply_of_a_pack_that_has_no_room_is_counted(autojump_clock: MockClock) -> None:
    async with serving(Worker(), send_queue=1, heartbeat=None) as net:
        client = net.connect(socket_type="DEALER")
        client.connection.to_client.block("test")
        client.send_raw(pack(3))  # its replies fill the queue
        await wait_all_tasks_blocked()
        client.send_raw(pack(2))
        await wait_all_tasks_blocked()
        stats = net.server.statistics()
        assert stats.replied == 5
        assert stats.replies_sent == 3
        assert stats.replies_dropped == trioreq.RepliesDropped(queue_full=2)
