"""`open_client` and the server: cancels, deadlines, and broken connections."""

from __future__ import annotations

import contextlib
import math
import random
from typing import Any

import pytest
import trio
import trio.testing
from support.handlers import ThreadWorker, Worker
from support.nets import Net
from support.outcomes import outcomes
from support.serving import until

import trioreq
import trioreq.testing
from trioreq._client.states import Connected

LARGE = 100
LIMIT = 20  # seconds, for a test that got stuck


async def handler(request: trioreq.Request) -> list[bytes]:
    """Does what the first frame says."""
    match request.body:
        case b"fail":
            raise LookupError("secret")
        case b"refuse":
            raise trioreq.ReplyError("not-found", "no image 17")
        case b"wait":
            await trio.sleep_forever()
        case b"large":
            return [bytes(LARGE)]
        case b"two":
            return [b"1", b"2"]
    return [b"re:" + frame for frame in request.frames]


async def test_each_caller_has_its_own_reply(net: Net) -> None:
    replies: dict[int, bytes] = {}

    async def shuffled(request: trioreq.Request) -> bytes:
        await trio.sleep(random.uniform(0, net.brief / 10))
        return b"re:" + request.body

    server = await net.serve(shuffled, max_in_flight=100, max_queued_per_client=100)
    async with net.open_client() as client:

        async def ask(number: int) -> None:
            replies[number] = await client.request(b"%d" % number)

        async with trio.open_nursery() as nursery:
            for number in range(100):
                nursery.start_soon(ask, number)
        assert replies == {number: b"re:%d" % number for number in range(100)}
        assert client.statistics().replied == server.statistics().replied == 100
        assert client.statistics().connections == 1


async def test_a_shielded_request_has_its_reply_when_the_block_of_the_client_is_cancelled(
    net: Net,
) -> None:
    worker = Worker()
    await net.serve(worker)
    reply = b""

    async def cancel() -> None:
        await worker.log.wait("started wait")
        around.cancel()
        await trio.testing.wait_all_tasks_blocked()
        worker.release.set()

    with trio.fail_after(LIMIT):
        async with trio.open_nursery() as nursery:
            with trio.CancelScope() as around:
                nursery.start_soon(cancel)
                async with net.open_client() as client:
                    with trio.CancelScope(shield=True), trio.fail_after(LIMIT / 2):
                        reply = await client.request(b"wait")
    assert around.cancel_called
    assert reply == b"re:wait"


async def test_a_request_larger_than_the_server_takes_costs_the_connection(net: Net) -> None:
    await net.serve(handler, max_message_size=LARGE)
    async with net.open_client() as client:
        assert await client.request(b"hello") == b"re:hello"
        with pytest.raises(trioreq.ConnectionLost, match="unknown"):
            await client.request(bytes(LARGE + 1))
        assert await client.request(b"again") == b"re:again"
        assert client.statistics().connections == 2
        assert client.statistics().lost == 1


async def test_the_replies_of_request(net: Net) -> None:
    await net.serve(handler)
    async with net.open_client() as client:
        assert await client.request(b"x") == b"re:x"
        assert await client.request_multipart([b"x", b""]) == [b"re:x", b"re:"]
        with pytest.raises(trioreq.UnexpectedReply, match="request_multipart"):
            await client.request(b"two")
        with pytest.raises(trioreq.ReplyError, match="LookupError") as caught:
            await client.request(b"fail")
        assert caught.value.code == trioreq.Code.HANDLER_FAILED
        with pytest.raises(trioreq.ReplyError) as caught:
            await client.request(b"refuse")
        assert (caught.value.code, caught.value.text) == ("not-found", "no image 17")
        stats = client.statistics()
        assert (stats.failed, stats.in_flight, stats.stale) == (2, 0, 0)


async def test_many_requests_of_one_task(net: Net) -> None:
    server = await net.serve(handler, max_queued_per_client=100)
    bodies = [b"%d" % number for number in range(1000)]
    bodies[500] = b"refuse"
    async with net.open_client() as client:
        replies = await client.request_many(iter(bodies), in_flight=100)
        error = replies[500]
        assert isinstance(error, trioreq.ReplyError)
        assert error.code == "not-found"
        replies[500] = b"re:refuse"
        assert replies == [b"re:" + body for body in bodies]
        assert outcomes(server) == {"replied": 999, "failed": 1}
        assert client.statistics().connections == 1


async def test_the_cancel_of_many_is_that_of_each_handler(net: Net) -> None:
    worker = Worker()
    server = await net.serve(worker)
    async with net.open_client() as client, trio.open_nursery() as nursery:
        bodies = [b"wait %d" % number for number in range(9)]
        nursery.start_soon(client.request_many, bodies)
        for number in range(9):
            await worker.log.wait(f"started wait {number}")
        nursery.cancel_scope.cancel()
        with trio.CancelScope(shield=True):
            for number in range(9):
                await worker.log.wait(f"ended wait {number}")
    assert outcomes(server) == {"cancelled_by_client": 9}


