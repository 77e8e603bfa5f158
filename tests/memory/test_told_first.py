"""Clients are answered at the shutdown before their handlers are cancelled, whatever ends it.

Deterministic: no kernel, no threads. trio runs tasks in one order or in the other, by a seed; each
test has many seeds.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import trio
from support.handlers import Worker
from support.memory import serving
from trio.testing import MockClock, wait_all_tasks_blocked

import trioreq
from trioreq._server.requests import Requests
from trioreq.testing import MemoryClient, MemoryNetwork

EACH_SEED = pytest.mark.parametrize("seed", range(8))
SHUTTING_DOWN = [b"trioreq-error", b"shutting-down", b"the server is shutting down"]


async def told_first(
    error: BaseException,
    handler: Callable[[Worker], Callable[[trioreq.Request], Any]],
    fail: Callable[[MemoryNetwork], Any],
    **options: Any,
) -> None:
    """Serve, have a handler wait, and have the server fail."""
    worker = Worker()
    clients: list[MemoryClient] = []

    async def serve_until_it_fails() -> None:
        async with serving(handler(worker), **options) as net:
            clients.append(net.connect())
            clients[0].send(b"wait")
            await worker.log.wait("started wait")
            fail(net)
            await trio.sleep_forever()

    with pytest.raises(type(error)) as ended:
        await serve_until_it_fails()
    assert ended.value is error
    assert "cancelled wait: shutdown" in worker.log.entries
    assert await clients[0].receive() == SHUTTING_DOWN


@EACH_SEED
@pytest.mark.parametrize("kind", [SystemExit, KeyboardInterrupt])
@pytest.mark.parametrize("grouped", [False, True])
async def test_when_admit_ends_the_program(
    autojump_clock: MockClock, seed: int, kind: Any, grouped: bool
) -> None:
    error = kind("the end")
    protected: list[bool] = []

    async def admit(_: trioreq.Applicant) -> str:
        protected.append(trio.lowlevel.currently_ki_protected())
        await trio.lowlevel.checkpoint()
        if len(protected) > 1:
            raise BaseExceptionGroup("of a nursery", [error]) if grouped else error
        return ""

    await told_first(error, lambda worker: worker, MemoryNetwork.connect, seed=seed, admit=admit)
    assert protected == [False, False]  # Ctrl-C may interrupt it


@EACH_SEED
async def test_when_a_task_in_a_clients_nursery_fails(
    autojump_clock: MockClock, seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    error, release = LookupError("planted"), trio.Event()
    finish = Requests.finish

    def planted(self: Requests, request: Any, result: object) -> None:
        if request.body == b"fault":
            raise error
        finish(self, request, result)

    def handler(worker: Worker) -> Callable[[trioreq.Request], Any]:
        async def handle(request: trioreq.Request) -> bytes:
            if request.body == b"wait":
                await worker(request)
            elif request.body == b"before":
                await release.wait()
            return b""

        return handle

    def fail(net: MemoryNetwork) -> None:
        client = net.connect(socket_type="DEALER")
        client.send(b"before")
        client.send(b"fault")  # waits for a slot, and so has a task of its own
        net.server._nursery.start_soon(release_when_it_waits)

    async def release_when_it_waits() -> None:
        await wait_all_tasks_blocked()
        release.set()

    monkeypatch.setattr(Requests, "finish", planted)
    await told_first(error, handler, fail, seed=seed, max_in_flight=2)
