"""Access control, on the memory transport: `admit`, and limits.

Deterministic: no kernel, no threads, and an autojump clock, so time passes only when all tasks
wait for it.
"""

from __future__ import annotations

import gc
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import trio
import trio.lowlevel
from support.handlers import Worker
from support.memory import serving
from trio.testing import MockClock, wait_all_tasks_blocked

import trioreq
from trioreq._server import admission
from trioreq.testing import MemoryClient


async def whoami(request: trioreq.Request) -> bytes:
    return request.client.user_id.encode()


async def later() -> str:
    return "alice"


async def refused(client: MemoryClient) -> bool:
    with pytest.raises(trio.BrokenResourceError, match="the server refused"):
        await client.receive()
    return True


async def test_admit_is_asked(autojump_clock: MockClock) -> None:
    names: list[str | None] = ["alice"]

    async def admit(applicant: trioreq.Applicant) -> str | None:
        assert applicant == trioreq.Applicant("NULL", "127.0.0.1")
        name = names.pop() if names else None
        await trio.sleep(3)
        return name

    async with serving(whoami, admit=admit) as net:
        first = net.connect()
        await trio.testing.wait_all_tasks_blocked()  # its admit has begun
        second = net.connect()
        begun = trio.current_time()
        assert await first.request(b"") == [b"alice"]
        assert await refused(second)
        assert trio.current_time() - begun == 3  # both at once
        assert net.server.statistics().refused == 1


@pytest.mark.parametrize("make", [lambda: True, lambda: b"alice", later])
async def test_the_log_says_what_admit_must_return(
    autojump_clock: MockClock, make: Callable[[], Any], caplog: pytest.LogCaptureFixture
) -> None:
    """Warnings are errors here, as that a coroutine was never awaited."""

    async def admit(applicant: trioreq.Applicant) -> Any:
        await trio.lowlevel.checkpoint()
        return make()

    async with serving(whoami, admit=admit) as net:
        assert await refused(net.connect())
    (record,) = [r for r in caplog.records if r.levelname == "ERROR"]
    assert "must return a user id, a str that may be empty, or None to refuse, got" in (
        record.getMessage()
    )


async def test_a_user_id_without_admit_is_the_tests_own(autojump_clock: MockClock) -> None:
    async with serving(whoami) as net:
        assert await net.connect(user_id="bob").request(b"") == [b"bob"]


async def test_an_admit_that_hangs_has_its_time(autojump_clock: MockClock) -> None:
    async def hang(_: trioreq.Applicant) -> None:
        await trio.sleep_forever()

    async with serving(whoami, admit=hang) as net:
        begun = trio.current_time()
        assert await refused(net.connect())
        assert trio.current_time() - begun == admission.ADMISSION_TIME


async def test_more_at_once_than_may_be_asked_about_are_put_off(
    autojump_clock: MockClock,
) -> None:
    async def slow(_: trioreq.Applicant) -> str:
        await trio.sleep(1)
        return "somebody"

    async with serving(whoami, admit=slow) as net:
        inside = [net.connect() for _ in range(admission.ADMISSIONS)]
        await wait_all_tasks_blocked()
        assert await refused(net.connect())
        for client in inside:
            assert await client.request(b"") == [b"somebody"]
        assert await net.connect().request(b"") == [b"somebody"]
        assert net.server.statistics().refused == 1


async def test_open_client_raises_refused_and_tries_again(autojump_clock: MockClock) -> None:
    allowed = False

    async def admit(_: trioreq.Applicant) -> str | None:
        await trio.lowlevel.checkpoint()
        return "alice" if allowed else None

    async with serving(whoami, admit=admit) as net, trioreq.open_client(net) as client:
        with pytest.raises(trioreq.Refused, match="the server refused"):
            await client.request(b"")
        allowed = True
        assert await client.request(b"") == b"alice"


async def test_the_end_of_the_server_closes_connections_that_wait_for_admit(
    autojump_clock: MockClock,
) -> None:
    ended = trio.Event()

    async def hang(_: trioreq.Applicant) -> None:
        try:
            await trio.sleep_forever()
        finally:
            ended.set()

    async with serving(whoami, admit=hang) as net:
        net.connect()
        await wait_all_tasks_blocked()
    assert ended.is_set()


async def test_only_a_connection_beyond_a_limit_is_closed(autojump_clock: MockClock) -> None:
    worker = Worker()
    async with serving(worker, max_connections=2) as net:
        first, second = net.connect(), net.connect()
        first.send(b"wait")
        third = net.connect()
        with pytest.raises(trio.BrokenResourceError, match="shut the connection down"):
            await third.receive()
        assert await second.request(b"echo") == [b"re:echo"]
        assert net.server.statistics().connections == 2
        assert net.server.statistics().refused == 1
        first.close()
        await worker.log.wait("ended wait")
        assert await net.connect().request(b"echo") == [b"re:echo"]


async def test_an_allow_list_is_no_longer_watched_after_a_cancel_while_it_is_read(
    tmp_path: Path, autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing is left to the garbage collector, which would warn."""
    allow = trioreq.AllowList(tmp_path)

    async def reload(_: trioreq.AllowList) -> None:
        await trio.sleep_forever()

    monkeypatch.setattr(trioreq.AllowList, "reload", reload)
    with warnings.catch_warnings(record=True) as seen:
        with trio.move_on_after(5) as scope:
            await allow.watch(lambda: None)
        gc.collect()
    assert scope.cancelled_caught
    assert seen == []