async def test_an_exception_of_the_block_is_raised_without_a_group(net: Net) -> None:
    await net.serve(handler)
    with pytest.raises(trioreq.ReplyError):
        async with net.open_client() as client:
            await client.request(b"refuse")


async def test_overloaded(net: Net) -> None:
    worker = Worker()
    server = await net.serve(worker, max_in_flight=1, max_queued_per_client=0)
    async with net.open_client() as client, trio.open_nursery() as nursery:
        nursery.start_soon(client.request, b"wait")
        await until(lambda: server.statistics().running == 1)
        with pytest.raises(trioreq.ReplyError) as caught:
            await client.request(b"echo")
        assert caught.value.code == trioreq.Code.OVERLOADED
        worker.release.set()


async def test_the_callers_cancel_is_the_handlers(net: Net) -> None:
    """The first request of a connection too, and each time at once."""
    worker = Worker()
    server = await net.serve(worker)
    for number in range(20):
        async with net.open_client() as client, trio.open_nursery() as nursery:
            nursery.start_soon(client.request, b"wait %d" % number)
            await worker.log.wait(f"started wait {number}")
            nursery.cancel_scope.cancel()
            with trio.CancelScope(shield=True):
                await worker.log.wait(f"ended wait {number}")
            assert f"cancelled wait {number}: cancelled" in worker.log.entries
    assert outcomes(server) == {"cancelled_by_client": 20}


async def test_check_cancelled_raises_in_a_plain_function_after_a_cancel(net: Net) -> None:
    worker = ThreadWorker()
    await net.serve(worker)
    async with net.open_client() as client:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(client.request, b"wait")
            await worker.log.wait("started wait")
            nursery.cancel_scope.cancel()
        await worker.log.wait("cancelled wait: cancelled")


async def test_the_deadline_holds_on_both_ends(net: Net) -> None:
    worker = Worker()
    server = await net.serve(worker)
    async with net.open_client() as client:
        before = trio.current_time()
        with pytest.raises(trioreq.RequestTimeout, match="has not answered within"):
            await client.request(b"wait", timeout=net.brief)
        assert net.brief <= trio.current_time() - before <= net.brief + net.tolerance
        await worker.log.wait("ended wait")
        reason = next(e for e in worker.log.entries if e.startswith("cancelled"))
        # Whichever clock is first: the server's own, or the word of the client's.
        assert reason in ("cancelled wait: deadline", "cancelled wait: cancelled")
        assert await client.request(b"echo") == b"re:echo"
        assert server.statistics().replies_sent == 2  # the hello counts


@pytest.mark.parametrize("call", ["request", "request_multipart", "request_many"])
@pytest.mark.parametrize(
    ("around", "timeout", "earliest"),
    [(20, None, 20), (20, 15, 15), (15, 20, 15), (math.inf, 15, 15), (math.inf, None, math.inf)],
)
async def test_the_earlier_of_the_callers_deadline_and_the_timeout_is_the_handlers(
    net: Net, call: str, around: float, timeout: float | None, earliest: float
) -> None:
    """No caller of a request knows that of the scope which it is in."""

    async def see(request: trioreq.Request) -> bytes:
        seen.extend([trio.current_effective_deadline(), request.deadline])
        return b""

    seen: list[float] = []
    await net.serve(see)
    async with net.open_client() as client:
        body: Any = b"x" if call == "request" else [b"x"]
        with trio.CancelScope(shield=True), trio.move_on_after(around):
            before = trio.current_time()
            await getattr(client, call)(body, timeout=timeout)
    assert len(seen) == 2
    for deadline in seen:
        assert before + earliest <= deadline <= before + earliest + net.tolerance + 0.001


async def test_a_deadline_around_the_call_ends_the_handler(net: Net) -> None:
    worker = Worker()
    server = await net.serve(worker)
    async with net.open_client() as client:
        for call in (client.request(b"wait one"), client.request_many([b"wait many"])):
            with pytest.raises(trio.TooSlowError) as caught, trio.fail_after(net.brief):
                await call
            assert type(caught.value) is trio.TooSlowError  # of the caller's own scope
        await worker.log.wait("ended wait one")
        await worker.log.wait("ended wait many")
        assert client.statistics().timed_out == 2
        await until(lambda: server.statistics().running == 0)
        stats = server.statistics()
        assert stats.timed_out + stats.cancelled_by_client == 2


async def test_the_servers_own_timeout(net: Net) -> None:
    worker = Worker()
    await net.serve(worker, timeout=net.brief)
    async with net.open_client(timeout=10 * net.brief) as client:
        with pytest.raises(trioreq.RequestTimeout, match="longer than the server allows"):
            await client.request(b"wait")
        await worker.log.wait("cancelled wait: deadline")


