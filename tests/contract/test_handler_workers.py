"""What a plain function may assume, wherever it runs: docs/handlers.md.

Each test runs in threads, in processes, in processes with a grace, and on Ray where that is
installed; in memory, where functions run in the event loop, and over tcp. Everything waits for
events.
"""

from __future__ import annotations

import functools
import logging
import math
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest
import trio
from support import jobs
from support.ended import Ended
from support.jobs import Reports, open_reports
from support.local_ray import HAS_RAY, open_local_ray
from support.nets import MemoryNet, Net, open_net
from support.outcomes import outcomes
from support.serving import until
from trio.testing import MockClock

import trioreq

pytestmark = pytest.mark.slow


def run_on_virtual_time(main: Any, *, clock: object, instruments: Any) -> Any:
    """`trio.run`, with a clock that jumps when all tasks wait."""
    return trio.run(main, clock=MockClock(autojump_threshold=0), instruments=instruments)


ENDS = ["disconnected", "superseded", "cancelled", "deadline", "shutdown"]


def two(kind: str) -> Any:
    """Workers for two functions at once."""
    match kind:
        case "threads":
            return trioreq.ThreadWorkers(2)
        case "processes":
            return trioreq.ProcessWorkers(2, spares=0)
        case "ray":
            return trioreq.RayWorkers(2)
    return trioreq.ProcessWorkers(2, spares=0, grace=jobs.STUBBORN)


@pytest.fixture(
    params=[
        pytest.param("memory", marks=pytest.mark.trio(run=run_on_virtual_time)),
        "tcp",
    ]
)
async def net(request: pytest.FixtureRequest) -> AsyncIterator[Net]:
    async with open_net("memory" if request.param == "memory" else "tcp://127.0.0.1:0") as opened:
        yield opened


KINDS = ["threads", "processes", "grace", *(["ray"] if HAS_RAY else [])]


@pytest.fixture(params=KINDS)
def workers(request: pytest.FixtureRequest) -> Any:
    if request.param == "ray":
        request.getfixturevalue("local_ray")
    return two(request.param)


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Where functions report; Ray's workers are told once."""
    return str(tmp_path_factory.mktemp("reports") / "reports")


@pytest.fixture(scope="module")
def local_ray(path: str) -> Iterator[None]:
    with open_local_ray(path):
        yield


@pytest.fixture
def reports(path: str) -> Iterator[Reports]:
    with open_reports(path) as opened:
        yield opened


async def ask(client: Any, *frames: bytes) -> list[bytes]:
    await client.send(*frames)
    reply: list[bytes] = await client.receive()
    return reply


def is_killed(net: Net, workers: Any) -> bool:
    """Whether a function is killed as soon as its request has ended."""
    if isinstance(workers, trioreq.ThreadWorkers):
        return False
    return isinstance(net, MemoryNet) or not getattr(workers, "grace", 0)


# Requests and results.


async def test_the_request_is_there(net: Net, workers: Any) -> None:
    await net.serve(jobs.work, workers=workers)
    client = await net.connect("DEALER")
    assert await ask(client, b"echo", b"second") == [b"re", b"echo", b"second"]
    assert await ask(client, b"describe") == [b"1 DEALER None"]
    assert await ask(client, b"left") == [b"inf"]


async def test_the_request_has_its_deadline(net: Net, workers: Any) -> None:
    await net.serve(jobs.work, workers=workers, timeout=1000)
    (deadline,) = await ask(await net.connect(), b"left")
    assert 0 < float(deadline) < math.inf


async def test_a_live_request_goes_on(net: Net, workers: Any) -> None:
    await net.serve(jobs.work, workers=workers)
    assert await ask(await net.connect(), b"check") == [b"goes on"]


@pytest.mark.parametrize(
    ("handler", "body", "reply"),
    [
        (jobs.Object(), b"check", [b"goes on"]),
        (jobs.Object().method, b"check", [b"goes on"]),
        (functools.partial(jobs.prefixed, "prefix"), b"result memoryview", [b"prefix", b"view"]),
        (jobs.decorated, b"check", [b"goes on"]),
        (jobs.work, b"result subclass", [b"frame"]),
        (jobs.work, b"result tuple", [b"1", b"2"]),
    ],
)
async def test_valid_handlers_and_results_are_accepted(
    net: Net, workers: Any, handler: Any, body: bytes, reply: list[bytes]
) -> None:
    await net.serve(handler, workers=workers)
    assert await ask(await net.connect(), body) == reply


@pytest.mark.parametrize("kind", ["dict", "none", "text in a list", "lambda"])
async def test_an_invalid_reply_is_handler_failed_and_one_line_of_the_log(
    net: Net, workers: Any, kind: str, caplog: pytest.LogCaptureFixture
) -> None:
    await net.serve(jobs.work, workers=workers)
    reply = await ask(await net.connect(), b"result " + kind.encode())
    assert reply[1] == b"handler-failed"
    (record,) = [record for record in caplog.records if record.levelno == logging.ERROR]
    assert "the handler failed: TypeError: " in record.getMessage()
    assert record.exc_info is None


# Exceptions.


