"""Work that must finish, in worker processes, and as docs/handlers.md shows it.

Real processes and signals: a client is killed with SIGKILL. Functions report what they do, and the
end of a process is awaited by its pidfd.
"""

from __future__ import annotations

import os
import re
import sqlite3
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import trio
from support import jobs
from support.jobs import Reports, open_reports
from support.outcomes import outcomes
from support.serving import LIMIT, serving, until

import trioreq
from harness.clients import open_client_process

pytestmark = pytest.mark.slow

DOCS = Path(__file__).parents[2] / "docs"


@pytest.fixture
def reports(tmp_path: Path) -> Iterator[Reports]:
    with open_reports(str(tmp_path / "reports")) as opened:
        yield opened


@asynccontextmanager
async def finishing(
    reports: Reports, path: Path, limit: float = LIMIT, grace: float = 0.0
) -> AsyncIterator[tuple[trioreq.Server, Any, int]]:
    """A server, a client whose function is in a block, and the pidfd of its process."""
    workers = trioreq.ProcessWorkers(1, spares=0, grace=grace)
    async with (
        serving(jobs.work, workers=workers) as server,
        open_client_process() as peer,
    ):
        await peer.connect(server.endpoints[0])
        await peer.send(f"finish {limit} {path}")
        pidfd = os.pidfd_open(await reports.wait("in the block"))
        try:
            yield server, peer, pidfd
        finally:
            os.close(pidfd)


async def test_a_process_is_killed_when_its_block_ends(
    reports: Reports, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with finishing(reports, tmp_path / "file") as (server, peer, pidfd):
        assert server.statistics().finishing == 1
        peer.kill()
        await until(lambda: outcomes(server) == {"cancelled_by_disconnect": 1})
        assert server.statistics().finishing == 1
        (tmp_path / "file").touch()
        await reports.wait("done: disconnected")
        await trio.lowlevel.wait_readable(pidfd)
        await until(lambda: server.statistics().killed == 1)
        await until(lambda: server.statistics().finishing == 0)
        assert server.statistics().died == 0
    assert reports.rest() == []  # the function was killed where the block ended
    assert "finishing block" not in caplog.text


async def test_a_process_is_killed_when_the_limit_is_over(
    reports: Reports, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with finishing(reports, tmp_path / "never", limit=0.2) as (server, peer, pidfd):
        before = trio.current_time()
        peer.kill()
        await trio.lowlevel.wait_readable(pidfd)
        assert trio.current_time() - before >= 0.2
        await until(lambda: server.statistics().killed == 1)
        await until(lambda: server.statistics().finishing == 0)
    assert reports.rest() == []
    assert "a finishing block has not ended within its limit of 0.2 s" in caplog.text


async def test_with_a_grace_the_function_goes_on_after_the_block(
    reports: Reports, tmp_path: Path
) -> None:
    async with finishing(reports, tmp_path / "file", grace=LIMIT) as (server, peer, _):
        peer.kill()
        await until(lambda: outcomes(server) == {"cancelled_by_disconnect": 1})
        (tmp_path / "file").touch()
        await reports.wait("done: disconnected")
        await reports.wait("left")
        await server.drain(0)  # which ends it


async def test_after_the_block_a_function_has_its_grace_and_not_the_limit(
    reports: Reports, tmp_path: Path
) -> None:
    async with finishing(reports, tmp_path / "file", limit=1000, grace=0.5) as (_, peer, pidfd):
        (tmp_path / "file").touch()
        peer.kill()
        await reports.wait("done: disconnected")
        await trio.lowlevel.wait_readable(pidfd)


async def test_a_drain_that_is_over_kills_a_process_in_its_block(
    reports: Reports, tmp_path: Path
) -> None:
    async with finishing(reports, tmp_path / "never", limit=1000) as (server, _, pidfd):
        await server.drain(0)
        await trio.lowlevel.wait_readable(pidfd)
    assert reports.rest() == []


async def test_a_server_that_stops_lets_a_process_finish(reports: Reports, tmp_path: Path) -> None:
    async with finishing(reports, tmp_path / "file", limit=LIMIT) as (server, _, pidfd):
        server.stop()
        await until(lambda: outcomes(server) == {"shut_down": 1})
        (tmp_path / "file").touch()
        await reports.wait("done: shutdown")
        await trio.lowlevel.wait_readable(pidfd)


async def test_the_recipe_with_sqlite_writes_both(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    page = (DOCS / "handlers.md").read_text()
    (recipe,) = (
        block
        for block in re.findall(r"^```python\n(.*?)^```$", page, re.DOTALL | re.MULTILINE)
        if "import sqlite3" in block
    )
    names: dict[str, Any] = {"__name__": "recipe", "__file__": str(tmp_path / "recipe.py")}
    exec(compile(recipe, "recipe", "exec"), names)  # it is our own page
    paying, paid = trio.Event(), trio.Event()

    async def pay(order: str) -> str:
        paying.set()
        await paid.wait()
        return f"receipt for {order}"

    monkeypatch.setitem(names, "pay", pay)
    async with serving(names["handler"]) as server, open_client_process() as peer:
        await peer.connect(server.endpoints[0])
        await peer.send("tea")
        await paying.wait()
        peer.kill()
        await until(lambda: outcomes(server) == {"cancelled_by_disconnect": 1})
        paid.set()
        await until(lambda: server.statistics().running == 0)
        assert server.statistics().replies_sent == 0
    rows = sqlite3.connect(tmp_path / "payments.db").execute("SELECT * FROM payments").fetchall()
    assert rows == [("tea", "receipt for tea")]
