"""The header, as the server takes it."""

from __future__ import annotations

import trio
from support.handlers import Worker
from support.nets import Net, RawClient
from support.serving import until

from trioreq._protocol import envelope as wire
from trioreq._protocol import packs
from trioreq._protocol.envelope import Header

HELLO_BODY = packs.HELLO.pack(packs.MAX_SIZE)


async def ask(
    client: RawClient, correlation: int, body: bytes, left: int = 0, kind: int = 0
) -> None:
    await client.send_raw(Header(kind, correlation, left).pack(), b"", body)


async def hear(client: RawClient) -> tuple[Header, list[bytes]]:
    frame, delimiter, *body = await client.receive_raw()
    header = wire.header_untrusted((frame, delimiter))
    assert header is not None
    assert header.left == wire.SPEAKS
    return header, body


async def test_a_reply_has_the_correlation_and_its_status(net: Net) -> None:
    await net.serve(Worker())
    client = await net.connect_dealer()
    await ask(client, 7, b"echo")
    assert await hear(client) == (Header(0, 7, wire.SPEAKS), [b"re:echo"])
    await ask(client, 8, b"fail")
    header, body = await hear(client)
    assert (header.kind, header.correlation) == (1, 8)
    assert body[:2] == [b"trioreq-error", b"handler-failed"]


async def test_the_hello_comes_before_the_reply(net: Net) -> None:
    worker = Worker()
    server = await net.serve(worker)
    client = await net.connect_dealer()
    await ask(client, 7 | wire.WANTS_HELLO, b"wait")
    assert await hear(client) == (Header(0, wire.WANTS_HELLO, wire.SPEAKS), [HELLO_BODY])
    worker.release.set()
    header, body = await hear(client)
    assert (header.correlation, body) == (7 | wire.WANTS_HELLO, [b"re:wait"])
    assert server.statistics().replies_sent == 2  # the hello counts


async def test_a_cancel_ends_the_request_that_it_names_and_no_other(net: Net) -> None:
    worker = Worker()
    server = await net.serve(worker, max_in_flight=2)
    client, other = await net.connect_dealer(), await net.connect_dealer()
    await ask(client, 1 | wire.WANTS_HELLO, b"wait mine")
    await ask(other, 1, b"wait other")
    await worker.log.wait("started wait mine")
    await worker.log.wait("started wait other")
    await ask(client, 2, b"wait queued")
    await until(lambda: server.statistics().waiting == 1)
    await ask(client, 2, b"", kind=wire.CANCEL)
    await ask(client, 1, b"", kind=wire.CANCEL)
    await ask(client, 99, b"", kind=wire.CANCEL)  # unknown: too late, or nonsense
    await worker.log.wait("cancelled wait mine: cancelled")
    await until(lambda: server.statistics().cancelled_by_client == 2)
    worker.release.set()
    await hear(other)
    stats = server.statistics()
    assert (stats.requests, stats.cancelled_by_client, stats.replied) == (3, 2, 1)
    assert "started wait queued" not in worker.log.entries
    assert net.handed_over == [HELLO_BODY, b"re:wait other"]  # the first was the hello


async def test_a_request_that_is_read_with_its_cancel_is_never_started(net: Net) -> None:
    """As when the client's time was up before the server came to read."""
    worker = Worker()
    server = await net.serve(worker)
    client = await net.connect_dealer()
    await ask(client, 1, b"wait", left=60_000)
    await ask(client, 1, b"", kind=wire.CANCEL)
    await until(lambda: server.statistics().cancelled_by_client == 1)
    await until(lambda: server.statistics().running == 0)
    assert not net.handed_over
    if net.in_step:  # on the wire it may have been read before its cancel
        assert not worker.log.entries


async def test_the_clients_deadline_cancels_the_request_without_a_reply(net: Net) -> None:
    worker = Worker()
    server = await net.serve(worker, timeout=2 * net.brief)
    client = await net.connect_dealer()
    before = trio.current_time()
    await ask(client, 1, b"wait", left=round(net.brief * 1000))
    await worker.log.wait("cancelled wait: deadline")
    assert net.brief <= trio.current_time() - before <= net.brief + net.tolerance
    await until(lambda: server.statistics().running == 0)
    assert not net.handed_over
    assert server.statistics().timed_out == 1


async def test_the_servers_ceiling_holds_for_longer_deadlines(net: Net) -> None:
    await net.serve(Worker(), timeout=net.brief)
    client = await net.connect_dealer()
    before = trio.current_time()
    await ask(client, 1, b"wait", left=round(net.brief * 1500))
    header, body = await hear(client)
    assert net.brief <= trio.current_time() - before <= net.brief + net.tolerance
    assert (header.kind, body[1]) == (2, b"timed-out")


async def test_a_deadline_that_passes_in_the_queue_means_never_started(net: Net) -> None:
    worker = Worker()
    server = await net.serve(worker, max_in_flight=1)
    client = await net.connect_dealer()
    await ask(client, 1, b"shield")
    await worker.log.wait("started shield")
    await ask(client, 2, b"echo", left=50)
    await until(lambda: server.statistics().timed_out == 1)
    worker.release.set()
    await hear(client)
    await until(lambda: server.statistics().running == 0)
    assert "started echo" not in worker.log.entries


async def test_a_correlation_in_use_and_an_unknown_kind_are_malformed(net: Net) -> None:
    worker = Worker()
    await net.serve(worker)
    client = await net.connect_dealer()
    await ask(client, 1, b"wait")
    await ask(client, 1, b"echo")
    header, body = await hear(client)
    assert (header.kind, header.correlation, body[1]) == (4, 1, b"malformed")
    await ask(client, 2, b"echo", kind=2)
    header, body = await hear(client)
    assert (header.kind, header.correlation, body[1]) == (4, 2, b"malformed")
    for correlation in (0, wire.WANTS_HELLO):  # its reply could be taken for a hello
        await ask(client, correlation, b"echo")
        header, body = await hear(client)
        assert (header.kind, body[1]) == (4, b"malformed")
    worker.release.set()
    assert (await hear(client))[1] == [b"re:wait"]
    await ask(client, 1, b"echo")  # is free again
    assert (await hear(client))[1] == [b"re:echo"]


async def test_clients_behind_a_proxy_have_names_of_their_own(net: Net) -> None:
    worker = Worker()
    await net.serve(worker)
    proxy = await net.connect_dealer()
    for hop in (b"one", b"two"):
        await proxy.send_raw(hop, Header(0, 1).pack(), b"", b"wait " + hop)
    await worker.log.wait("started wait two")
    await proxy.send_raw(b"one", Header(wire.CANCEL, 1).pack(), b"", b"")
    await worker.log.wait("cancelled wait one: cancelled")
    worker.release.set()
    assert (await proxy.receive_raw())[::3] == [b"two", b"re:wait two"]


async def test_a_frame_that_only_looks_like_a_header_is_envelope(net: Net) -> None:
    await net.serve(Worker())
    client = await net.connect_dealer()
    for frame in (b"TRQ\x01", b"TRQ\x02" + bytes(13), b"x" * 17, b"TRQ\x01" + bytes(14)):
        await client.send_raw(frame, b"", b"echo")
        assert await client.receive_raw() == [frame, b"", b"re:echo"]
