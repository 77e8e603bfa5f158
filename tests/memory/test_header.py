"""The header, as the server takes it. The memory transport and an autojump clock."""

from __future__ import annotations

import trio
from support.handlers import Worker
from support.memory import serving
from trio.testing import MockClock, wait_all_tasks_blocked

from trioreq import _wire
from trioreq._wire import Header
from trioreq.testing import MemoryClient


def ask(client: MemoryClient, correlation: int, body: bytes, left: int = 0, kind: int = 0) -> None:
    client.send_raw(Header(kind, correlation, left).pack(), b"", body)


async def hear(client: MemoryClient) -> tuple[Header, list[bytes]]:
    frame, delimiter, *body = await client.receive_raw()
    header = _wire.header_untrusted((frame, delimiter))
    assert header is not None
    assert header.left == _wire.SPEAKS
    return header, body


async def test_a_reply_has_the_correlation_and_its_status(autojump_clock: MockClock) -> None:
    async with serving(Worker()) as net:
        client = net.connect(socket_type="DEALER")
        ask(client, 7, b"echo")
        assert await hear(client) == (Header(0, 7, _wire.SPEAKS), [b"re:echo"])
        ask(client, 8, b"fail")
        header, body = await hear(client)
        assert (header.kind, header.correlation) == (1, 8)
        assert body[:2] == [b"trioreq-error", b"handler-failed"]


async def test_the_hello_comes_before_the_reply(autojump_clock: MockClock) -> None:
    worker = Worker()
    async with serving(worker) as net:
        client = net.connect(socket_type="DEALER")
        ask(client, 7 | _wire.WANTS_HELLO, b"wait")
        assert await hear(client) == (Header(0, _wire.WANTS_HELLO, _wire.SPEAKS), [b""])
        worker.release.set()
        header, body = await hear(client)
        assert (header.correlation, body) == (7 | _wire.WANTS_HELLO, [b"re:wait"])
        assert net.server.statistics().replies_sent == 2  # the hello counts


async def test_a_cancel_ends_the_request_that_it_names_and_no_other(
    autojump_clock: MockClock,
) -> None:
    worker = Worker()
    async with serving(worker, max_in_flight=2) as net:
        client, other = net.connect(socket_type="DEALER"), net.connect(socket_type="DEALER")
        ask(client, 1 | _wire.WANTS_HELLO, b"wait mine")
        ask(other, 1, b"wait other")
        ask(client, 2, b"wait queued")
        await worker.log.wait("started wait other")
        ask(client, 1, b"", kind=_wire.CANCEL)
        ask(client, 2, b"", kind=_wire.CANCEL)
        ask(client, 99, b"", kind=_wire.CANCEL)  # unknown: too late, or nonsense
        await worker.log.wait("cancelled wait mine: cancelled")
        worker.release.set()
        await hear(other)
        stats = net.server.statistics()
        assert (stats.requests, stats.cancelled_by_client, stats.replied) == (3, 2, 1)
        assert "started wait queued" not in worker.log.entries
        assert len(net.sent_to(client)) == 1  # the hello


async def test_a_request_that_is_read_with_its_cancel_is_never_started(
    autojump_clock: MockClock,
) -> None:
    """As when the client's time was up before the server came to read."""
    worker = Worker()
    async with serving(worker) as net:
        client = net.connect(socket_type="DEALER")
        ask(client, 1, b"echo", left=1)
        ask(client, 1, b"", kind=_wire.CANCEL)
        await wait_all_tasks_blocked()
        assert not worker.log.entries
        assert not net.sent_to(client)
        assert net.server.statistics().cancelled_by_client == 1


async def test_the_clients_deadline_ends_the_work_without_a_word(
    autojump_clock: MockClock,
) -> None:
    worker = Worker()
    async with serving(worker, timeout=60) as net:
        client = net.connect(socket_type="DEALER")
        before = trio.current_time()
        ask(client, 1, b"wait", left=30_000)
        await worker.log.wait("cancelled wait: deadline")
        assert trio.current_time() == before + 30
        assert not net.sent_to(client)
        assert net.server.statistics().timed_out == 1


async def test_the_servers_ceiling_holds_for_longer_deadlines(autojump_clock: MockClock) -> None:
    async with serving(Worker(), timeout=60) as net:
        client = net.connect(socket_type="DEALER")
        before = trio.current_time()
        ask(client, 1, b"wait", left=90_000)
        header, body = await hear(client)
        assert trio.current_time() == before + 60
        assert (header.kind, body[1]) == (2, b"timed-out")


async def test_a_deadline_that_passes_in_the_queue_means_never_started(
    autojump_clock: MockClock,
) -> None:
    worker = Worker(stubborn=100)
    async with serving(worker, max_in_flight=1) as net:
        client = net.connect(socket_type="DEALER")
        ask(client, 1, b"shield")
        await worker.log.wait("started shield")
        ask(client, 2, b"echo", left=50)
        await trio.sleep(1)
        worker.release.set()
        await hear(client)
        await wait_all_tasks_blocked()
        assert "started echo" not in worker.log.entries
        assert net.server.statistics().timed_out == 1


async def test_a_correlation_in_use_and_an_unknown_kind_are_malformed(
    autojump_clock: MockClock,
) -> None:
    worker = Worker()
    async with serving(worker) as net:
        client = net.connect(socket_type="DEALER")
        ask(client, 1, b"wait")
        ask(client, 1, b"echo")
        header, body = await hear(client)
        assert (header.kind, header.correlation, body[1]) == (4, 1, b"malformed")
        ask(client, 2, b"echo", kind=2)
        header, body = await hear(client)
        assert (header.kind, header.correlation, body[1]) == (4, 2, b"malformed")
        for correlation in (0, _wire.WANTS_HELLO):  # its reply could be taken for a hello
            ask(client, correlation, b"echo")
            header, body = await hear(client)
            assert (header.kind, body[1]) == (4, b"malformed")
        worker.release.set()
        assert (await hear(client))[1] == [b"re:wait"]
        ask(client, 1, b"echo")  # is free again
        assert (await hear(client))[1] == [b"re:echo"]


async def test_clients_behind_a_proxy_have_names_of_their_own(autojump_clock: MockClock) -> None:
    worker = Worker()
    async with serving(worker) as net:
        proxy = net.connect(socket_type="DEALER")
        for hop in (b"one", b"two"):
            proxy.send_raw(hop, Header(0, 1).pack(), b"", b"wait " + hop)
        await worker.log.wait("started wait two")
        proxy.send_raw(b"one", Header(_wire.CANCEL, 1).pack(), b"", b"")
        await worker.log.wait("cancelled wait one: cancelled")
        worker.release.set()
        assert (await proxy.receive_raw())[::3] == [b"two", b"re:wait two"]


async def test_what_only_looks_like_a_header_is_envelope(autojump_clock: MockClock) -> None:
    async with serving(Worker()) as net:
        client = net.connect(socket_type="DEALER")
        for frame in (b"TRQ\x01", b"TRQ\x02" + bytes(13), b"x" * 17, b"TRQ\x01" + bytes(14)):
            client.send_raw(frame, b"", b"echo")
            assert await client.receive_raw() == [frame, b"", b"re:echo"]
