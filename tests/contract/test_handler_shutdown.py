"""What a handler and its client get when the server ends, also by its own fault.

Everything waits for events. A fault is planted in one function of the server, and happens when a
client next makes the server call it.
"""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest
import trio
import trio.testing
from support.ended import Ended, Fault
from support.handlers import ThreadWorker, Worker
from support.nets import Net
from support.serving import until

import trioreq
import trioreq.testing
from trioreq._protocol.connection_table import ConnectionTable
from trioreq._protocol.fair_queue import FairQueue
from trioreq._server.admission import Admission
from trioreq._server.deadlines import Deadlines
from trioreq._server.reader import Reader
from trioreq._server.requests import Requests
from trioreq._transport.outbox import Outbox
from trioreq._transport.router import Router

EACH_WORKER = pytest.mark.parametrize("worker_type", [Worker, ThreadWorker])
SHUTTING_DOWN = [b"trioreq-error", b"shutting-down", b"the server is shutting down"]


@pytest.fixture
def fault(monkeypatch: pytest.MonkeyPatch) -> Fault:
    return Fault(monkeypatch)


FAULTS = {
    "accept": (Requests, "accept"),
    "begin batch": (Requests, "begin_batch"),
    "read": (Reader, "read"),
    "read batch": (Router, "read_batch"),
    "monitor": (Router, "read_monitor"),
    "flush": (Outbox, "flush"),
    "send": (Outbox, "send"),
    "take": (FairQueue, "take"),
    "zap": (Admission, "answer"),
    "accepted": (ConnectionTable, "accepted"),
    "disconnected": (ConnectionTable, "disconnected"),
}


@EACH_WORKER
@pytest.mark.parametrize("name", FAULTS)
async def test_a_fault_of_the_server_ends_serve_with_it_and_clients_are_answered(
    net: Net, worker_type: Any, name: str, fault: Fault
) -> None:
    worker = worker_type()
    ended = Ended()
    await ended.serve(net, worker)
    running, leaves = await net.connect(), await net.connect()
    await leaves.send(b"echo")
    assert await leaves.receive() == [b"re:echo"]
    await running.send(b"wait")
    await worker.log.wait("started wait")
    fault.plant(*FAULTS[name])
    if name in ("zap", "accepted"):
        await net.connect()
    elif name == "disconnected":
        await leaves.close()
    else:
        await leaves.send(b"echo")
    with trio.fail_after(10):
        await ended.over.wait()
    assert ended.error is fault.error
    assert await running.receive() == SHUTTING_DOWN
    await worker.log.wait("cancelled wait: shutdown")


@EACH_WORKER
async def test_a_fault_as_a_handler_ends_ends_serve_with_it(
    net: Net, worker_type: Any, fault: Fault
) -> None:
    """In a task in a client's nursery, or what threads call."""
    worker = worker_type()
    ended = Ended()
    server = await ended.serve(net, worker, max_in_flight=2)
    running, first, second = [await net.connect() for _ in range(3)]
    await running.send(b"wait and stay")
    await worker.log.wait("started wait and stay")
    await first.send(b"wait")
    await worker.log.wait("started wait")
    await second.send(b"echo")
    await until(lambda: server.statistics().waiting == 1)
    fault.plant(Requests, "finish")
    worker.release.set()
    with trio.fail_after(10):
        await ended.over.wait()
    assert ended.error is fault.error


@pytest.mark.parametrize("name", ["flush", "send"])
async def test_a_fault_that_stays_ends_serve_with_the_first(
    net: Net, name: str, fault: Fault
) -> None:
    worker = Worker()
    ended = Ended()
    await ended.serve(net, worker)
    running, other = await net.connect(), await net.connect()
    await running.send(b"wait")
    await worker.log.wait("started wait")
    fault.plant(*FAULTS[name], always=True)
    await other.send(b"echo")
    with trio.fail_after(10):
        await ended.over.wait()
    assert ended.error is fault.error
    await worker.log.wait("cancelled wait: shutdown")