async def test_closing_cancels_requests_in_flight_on_the_server(net: Net) -> None:
    worker = Worker()
    await net.serve(worker)
    async with trio.open_nursery() as nursery:
        async with net.open_client() as client:

            async def ask() -> None:
                with pytest.raises(trio.ClosedResourceError):
                    await client.request(b"wait")

            nursery.start_soon(ask)
            await worker.log.wait("started wait")
        await worker.log.wait("cancelled wait: disconnected")


async def test_a_server_that_ends_gives_its_word_and_then_the_connection_is_lost(
    net: Net,
) -> None:
    """And the client finds the next one."""
    worker = Worker()
    await net.serve(worker)
    async with net.open_client() as client:
        async with trio.open_nursery() as nursery:

            async def ask() -> None:
                with pytest.raises(trioreq.ReplyError) as caught:
                    await client.request(b"wait")
                assert caught.value.code == trioreq.Code.SHUTTING_DOWN

            nursery.start_soon(ask)
            await worker.log.wait("started wait")
            await net.stop()
        # What is sent before that is lost.
        await until(lambda: not isinstance(client._multiplexer.state, Connected))
        await net.serve(Worker())
        assert await client.request(b"echo") == b"re:echo"  # waits for the connection
        stats = client.statistics()
        assert (stats.connections, stats.failed, stats.replied) == (2, 1, 1)


@pytest.mark.parametrize("retries", [0, 1])
async def test_a_reply_too_large_for_the_client_breaks_its_connection(
    net: Net, retries: int
) -> None:
    """With `retries` the request is sent again, and no more often than that."""
    server = await net.serve(handler)
    async with net.open_client(max_message_size=LARGE - 1, retries=retries) as client:
        with pytest.raises(trioreq.ConnectionLost, match="unknown"):
            await client.request(b"large")
        assert await client.request(b"x") == b"re:x"
        stats = client.statistics()
        assert (stats.lost, stats.retried, stats.connections) == (1 + retries, retries, 2 + retries)
        assert outcomes(server) == {"replied": 2 + retries}


async def test_without_a_server_there_is_not_connected(net: Net) -> None:
    await net.serve(handler)
    await net.stop()
    async with net.open_client(connect_timeout=net.brief) as client:
        with pytest.raises(trioreq.NotConnected, match="does a server listen there"):
            await client.request(b"x")
        with pytest.raises(trioreq.NotConnected):
            await client.request(b"x", timeout=net.brief / 2)
        assert client.statistics().requests == 0
        assert client.timings is None


async def test_a_request_waits_for_a_server(net: Net) -> None:
    await net.serve(handler)
    await net.stop()
    async with net.open_client() as client, trio.open_nursery() as nursery:

        async def serve_later() -> None:
            await trio.sleep(net.brief / 2)
            await net.serve(handler)

        nursery.start_soon(serve_later)
        assert await client.request(b"x") == b"re:x"
        assert client.timings is not None


async def test_a_server_that_ends_gives_its_word_for_a_deaf_function_too(net: Net) -> None:
    worker = ThreadWorker()
    await net.serve(worker)
    async with net.open_client() as client, trio.open_nursery() as nursery:

        async def ask() -> None:
            with pytest.raises(trioreq.ReplyError, match="shutting down"):
                await client.request(b"deaf")

        nursery.start_soon(ask)
        await worker.log.wait("started deaf")
        await net.stop()
        worker.release.set()


async def test_everything_adds_up(net: Net) -> None:
    server = await net.serve(handler, max_in_flight=3, max_queued_per_client=0)
    async with net.open_client(timeout=net.brief) as client:
        async with trio.open_nursery() as nursery:

            async def ask(body: bytes) -> None:
                with contextlib.suppress(trioreq.ReplyError, trioreq.RequestTimeout):
                    await client.request(body)

            for _ in range(2):
                nursery.start_soon(ask, b"wait")
            await until(lambda: server.statistics().running == 2)
            for body in (b"x", b"fail", b"refuse"):
                await ask(body)
            nursery.start_soon(ask, b"wait")
            await until(lambda: server.statistics().running == 3)
            await ask(b"x")
        await until(lambda: server.statistics().running == 0)
        stats = client.statistics()
        assert stats.requests == 7
        assert stats.requests == (
            stats.replied
            + stats.failed
            + stats.timed_out
            + stats.cancelled
            + stats.lost
            + stats.in_flight
        )
        assert (stats.replied, stats.failed, stats.timed_out) == (1, 3, 3)
        ended = outcomes(server)
        late = ended.pop("timed_out", 0) + ended.pop("cancelled_by_client", 0)
        assert (ended, late) == ({"replied": 1, "failed": 2, "overloaded": 1}, 3)
