"""Worker processes: what kills them, what they leave behind, and what replaces them.

Real processes and signals. Functions report themselves what they do (`Reports`), and the end of a
process is awaited by its pidfd.
"""

from __future__ import annotations

import errno
import gc
import logging
import os
import pickle
import signal
import socket
import sys
import threading
import weakref
from collections.abc import Iterator
from contextlib import suppress
from functools import partial
from multiprocessing import popen_fork, popen_spawn_posix
from pathlib import Path
from typing import Any

import psutil
import pytest
import trio
from support import jobs
from support.jobs import Reports, open_reports
from support.serving import LIMIT, until
from support.working import give_up, gone, working

import trioreq
from harness.children import open_child, open_process
from harness.clients import open_client_process
from trioreq._server import processes, worker_process
from trioreq._server.channel import ServerEnd

pytestmark = pytest.mark.slow

One = partial(trioreq.ProcessWorkers, 1, spares=0)


@pytest.fixture
def reports(tmp_path: Path) -> Iterator[Reports]:
    with open_reports(str(tmp_path / "reports")) as opened:
        yield opened


def children() -> set[int]:
    """The processes that this one has started, but for the tracker of shared memory."""
    found = psutil.Process().children(recursive=True)
    return {child.pid for child in found if "resource_tracker" not in " ".join(child.cmdline())}


def shared_memory() -> set[Path]:
    """What this process has open."""
    found = set()
    for descriptor in Path("/proc/self/fd").iterdir():
        with suppress(FileNotFoundError):  # the one by which it is listed
            found.add(descriptor.readlink())
    return {path for path in found if path.name.startswith("psm_")}


# Kills.


async def test_a_killed_client_ends_a_call_into_c(reports: Reports) -> None:
    async with working(One()) as (server, client), open_client_process() as peer:
        await peer.connect(server.endpoints[0])
        await peer.send("compute it")
        pid = await reports.wait("computes it")
        peer.kill()
        await gone(pid)
        assert await client.request(b"check") == b"goes on"
        assert server.statistics().killed == 1
        assert server.statistics().died == 0
    assert reports.rest() == []


async def test_processes_that_the_function_has_started_are_killed_too(reports: Reports) -> None:
    async with working(One()) as (_, client), trio.open_nursery() as nursery:
        nursery.start_soon(client.request, b"spawn")
        text, _, worker = (await reports.next()).rpartition(" ")
        nursery.cancel_scope.cancel()
    child = int(text.removeprefix("started "))
    await gone(int(worker))
    await gone(child)


async def test_processes_that_a_function_has_left_running_end_with_its_worker(
    reports: Reports,
) -> None:
    async with working(One()) as (_, client):
        child = int(await client.request(b"leave"))
        assert psutil.pid_exists(child)
    await gone(child)


async def test_a_kill_affects_no_other_request(reports: Reports, tmp_path: Path) -> None:
    async with (
        working(trioreq.ProcessWorkers(2)) as (server, client),
        trio.open_nursery() as nursery,
    ):
        replies = []

        async def other() -> None:
            replies.append(await client.request(f"until {tmp_path}/file".encode()))

        nursery.start_soon(other)
        await reports.wait("waits")
        for number in range(3):
            await give_up(client, b"compute %d" % number, reports, f"computes {number}")
            assert await client.request(b"check") == b"goes on"
        (tmp_path / "file").touch()
        await reports.wait("ended")
        await until(lambda: bool(replies))
        assert replies == [b"ended"]
        await until(lambda: server.statistics().killed == 3)
    assert reports.rest() == []  # none has run twice