@pytest.mark.parametrize(
    ("how", "reply"),
    [
        ("reply", [b"no-luck", b"try again"]),
        ("not found", [b"not-found", b"there is no image 17"]),
        ("group", [b"not-found", b"there is no image 18"]),
    ],
)
async def test_a_reply_error_is_the_reply(
    net: Net, workers: Any, how: str, reply: list[bytes], caplog: pytest.LogCaptureFixture
) -> None:
    await net.serve(jobs.work, workers=workers)
    assert await ask(await net.connect(), b"fail " + how.encode()) == [b"trioreq-error", *reply]
    assert not [record for record in caplog.records if record.levelno >= logging.ERROR]


@pytest.mark.parametrize(
    ("how", "text"),
    [("lookup", "no such thing"), ("two", "1 and 2"), ("stale", "RequestCancelled: deadline")],
)
async def test_another_exception_is_handler_failed_and_the_log_has_its_traceback(
    net: Net, workers: Any, how: str, text: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Also if it cannot be pickled."""
    server = await net.serve(jobs.work, workers=workers)
    client = await net.connect()
    assert (await ask(client, b"fail " + how.encode()))[1] == b"handler-failed"
    assert text in caplog.text
    assert "raise " in caplog.text
    assert "jobs.py" in caplog.text
    assert await ask(client, b"check") == [b"goes on"]
    assert server.statistics().died == 0


@pytest.mark.parametrize(("how", "kind"), [("exit", SystemExit), ("interrupt", KeyboardInterrupt)])
async def test_an_exception_that_ends_programs_ends_serve_and_clients_are_answered(
    net: Net, workers: Any, how: str, kind: type[BaseException]
) -> None:
    ended = Ended()
    await ended.serve(net, jobs.work, workers=workers)
    client = await net.connect()
    assert (await ask(client, b"fail " + how.encode()))[1] == b"shutting-down"
    await ended.over.wait()
    assert type(ended.error) is kind


# What is its own.


async def test_context_variables_are_its_own(net: Net, workers: Any) -> None:
    await net.serve(jobs.work, workers=workers, max_in_flight=1)
    client = await net.connect()
    for value in (b"1", b"2", b"3", b"4"):
        assert await ask(client, b"remember " + value) == [b"unset"]


@pytest.mark.parametrize("net", ["tcp"], indirect=True)  # in memory it runs in the event loop
async def test_trios_loop_is_not_called_from_there_and_another_may_run(
    net: Net, workers: Any
) -> None:
    await net.serve(jobs.work, workers=workers)
    client = await net.connect()
    (text,) = await ask(client, b"loop")
    assert b"make the handler async" in text
    assert await ask(client, b"run_asyncio") == [b"asyncio"]


# The end of its request.


async def end_it(net: Net, how: str, client: Any) -> None:
    match how:
        case "disconnected":
            await client.close()
        case "superseded":
            await client.send(b"check")
        case "shutdown":
            await net.stop()


@pytest.mark.parametrize("how", ENDS)
async def test_the_end_of_its_request_ends_it_and_no_other(
    net: Net, workers: Any, reports: Reports, how: str
) -> None:
    brief = max(net.brief, 1)
    if isinstance(workers, trioreq.RayWorkers):
        brief = 5  # Ray takes its time to replace what was killed
    timeout = brief if how == "deadline" else None
    server = await net.serve(jobs.work, workers=workers, timeout=timeout)
    other = await net.connect()
    async with AsyncExitStack() as stack:  # a client that closes at once may take its cancel along
        if how == "cancelled":
            requester = await stack.enter_async_context(net.open_client())
            async with trio.open_nursery() as nursery:
                nursery.start_soon(requester.request, b"wait it")
                await reports.wait("waits it")
                nursery.cancel_scope.cancel()
        else:
            client = await net.connect()
            await client.send(b"wait it")
            await reports.wait("waits it")
            await end_it(net, how, client)
        if is_killed(net, workers):
            await until(lambda: server.statistics().killed == 1)
            # It is written that the request has ended, and then it is killed: it may see the first.
            assert reports.rest() in ([], [f"cancelled it: {how}"])
        else:
            await reports.wait(f"cancelled it: {how}")
    if how != "shutdown":
        await until(lambda: server.statistics().running == 0)
        assert await ask(other, b"check") == [b"goes on"]


async def test_two_run_at_once_and_not_three(net: Net, workers: Any, reports: Reports) -> None:
    server = await net.serve(jobs.work, workers=workers)
    clients = [await net.connect("DEALER") for _ in range(3)]
    for client in clients[:2]:
        await client.send(b"wait it")
        await reports.wait("waits it")
    await clients[2].send(b"check")
    await until(lambda: server.statistics().waiting == 1)
    assert server.statistics().workers.busy == 2
    await clients[0].close()
    assert await clients[2].receive() == [b"goes on"]


async def test_draining_lets_it_finish(
    net: Net, workers: Any, reports: Reports, tmp_path: Path
) -> None:
    server = await net.serve(jobs.work, workers=workers)
    client = await net.connect()
    await client.send(f"until {tmp_path}/file".encode())
    await reports.wait("waits")
    async with trio.open_nursery() as nursery:
        nursery.start_soon(server.drain, 1000)
        await trio.testing.wait_all_tasks_blocked()
        (tmp_path / "file").touch()
        assert await client.receive() == [b"ended"]
    assert outcomes(server) == {"replied": 1}
