"""Ray: what becomes of tasks whose requests end, and of tasks that die. A real Ray on this machine.

It is listed where Ray is installed: `pip install 'trioreq[ray]'`.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from functools import partial
from typing import Any

import pytest
import trio
from support import jobs
from support.jobs import Reports, open_reports
from support.local_ray import open_local_ray
from support.serving import LIMIT, until
from support.working import give_up, gone, working

import trioreq
from harness.clients import open_client_process

pytestmark = pytest.mark.slow
Ray = partial(trioreq.RayWorkers, 2)


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    where = str(tmp_path_factory.mktemp("reports") / "reports")
    with open_local_ray(where):
        yield where


@pytest.fixture
def reports(path: str) -> Iterator[Reports]:
    with open_reports(path) as opened:
        yield opened


async def test_a_killed_client_ends_a_call_into_c(reports: Reports) -> None:
    async with working(Ray()) as (server, client), open_client_process() as peer:
        await peer.connect(server.endpoints[0])
        await peer.send("compute it")
        pid = await reports.wait("computes it")
        peer.kill()
        await gone(pid)
        assert await client.request(b"check") == b"goes on"
        counted = server.statistics()
        assert (counted.killed, counted.died) == (1, 0)
    assert reports.rest() == []


async def test_without_force_the_function_gets_a_keyboard_interrupt(reports: Reports) -> None:
    async with working(Ray(force=False)) as (_, client):
        pid = await give_up(client, b"interruptible it", reports, "waits it")
        assert await reports.wait("interrupted it") == pid


@pytest.mark.parametrize("how", ["segmentation fault", "3"])
async def test_a_death_is_handler_failed_with_its_cause_and_nothing_runs_twice(
    reports: Reports, how: str, caplog: pytest.LogCaptureFixture
) -> None:
    async with working(Ray()) as (server, client):
        with pytest.raises(trioreq.ReplyError) as caught:
            await client.request(b"report_and_die " + how.encode())
        assert caught.value.code == "handler-failed"
        assert caught.value.text.startswith("worker died: WorkerCrashedError: ")
        assert caught.value.text in caplog.messages
        assert await client.request(b"check") == b"goes on"
        assert server.statistics().died == 1
    assert reports.rest() == ["dies"]


async def test_bodies_are_released(path: str) -> None:
    from ray._private.worker import global_worker

    def references() -> set[Any]:
        return set(global_worker.core_worker.get_all_reference_counts())

    body = os.urandom(4 * 1024 * 1024)
    async with working(Ray(), max_message_size=len(body)) as (_, client):
        before = references()
        for _ in range(3):
            assert list(await client.request_multipart([b"big", body])) == [body]
        await until(lambda: references() <= before)


async def test_records_come_with_the_reply(
    reports: Reports, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "jobs")
    async with working(Ray()) as (_, client):
        pid = int(await client.request(b"pid"))
        assert pid != os.getpid()
        await client.request(b"say it")
        assert "logged it" in caplog.messages
        await client.request(f"log flood {jobs.FLOOD}".encode())
    (line,) = [message for message in caplog.messages if "were dropped" in message]
    assert int(line.split()[0]) == jobs.FLOOD - 1000


async def test_a_handler_that_cannot_be_pickled_is_a_type_error(path: str) -> None:
    import threading

    lock = threading.Lock()

    def handler(request: trioreq.Request) -> bytes:
        with lock:
            raise AssertionError

    with pytest.raises(TypeError, match="handler must be a function that can be pickled"):
        await trioreq.serve(handler, "tcp://127.0.0.1:0", workers=Ray())


async def test_a_failed_start_of_ray_is_an_error_of_serve(
    path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ray.is_initialized", lambda: False)  # then it complains
    with trio.fail_after(LIMIT), pytest.raises(trioreq.WorkersFailed, match="Ray cannot be start"):
        await trioreq.serve(jobs.work, "tcp://127.0.0.1:0", workers=Ray())