async def test_a_worker_that_is_killed_as_its_answer_comes_gets_no_other_request(
    reports: Reports, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    receive = ServerEnd.receive
    answered = trio.Event()
    answers = []

    async def late(self: Any) -> bytes | None:
        message = await receive(self)
        if message is not None and isinstance(answer := pickle.loads(message), tuple):
            answers.append(answer)
            if not answered.is_set():
                answered.set()
                with trio.CancelScope(shield=True):
                    await gone(int(answer[0]))
        return message

    monkeypatch.setattr(ServerEnd, "receive", late)
    async with working(One()) as (server, client):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(client.request, b"pid")
            await answered.wait()
            nursery.cancel_scope.cancel()
        assert await client.request(b"check") == b"goes on"
        counted = server.statistics()
        assert (counted.killed, counted.died) == (1, 0)
    assert answers[1:] == [(b"goes on",)]
    assert not [record for record in caplog.records if record.levelno >= logging.ERROR]


async def test_a_spare_takes_the_next_request_while_the_killed_one_is_replaced(
    reports: Reports, monkeypatch: pytest.MonkeyPatch
) -> None:
    starts = []
    start = worker_process.Process.start

    async def never_again(self: Any, *args: Any) -> None:
        starts.append(args)
        if len(starts) > 2:
            await trio.sleep_forever()
        await start(self, *args)

    monkeypatch.setattr(worker_process.Process, "start", never_again)
    async with working(trioreq.ProcessWorkers(1, spares=1)) as (server, client):
        counted = server.statistics().workers
        assert (counted.alive, counted.spare, counted.busy) == (2, 2, 0)
        killed = await give_up(client, b"compute it", reports, "computes it")
        assert int(await client.request(b"pid")) != killed
        await gone(killed)
        await until(lambda: server.statistics().workers.alive == 1)
        assert server.statistics().killed == 1


async def test_kills_leave_no_process_and_no_descriptor(reports: Reports) -> None:
    gc.collect()  # what earlier tests have left must not be closed meanwhile
    before, shared = children(), shared_memory()
    async with working(One(grace=0.01)) as (server, client):
        assert len(children() - before) == 1
        (memory,) = shared_memory() - shared
        descriptors = set()
        for number in range(5):
            pid = await give_up(client, b"deaf %d" % number, reports, f"waits {number}")
            await gone(pid)
            assert await client.request(b"check") == b"goes on"
            descriptors.add(psutil.Process().num_fds())
        assert server.statistics().killed == 5
    assert len(descriptors) == 1
    assert children() <= before
    assert shared_memory() <= shared
    assert not memory.exists()


# Grace.


@pytest.mark.parametrize("how", ["cancelled", "shutdown"])
async def test_a_function_that_ignores_check_cancelled_is_killed_after_the_grace(
    reports: Reports, how: str
) -> None:
    async with working(One(grace=0.1)) as (server, client):
        if how == "cancelled":
            await gone(await give_up(client, b"deaf it", reports, "waits it"))
            assert await client.request(b"check") == b"goes on"
            assert server.statistics().killed == 1
        else:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(_ask_in_vain, client, b"deaf it")
                pid = await reports.wait("waits it")
                await server.drain(0)
                await gone(pid)
    assert reports.rest() == []


async def _ask_in_vain(client: trioreq.Client, body: bytes) -> None:
    with pytest.raises(trioreq.ReplyError, match="shutting-down"):
        await client.request(body)


async def test_a_late_kill_does_not_hit_the_next_request(reports: Reports, tmp_path: Path) -> None:
    """A function ends within its grace, and the same process runs the next past that time."""
    async with working(One(grace=0.3)) as (server, client):
        pid = await give_up(client, f"until {tmp_path}/1".encode(), reports, "waits")
        async with trio.open_nursery() as nursery:
            replies = []

            async def next_one() -> None:
                replies.append(await client.request(f"until {tmp_path}/2".encode()))

            nursery.start_soon(next_one)
            (tmp_path / "1").touch()
            await reports.wait("ended")
            assert await reports.wait("waits") == pid
            await trio.sleep(0.6)  # past the end of the grace
            (tmp_path / "2").touch()
        assert replies == [b"ended"]
        assert int(await client.request(b"pid")) == pid
        assert server.statistics().killed == 0


# Deaths.


@pytest.mark.parametrize(
    ("how", "cause"),
    [
        ("segmentation fault", "SIGSEGV"),
        ("SIGKILL", "SIGKILL"),
        ("0", "exit code 0"),
        ("3", "exit code 3"),
    ],
)
async def test_a_death_is_handler_failed_with_its_cause_and_the_worker_is_replaced(
    reports: Reports, how: str, cause: str, caplog: pytest.LogCaptureFixture
) -> None:
    async with working(One()) as (server, client):
        with pytest.raises(trioreq.ReplyError) as caught:
            await client.request(b"die " + how.encode())
        assert (caught.value.code, caught.value.text) == ("handler-failed", f"worker died: {cause}")
        assert f"worker died: {cause}" in caplog.messages
        assert await client.request(b"check") == b"goes on"
        counted = server.statistics()
        assert (counted.failed, counted.died, counted.killed) == (1, 1, 0)


async def test_the_cause_of_a_death_is_known_though_another_thread_has_reaped_the_process(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A thread that starts a process lets multiprocessing do so, which has the code later."""
    poll, reaped = popen_fork.Popen.poll, list[popen_fork.Popen]()

    def reap(popen: popen_fork.Popen, flag: int = os.WNOHANG) -> int | None:
        if reaped:
            return poll(popen, flag)
        pid, status = os.waitpid(popen.pid, flag)
        if pid:
            reaped.append(popen)
            code = os.waitstatus_to_exitcode(status)
            threading.Timer(0.1, lambda: setattr(popen, "returncode", code)).start()
        return None

    monkeypatch.setattr(popen_fork.Popen, "poll", reap)
    async with working(One()) as (server, client):
        with pytest.raises(trioreq.ReplyError, match="worker died: exit code 3"):
            await client.request(b"die 3")
        assert reaped
        assert await client.request(b"check") == b"goes on"
        assert server.statistics().died == 1


async def test_workers_die_and_are_replaced_in_a_program_that_ignores_sigchld() -> None:
    """The kernel reaps them itself then, and tells no exit code."""
    before = signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    try:
        async with working(One()) as (_, client):
            with pytest.raises(trioreq.ReplyError, match="worker died: its exit code is unknown"):
                await client.request(b"die 3")
            assert await client.request(b"check") == b"goes on"
    finally:
        signal.signal(signal.SIGCHLD, before)


async def test_a_failure_in_what_follows_a_process_ends_the_server(
    reports: Reports, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def fail(_: BaseException) -> str:
        raise ValueError("a fault of our own")

    async def serve() -> None:
        async with working(One()) as (_, client):
            await give_up(client, b"compute it", reports, "computes it")
            await trio.sleep_forever()

    monkeypatch.setattr(worker_process, "cause_of_death", fail)
    with pytest.raises(ValueError, match="a fault of our own"):
        await serve()


async def test_the_death_of_a_worker_that_has_forked_is_noticed(reports: Reports) -> None:
    async with working(One()) as (_, client):
        with pytest.raises(trioreq.ReplyError, match="worker died: exit code 3"):
            await client.request(b"fork_and_die")
        assert await client.request(b"check") == b"goes on"


async def test_a_deliberate_kill_is_logged_at_debug_alone(
    reports: Reports, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG, "trioreq")
    async with working(One()) as (server, client):
        await give_up(client, b"compute it", reports, "computes it")
        await until(lambda: server.statistics().killed == 1)
    (record,) = [record for record in caplog.records if "a worker is killed" in record.message]
    assert record.levelno == logging.DEBUG


async def test_an_idle_worker_that_dies_is_replaced(caplog: pytest.LogCaptureFixture) -> None:
    async with working(One()) as (server, client):
        pid = int(await client.request(b"pid"))
        os.kill(pid, signal.SIGKILL)
        await until(lambda: server.statistics().died == 1)
        assert "worker died: between two requests" in caplog.messages
        assert int(await client.request(b"pid")) != pid


async def test_a_request_for_a_worker_that_is_dead_is_run_once_by_another(
    reports: Reports, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As without a pidfd for the death."""
    monkeypatch.delattr(os, "pidfd_open")
    async with working(One()) as (server, client):
        pid = int(await client.request(b"pid"))
        os.kill(pid, signal.SIGKILL)
        await gone(pid)
        with pytest.raises(trioreq.ReplyError, match="no-luck"):
            await client.request(b"fail reply")
        assert int(await client.request(b"pid")) != pid
        assert server.statistics().died == 1


# Starts.


def closure() -> Any:
    def inner(request: trioreq.Request) -> bytes:
        raise AssertionError

    return inner


async def asynchronous(request: trioreq.Request) -> bytes:
    raise AssertionError


@pytest.mark.parametrize(
    ("handler", "text"),
    [
        (lambda _: b"", "handler must be a function that can be pickled"),
        (closure(), "handler must be a function that can be pickled"),
        (asynchronous, "handler must be a plain function with ProcessWorkers"),
    ],
)
async def test_a_function_that_cannot_run_in_a_process_is_a_type_error(
    handler: Any, text: str
) -> None:
    with pytest.raises(TypeError, match=text):
        await trioreq.serve(handler, "tcp://127.0.0.1:0", workers=One())


async def test_an_initializer_that_cannot_be_pickled_is_a_type_error() -> None:
    workers = One(initializer=lambda: None)
    with pytest.raises(TypeError, match="initializer must be a function that can be pickled"):
        await trioreq.serve(jobs.work, "tcp://127.0.0.1:0", workers=workers)


async def test_the_initializer_runs_once_in_each_worker() -> None:
    async with working(One(initializer=jobs.load)) as (_, client):
        for _ in range(2):
            assert await client.request(b"what_is_loaded") == b"model"


@pytest.mark.parametrize(
    ("initializer", "text"),
    [
        (jobs.fail_to_load, "a worker process cannot be started: LookupError: there is no model"),
        (jobs.die_at_start, "a worker process cannot be started: exit code 7"),
        (
            jobs.fail_unreadably,
            "a worker process cannot be started: RuntimeError: what a worker has sent cannot be "
            "read: LookupError('made in another process')",
        ),
    ],
)
async def test_a_first_start_that_fails_is_reported_by_serve(initializer: Any, text: str) -> None:
    before = children()
    workers = trioreq.ProcessWorkers(2, initializer=initializer)
    with trio.fail_after(LIMIT), pytest.raises(trioreq.WorkersFailed) as caught:
        async with trioreq.open_server(jobs.work, "tcp://127.0.0.1:0", workers=workers):
            raise AssertionError
    assert str(caught.value) == text
    assert children() <= before


async def test_starts_that_fail_again_and_again_end_the_server(
    reports: Reports, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TRIOREQ_TEST_BROKEN", str(tmp_path / "broken"))
    monkeypatch.setattr(processes, "PAUSE", 0.01)

    async def break_it() -> None:
        async with working(One(initializer=jobs.load_once)) as (_, client):
            (tmp_path / "broken").touch()
            with pytest.raises(trioreq.ReplyError, match="worker died"):
                await client.request(b"die 1")
            with pytest.raises(trioreq.ReplyError, match="shutting-down"):
                await client.request(b"check")
            await trio.sleep_forever()

    with pytest.raises(trioreq.WorkersFailed, match="the model is gone"):
        await break_it()
    assert reports.rest() == ["failed to load"] * processes.TRIES


async def test_a_start_that_is_cancelled_leaves_no_connection(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    connected = trio.Event()

    async def receive_start(_: Any) -> None:
        connected.set()
        await trio.sleep_forever()

    monkeypatch.setattr(worker_process.Process, "receive_start", receive_start)
    with trio.fail_after(LIMIT):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(partial(trioreq.serve, jobs.work, "ipc://*", workers=One()))
            await connected.wait()
            nursery.cancel_scope.cancel()
    gc.collect()  # Python warns of a socket that is open


class Shortage:
    """A function that fails a number of times, as where the system lacks what it needs."""

    def __init__(
        self, monkeypatch: pytest.MonkeyPatch, owner: Any, name: str, error: Exception
    ) -> None:
        self._function = getattr(owner, name)
        self._error = error
        self.left = 0
        shortage = self

        def call(*args: Any, **options: Any) -> Any:
            if shortage.left:
                shortage.left -= 1
                raise shortage._error
            return shortage._function(*args, **options)

        monkeypatch.setattr(owner, name, call)


FULL = OSError(errno.ENOSPC, "No space left on device")
NO_DESCRIPTOR = OSError(errno.EMFILE, "Too many open files")
NO_THREAD = RuntimeError("can't start new thread")
SHORTAGES = pytest.mark.parametrize(
    ("owner", "name", "error"),
    [
        pytest.param(worker_process, "SharedMemory", NO_DESCRIPTOR, id="shared memory"),
        pytest.param(os, "posix_fallocate", FULL, id="full shared memory"),
        pytest.param(worker_process, "TemporaryDirectory", FULL, id="temporary directory"),
        pytest.param(socket.socket, "bind", OSError("AF_UNIX path too long"), id="path"),
        pytest.param(socket.socket, "accept", NO_DESCRIPTOR, id="connection"),
        pytest.param(os, "pidfd_open", NO_DESCRIPTOR, id="pidfd"),
        pytest.param(trio.to_thread, "run_sync", NO_THREAD, id="thread"),
        pytest.param(popen_spawn_posix.Popen, "_launch", OSError(errno.EAGAIN, ""), id="fork"),
    ],
)


@SHORTAGES
async def test_a_shortage_at_the_first_start_is_reported_by_serve(
    owner: Any, name: str, error: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = children()
    shortage = Shortage(monkeypatch, owner, name, error)
    shortage.left = 1000
    with (
        trio.fail_after(LIMIT),
        pytest.raises(
            trioreq.WorkersFailed, match="a worker process cannot be started: "
        ) as caught,
    ):
        async with trioreq.open_server(
            jobs.work, "ipc://*", workers=trioreq.ProcessWorkers(2), watchdog=None
        ):
            raise AssertionError
    assert f"{type(error).__name__}: {error}" in str(caught.value)
    assert children() <= before


@SHORTAGES
async def test_a_process_is_replaced_when_a_shortage_is_over(
    owner: Any,
    name: str,
    error: Exception,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(processes, "PAUSE", 0.01)
    shortage = Shortage(monkeypatch, owner, name, error)
    async with working(One()) as (server, client):
        shortage.left = 2
        with pytest.raises(trioreq.ReplyError, match="worker died"):
            await client.request(b"die 3")
        assert await client.request(b"check") == b"goes on"
        assert shortage.left == 0
        assert server.statistics().died == 1
    assert f"{type(error).__name__}: {error}; it is retried" in caplog.text


@pytest.mark.parametrize("number", [errno.ENOSYS, errno.EPERM])
async def test_processes_are_started_on_a_system_without_pidfds(
    monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    shortage = Shortage(monkeypatch, os, "pidfd_open", OSError(number, ""))
    shortage.left = 1000
    async with working(One()) as (_, client):
        assert await client.request(b"check") == b"goes on"
        with pytest.raises(trioreq.ReplyError, match="worker died: exit code 3"):
            await client.request(b"die 3")
        assert await client.request(b"check") == b"goes on"


async def test_an_error_of_the_server_itself_is_not_retried(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async def serve() -> None:
        async with working(One()) as (_, client):
            shortage.left = 1000
            with suppress(trioreq.ReplyError):
                await client.request(b"check")
            await trio.sleep_forever()

    shortage = Shortage(monkeypatch, processes, "read_message", OSError("a fault of our own"))
    with pytest.raises(OSError, match="a fault of our own"):
        await serve()
    assert not [record for record in caplog.records if record.levelno >= logging.ERROR]


# Retirement.


async def test_a_worker_is_retired_after_so_many_requests() -> None:
    async with working(One(retire_after=2)) as (server, client):
        pids = [int(await client.request(b"pid")) for _ in range(5)]
        assert pids[0] == pids[1] != pids[2] == pids[3] != pids[4]
        assert server.statistics().retired == 2
        assert server.statistics().died == 0


async def test_a_worker_that_has_too_much_memory_is_retired() -> None:
    most = 300 * 1024 * 1024
    async with working(One(retire_above=most)) as (server, client):
        first = int(await client.request(b"pid"))
        assert worker_process.resident_memory(first) < most
        assert int(await client.request(b"grow %d" % most)) == first
        assert int(await client.request(b"pid")) != first
        assert server.statistics().retired == 1
    assert worker_process.resident_memory(first) == 0


# The server's own process.


PROGRAM = """
import logging, sys, trio, trioreq
from support import jobs

async def main():
    workers = trioreq.ProcessWorkers(2, spares=0)
    async with trioreq.open_server(jobs.work, "tcp://127.0.0.1:0", workers=workers) as server:
        print(server.endpoints[0], flush=True)
        with trio.open_signal_receiver(2, 15) as signals:
            async for number in signals:
                print("signal", number, flush=True)
                await server.drain(20)
                return

if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(name)s says %(message)s", stream=sys.stderr)
    trio.run(main)
"""


@pytest.fixture
def program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The command of a server in a process of its own."""
    (tmp_path / "program.py").write_text(PROGRAM)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(sys.path))
    monkeypatch.delenv("PYTHONUNBUFFERED", raising=False)
    return [sys.executable, str(tmp_path / "program.py")]


async def test_a_server_that_is_killed_leaves_nothing(reports: Reports, program: list[str]) -> None:
    """Not even a call into C, which keeps the GIL, nor what a function has started."""
    with trio.fail_after(LIMIT):
        async with open_child(program) as server:
            endpoint = await server.read_line()
            async with trioreq.open_client(endpoint) as client, trio.open_nursery() as nursery:
                nursery.start_soon(_ask_until_it_is_lost, client, b"compute it")
                computing = await reports.wait("computes it")
                nursery.start_soon(_ask_until_it_is_lost, client, b"spawn")
                text, _, spawning = (await reports.next()).rpartition(" ")
                server.kill()
                for pid in (computing, int(spawning), int(text.removeprefix("started "))):
                    await gone(pid)
                nursery.cancel_scope.cancel()
    assert reports.rest() == []


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
async def test_signals_to_all_processes_reach_the_server_alone_and_a_drain_lets_functions_finish(
    reports: Reports, program: list[str], tmp_path: Path, number: signal.Signals
) -> None:
    """As systemd sends them: to each process of a service."""
    with trio.fail_after(LIMIT):
        async with open_child(program) as server:
            endpoint = await server.read_line()
            async with trioreq.open_client(endpoint) as client, trio.open_nursery() as nursery:
                replies = []

                async def ask() -> None:
                    replies.append(await client.request(f"until {tmp_path}/file".encode()))

                nursery.start_soon(ask)
                worker = await reports.wait("waits")
                assert os.getpgid(worker) == worker != os.getpgid(server.pid)
                os.kill(worker, number)
                os.kill(server.pid, number)
                assert await server.read_line() == f"signal {number:d}"
                (tmp_path / "file").touch()
            assert replies == [b"ended"]
            await gone(worker)
            await server.process.wait()
            assert server.process.returncode == 0


CRASH = """
import time, trio, trioreq
from support import jobs

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

async def main():
    workers = trioreq.ProcessWorkers(1)
    async with trioreq.open_server(jobs.work, "tcp://127.0.0.1:0", workers=workers) as server:
        print(server.endpoints[0], flush=True)
        while not server.statistics().running:
            await trio.sleep(0.01)
        clock.crash = True
        await trio.sleep_forever()

clock = CrashingClock()
if __name__ == "__main__":
    try:
        trio.run(main, clock=clock)
    except trio.TrioInternalError:
        print("crashed")
"""


@pytest.fixture
def crashing(program: list[str]) -> list[str]:
    """The command of one in which trio crashes while a request is processed."""
    Path(program[-1]).write_text(CRASH)
    return program


async def test_processes_end_with_a_program_in_which_trio_has_crashed(
    reports: Reports, crashing: list[str]
) -> None:
    with trio.fail_after(LIMIT):
        async with open_child(crashing) as server, trio.open_nursery() as nursery:
            endpoint = await server.read_line()
            async with trioreq.open_client(endpoint) as client:
                nursery.start_soon(_ask_until_it_is_lost, client, b"compute it")
                pid = await reports.wait("computes it")
                assert await server.read_line() == "crashed"
                await server.process.wait()
                await gone(pid)
                nursery.cancel_scope.cancel()
    assert reports.rest() == []


async def _ask_until_it_is_lost(client: trioreq.Client, body: bytes) -> None:
    with suppress(trioreq.ConnectionLost, trioreq.ReplyError):
        await client.request(body)


async def test_nothing_is_kept_of_the_processes_of_a_server_that_has_ended(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    opened: list[weakref.ref[processes.Processes]] = []

    class Watched(processes.Processes):
        def __init__(self, *args: Any) -> None:
            super().__init__(*args)
            opened.append(weakref.ref(self))

    monkeypatch.setattr(processes, "Processes", Watched)
    async with working(One()):
        pass
    gc.collect()
    assert [watched() for watched in opened] == [None]


async def test_output_and_log_lines_of_workers_reach_the_servers_streams_whole(
    program: list[str], tmp_path: Path
) -> None:
    many = 30
    output = b""
    with trio.fail_after(LIMIT), (tmp_path / "stderr").open("w") as stderr:
        async with open_process(program, stderr) as process:
            assert isinstance(process.stdout, trio.lowlevel.FdStream)
            while not output.endswith(b"\n"):
                output += await process.stdout.receive_some()
            endpoint, output = output.decode().strip(), b""
            async with trioreq.open_client(endpoint) as client:
                await client.request_many([b"say %d" % n for n in range(many)])
                with pytest.raises(trioreq.ReplyError, match="worker died"):
                    await client.request(b"say_and_die last")
            process.terminate()
            async for some in process.stdout:
                output += some
    lines = output.decode().splitlines()
    assert sorted(lines[:-1]) == sorted(str(n) * 50 for n in [*range(many), "last"])
    logged = [
        line
        for line in (tmp_path / "stderr").read_text().splitlines()
        if line.startswith("jobs says ")
    ]
    assert sorted(logged) == sorted(f"jobs says logged {n}" for n in range(many))


# What a worker logs.


async def test_a_record_is_handled_in_the_server_before_the_reply_is_sent(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO, "jobs")
    async with working(One()) as (_, client):
        pid = int(await client.request(b"pid"))
        for number in range(20):
            await client.request(b"say %d" % number)
            assert caplog.messages[-1] == f"logged {number}"
    (record,) = [record for record in caplog.records if record.getMessage() == "logged 7"]
    assert record.process == pid
    assert record.levelno == logging.INFO


@pytest.mark.parametrize("level", [logging.DEBUG, logging.ERROR])
async def test_a_worker_logs_at_the_servers_levels(
    level: int, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(level, "jobs")
    async with working(One()) as (_, client):
        assert await client.request(b"log level") == b"%d" % level
        await client.request(b"say it")
    assert ("logged it" in caplog.messages) is (level == logging.DEBUG)


async def test_a_record_has_its_traceback_and_what_of_its_extra_can_be_sent(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async with working(One()) as (_, client):
        await client.request(b"log exception")
    (record,) = [record for record in caplog.records if record.name == "jobs"]
    assert record.getMessage() == "failed: 3"
    assert "ZeroDivisionError" in str(record.exc_text)
    assert vars(record)["order"] == 17
    assert "lock" in vars(record)["lock"]


async def test_a_record_that_cannot_be_read_is_a_warning(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async with working(One()) as (_, client):
        await client.request(b"log unreadable")
    assert "a record that a worker process logged cannot be read: no" in caplog.messages


async def test_records_from_before_a_death_and_before_a_kill_are_handled(
    reports: Reports, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "jobs")
    async with working(One()) as (server, client):
        with pytest.raises(trioreq.ReplyError, match="worker died"):
            await client.request(b"log die")
        assert "the last words" in caplog.messages
        await give_up(client, b"log compute", reports, "computes it")
        await until(lambda: "then it computes" in caplog.messages)
        await until(lambda: server.statistics().killed == 1)


async def test_a_server_that_does_not_read_delays_no_worker_and_dropped_records_are_counted(
    reports: Reports, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "jobs")
    async with working(One(initializer=jobs.be_impatient)) as (_, client):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(client.request, f"log flood {jobs.FLOOD}".encode())
            await reports.wait("floods")
            reports.block_until("flooded")
        ours = [record for record in caplog.records if record.name == "jobs"]
        (line,) = [message for message in caplog.messages if "were dropped" in message]
        assert len(ours) + int(line.split()[0]) == jobs.FLOOD
        assert [record.args or record.msg for record in ours] == [
            f"{number} " + "x" * 1000 for number in range(len(ours))
        ]


async def test_large_bodies_go_both_ways() -> None:
    body = os.urandom(16 * 1024 * 1024)
    async with working(One(), max_message_size=len(body)) as (_, client):
        reply = await client.request_multipart([b"big", body])
        assert list(reply) == [body]