@pytest.mark.parametrize("name", ["flush", "send"])
async def test_a_fault_as_the_server_is_cancelled_does_not_hold_it_up(
    net: Net, name: str, fault: Fault
) -> None:
    worker = Worker()
    ended = Ended()
    server = await ended.serve(net, worker)
    await (await net.connect()).send(b"wait")
    await worker.log.wait("started wait")
    fault.plant(*FAULTS[name])
    await server.drain(0)
    with trio.fail_after(10):
        await ended.over.wait()
    assert ended.error is fault.error


@EACH_WORKER
async def test_a_task_of_the_server_that_fails_ends_serve_with_its_error(
    net: Net, worker_type: Any, fault: Fault
) -> None:
    worker = worker_type()
    now = fault.plant_task(Deadlines, "run")
    ended = Ended()
    await ended.serve(net, worker)
    client = await net.connect()
    await client.send(b"wait")
    await worker.log.wait("started wait")
    now.set()
    with trio.fail_after(10):
        await ended.over.wait()
    assert ended.error is fault.error
    assert await client.receive() == SHUTTING_DOWN
    await worker.log.wait("cancelled wait: shutdown")


async def test_an_exception_that_ends_programs_in_admit_ends_serve_after_clients_are_answered(
    net: Net,
) -> None:
    worker = Worker()
    error = SystemExit("the end")
    admitted = 0

    async def admit(applicant: trioreq.Applicant) -> str:
        nonlocal admitted
        admitted += 1
        if admitted == 2:
            raise error
        return "somebody"

    ended = Ended()
    server = await ended.serve(net, worker, max_in_flight=1, admit=admit)
    client = await net.connect("DEALER")
    for body in (b"shield", b"queued"):
        await client.send(body)
    await until(lambda: server.statistics().waiting == 1)
    await net.connect()
    assert [await client.receive() for _ in range(2)] == [SHUTTING_DOWN] * 2  # and then it waits
    assert not ended.over.is_set()
    worker.release.set()
    await ended.over.wait()
    assert ended.error is error


async def test_each_handler_and_its_children_see_the_shutdown(net: Net) -> None:
    many = 5
    seen = []
    started = 0

    async def child(request: trioreq.Request) -> None:
        nonlocal started
        started += 1
        try:
            await trio.sleep_forever()
        finally:
            seen.append(request.cancel_reason)

    async def handler(request: trioreq.Request) -> bytes:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(child, request)
            await child(request)
        raise AssertionError

    await net.serve(handler)
    client = await net.connect("DEALER")
    for _ in range(many):
        await client.send(b"x")
    await until(lambda: started == 2 * many)
    await net.stop()
    assert seen == ["shutdown"] * 2 * many
    assert [await client.receive() for _ in range(many)] == [SHUTTING_DOWN] * many


CRASH = """
import time, trio, trio.testing, trioreq.testing

class CrashingClock(trio.abc.Clock):
    crash = False

    def start_clock(self):
        pass

    def current_time(self):
        return time.monotonic()

    def deadline_to_sleep_time(self, deadline):
        if self.crash:
            raise LookupError("in trio itself")
        return deadline - time.monotonic()

async def handler(request):
    try:
        await trio.sleep_forever()
    except GeneratorExit:
        print("closed", request.body)
        raise

async def main():
    async with trioreq.testing.open_memory_server(handler) as net:
        client = net.connect(socket_type="DEALER")
        for body in (b"1", b"2"):
            client.send(body)
        await trio.testing.wait_all_tasks_blocked()
        assert net.server.statistics().running == 2
        clock.crash = True
        await trio.sleep_forever()

clock = CrashingClock()
trio.run(main, clock=clock)
"""


@pytest.mark.slow
def test_a_crash_of_trio_closes_handlers_and_they_have_not_failed() -> None:
    """Python closes their coroutines when nothing runs any more: GeneratorExit.

    In a process of its own: what trio leaves behind is closed at any time.
    """
    ran = subprocess.run(
        [sys.executable, "-c", CRASH], capture_output=True, text=True, timeout=30, check=False
    )
    assert sorted(ran.stdout.splitlines()) == ["closed b'1'", "closed b'2'"]
    assert "TrioInternalError" in ran.stderr
    assert "the handler failed" not in ran.stderr  # where the log goes
