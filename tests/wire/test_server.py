"""`trioreq-server` as processes: signals, systemd's sockets and messages, death and restarts.

Real processes and real time; everything waits for events, under a limit.
"""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import psutil
import pytest
import trio
from support.served import COMMAND, LIMIT, Served, ended, served

import trioreq
from harness.children import open_process

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
ANY = "tcp://127.0.0.1:0"
KEPT_ALIVE = """
import threading
import sys

def run():
    threading.main_thread().join()
    print("the main thread has ended", file=sys.stderr, flush=True)
    threading.Event().wait()

async def handler(request):
    raise SystemExit(3)

threading.Thread(target=run).start()
"""


@asynccontextmanager
async def one(directory: Path, *arguments: str) -> AsyncIterator[tuple[Served, str]]:
    """A server, and its first endpoint."""
    async with served(directory, "--bind", ANY, *arguments) as server:
        yield server, (await server.serving())[0]


@asynccontextmanager
async def two(directory: Path, *arguments: str) -> AsyncIterator[tuple[Served, str, list[int]]]:
    """A server of two processes, its first endpoint, and their numbers."""
    async with served(directory, "--bind", ANY, "--processes", "2", *arguments) as server:
        endpoint = (await server.serving())[0]
        for _ in range(2):
            await server.line(" serves")
        yield server, endpoint, children(server)


def children(server: Served) -> list[int]:
    return sorted(child.pid for child in psutil.Process(server.process.pid).children())


async def exists(path: Path) -> None:
    """Wait for a file that a server writes."""
    while not path.exists():  # noqa: ASYNC110, ASYNC240  # no event of this process
        await trio.sleep(0.01)


async def ask(endpoint: str, body: bytes = b"pid") -> bytes:
    """Ask on a new connection."""
    async with trioreq.open_client(endpoint, timeout=LIMIT) as client:
        return await client.request(body)


async def fail(endpoint: str, body: bytes, errors: list[trioreq.TrioreqError]) -> None:
    """Ask what is not answered."""
    try:
        await ask(endpoint, body)
    except trioreq.TrioreqError as error:
        errors.append(error)


async def refused(port: int) -> None:
    """Wait until the kernel refuses connections."""
    while True:
        try:
            await (await trio.open_tcp_stream("127.0.0.1", port)).aclose()
        except OSError:
            return


# One process.


async def test_sigterm_lets_a_request_end_and_refuses_connections(tmp_path: Path) -> None:
    number = tmp_path / "pid"
    async with one(tmp_path, "--access-log", "--pid-file", str(number)) as (server, endpoint):
        async with trioreq.open_client(endpoint) as client, trio.open_nursery() as nursery:
            await client.request(b"first")
            assert (await server.line("replied"))["outcome"] == "replied"
            assert number.read_text() == f"{server.process.pid}\n"
            replies: list[bytes] = []

            async def slow() -> None:
                replies.append(await client.request(b"sleep 0.5"))

            nursery.start_soon(slow)
            while (await server.statistics(signal.SIGUSR1))["in_flight"] == 0:
                pass
            server.process.terminate()
            await server.line("draining: 1 requests in flight")
            await refused(int(endpoint.rpartition(":")[2]))
        assert replies == [b"%d" % server.process.pid]
        assert await ended(server) == 0
        assert not number.exists()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
async def test_a_second_signal_stops_the_server_at_once(tmp_path: Path, number: int) -> None:
    errors: list[trioreq.TrioreqError] = []
    async with one(tmp_path, "--grace", "1000") as (server, endpoint):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(fail, endpoint, b"sleep 1000", errors)
            while (await server.statistics(signal.SIGUSR1))["in_flight"] == 0:
                pass
            server.process.send_signal(number)
            await server.line("draining")
            server.process.send_signal(number)
        assert str(errors[0]).startswith("shutting-down")
        assert await ended(server) == 128 + number


async def test_a_third_signal_ends_a_server_whose_event_loop_is_blocked(tmp_path: Path) -> None:
    errors: list[trioreq.TrioreqError] = []
    async with one(tmp_path, "--watchdog", "0.1") as (server, endpoint):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(fail, endpoint, b"block 1000", errors)
            await server.line("event loop blocked")
            for _ in range(3):
                server.process.send_signal(signal.SIGINT)
                await trio.sleep(0.1)  # signals of one number do not queue up
        assert isinstance(errors[0], trioreq.ConnectionLost)
        assert await ended(server) == 128 + signal.SIGINT


@pytest.mark.parametrize("number", [signal.SIGHUP, signal.SIGUSR1])
def test_signals_during_the_import_do_not_end_the_server(number: int) -> None:
    code = (
        "import signal, trioreq_cli\n"
        "def imported(_):\n"
        f"    signal.raise_signal({number})\n"
        "    raise SystemExit(5)\n"
        "trioreq_cli.import_module = imported\n"
        "trioreq_cli.server()"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 5


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("fails", [False, True])
async def test_a_signal_ends_a_process_that_a_thread_keeps_alive_after_the_server(
    tmp_path: Path, number: int, fails: bool
) -> None:
    """The server has ended by itself, or was drained."""
    (tmp_path / "service.py").write_text(KEPT_ALIVE)
    async with one(tmp_path) as (server, endpoint):
        if fails:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(fail, endpoint, b"", [])
        else:
            server.process.send_signal(number)
        await server.line("the main thread has ended")
        server.process.send_signal(number)
        assert await ended(server) == -number


@pytest.mark.parametrize("processes", ["1", "2"])
async def test_signals_at_the_end_leave_no_file_and_do_not_change_the_exit_code(
    tmp_path: Path, processes: str
) -> None:
    """They come at any moment: until the process has ended."""
    files = tmp_path / "pid", tmp_path / "socket"
    options = ["--processes", processes, "--pid-file", str(files[0]), "--bind", f"ipc://{files[1]}"]
    async with served(tmp_path, *options) as server:
        await exists(files[0])
        server.process.terminate()
        while server.process.poll() is None:
            for number in (signal.SIGUSR1, signal.SIGHUP):
                server.process.send_signal(number)
            await trio.sleep(0.001)
        assert await ended(server) == 0
    assert [file for file in files if file.exists()] == []


@pytest.mark.parametrize("processes", ["1", "2"])
async def test_a_server_that_cannot_be_started_leaves_the_pid_file_of_the_other_alone(
    tmp_path: Path, processes: str
) -> None:
    number = tmp_path / "pid"
    options = ["--processes", processes, "--pid-file", str(number)]
    async with served(tmp_path, "--bind", ANY, *options) as server:
        endpoint = (await server.serving())[0]
        await exists(number)
        before = number.read_text()
        async with served(tmp_path, "--bind", endpoint, *options) as second:
            await second.line("the address is in use")
            assert await ended(second) == 2
        assert number.read_text() == before


@pytest.mark.parametrize("more", [["--check"], ["--processes", "1"], ["--processes", "2"]])
async def test_a_pid_file_that_cannot_be_written_ends_the_server_before_it_serves(
    tmp_path: Path, more: list[str]
) -> None:
    number = tmp_path / "missing/pid"
    async with served(tmp_path, "--bind", ANY, "--pid-file", str(number), *more) as server:
        assert await ended(server) == 2
        await server.line(f"Error: cannot write '{number}': No such file or directory")
        assert len(server.lines) == 1


async def test_sighup_reads_the_keys_again_and_keeps_connections(tmp_path: Path) -> None:
    first, second, alice, bob = (trioreq.KeyPair.generate() for _ in range(4))
    allowed = tmp_path / "allowed"
    allowed.mkdir()
    secret = first.save(tmp_path / "server")[1]
    alice.save(allowed / "alice")[1].unlink()
    async with one(tmp_path, "--curve-keys", str(secret), "--allow", str(allowed)) as (
        server,
        endpoint,
    ):
        known = trioreq.CurveClient(first.public, alice)
        async with trioreq.open_client(endpoint, curve=known) as before:
            assert await before.request(b"who") == b"alice"
            for name in ("server.key", "server.key_secret"):
                await (trio.Path(tmp_path) / name).unlink()
            second.save(tmp_path / "server")
            bob.save(allowed / "bob")[1].unlink()
            server.process.send_signal(signal.SIGHUP)
            await server.line("the keys were read again")
            with_new = trioreq.CurveClient(second.public, bob)
            async with trioreq.open_client(endpoint, curve=with_new) as after:
                assert await after.request(b"who") == b"bob"
            assert await before.request(b"who") == b"alice"
            await trio.Path(secret).chmod(0o644)
            server.process.send_signal(signal.SIGHUP)
            await server.line("the server's keys are unchanged")
        server.process.terminate()
        assert await ended(server) == 0


async def test_what_cannot_be_started_is_one_sentence(tmp_path: Path) -> None:
    """Also with several processes, each of which finds it."""
    (tmp_path / "service.py").write_text("handler = missing")
    async with served(tmp_path, "--bind", ANY, "--processes", "3") as server:
        assert await ended(server) == 2
        await server.line("Error: importing service raised NameError")
        assert [line["message"] for line in server.lines if "level" not in line] == [
            "Error: importing service raised NameError: name 'missing' is not defined "
            "(service.py, line 1)"
        ]


@pytest.mark.parametrize("processes", ["1", "2"])
async def test_a_module_beside_the_handler_hides_none_that_trioreq_imports(
    tmp_path: Path, processes: str
) -> None:
    (tmp_path / "queue.py").write_text("raise ImportError('not this one')")
    options = ["--bind", ANY, "--processes", processes]
    async with served(tmp_path, *options, cwd=tmp_path) as server:
        await server.serving()


async def test_a_first_process_that_is_killed_is_reported(tmp_path: Path) -> None:
    (tmp_path / "service.py").write_text("import os\nos.kill(os.getpid(), 9)")
    async with served(tmp_path, "--bind", ANY, "--processes", "2") as server:
        assert await ended(server) == 1
        await server.line("the first process cannot be started: SIGKILL")


@pytest.mark.parametrize("processes", ["1", "2"])
@pytest.mark.parametrize(
    ("address", "advice"),
    [
        ("tcp://nosuchif0:5555", "no such address or network interface"),
        ("tcp://192.0.2.1:5555", "this machine has no such address"),
        ("ipc:///nowhere/socket", "no such directory"),
    ],
)
async def test_an_address_that_cannot_be_bound_is_one_sentence(
    tmp_path: Path, address: str, advice: str, processes: str
) -> None:
    async with served(tmp_path, "--bind", address, "--processes", processes) as server:
        assert await ended(server) == 2
        await server.line(f"trioreq-server: cannot bind '{address}': {advice}")
        assert len([line for line in server.lines if "level" not in line]) == 1


async def test_the_page_of_the_server_is_true(tmp_path: Path) -> None:
    page = (ROOT / "docs/server.md").read_text()
    (source,) = re.findall(r"^```python\n(.*?)^```$", page, re.DOTALL | re.MULTILINE)
    (config,) = re.findall(r"^```toml\n(.*?)^```$", page, re.DOTALL | re.MULTILINE)
    (tmp_path / "server.py").write_text(source)
    address = f"ipc://{tmp_path}/socket"
    config = re.sub(r"bind = .*", f'bind = "{address}"', config)
    (tmp_path / "service.toml").write_text(config)
    with trio.fail_after(LIMIT):
        checked = await trio.run_process(
            [*COMMAND, "--config", "service.toml", "--timeout", "none", "--check"],
            cwd=tmp_path,
            capture_stdout=True,
        )
        assert checked.stdout.decode() == f"server:handler is configured for {address}\n"
        serving = [*COMMAND, "--config", "service.toml", "--processes", "1", "--log-format", "text"]
        async with open_process([*serving, "--app-dir", str(tmp_path)], cwd=tmp_path) as process:
            assert await ask(address, b"world") == b"hello, world"
            process.terminate()
            assert await process.wait() == 0


@pytest.mark.parametrize("page", ["README.md", "docs/tutorial.md"])
async def test_the_programs_of_the_pages_can_be_imported(tmp_path: Path, page: str) -> None:
    """The page offers its file to `trioreq-server`, which must not start the file's own server."""
    text = (ROOT / page).read_text()
    sources = re.findall(r"^```python\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)
    source = [one for one in sources if "trioreq.open_server" in one][-1]
    own, other = (f"ipc://{tmp_path}/{name}" for name in ("own", "other"))
    (tmp_path / "server.py").write_text(source.replace("tcp://127.0.0.1:5555", own))
    (name,) = re.findall(r"open_server\((\w+),", source)
    with trio.fail_after(LIMIT):
        checked = await trio.run_process(
            [*COMMAND, f"server:{name}", "--bind", other, "--check"],
            cwd=tmp_path,
            capture_stdout=True,
        )
    assert checked.stdout.decode() == f"server:{name} is configured for {other}\n"


# systemd.


@pytest.fixture
def manager(tmp_path: Path) -> Iterator[socket.socket]:
    """The socket at which systemd is told."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as own:
        own.bind(str(tmp_path / "notify"))
        own.setblocking(False)
        yield own


async def told(manager: socket.socket, text: str) -> str:
    """Wait until systemd is told something."""
    own = trio.socket.from_stdlib_socket(manager)
    while True:
        message: str = (await own.recv(4096)).decode()
        if text in message:
            return message


@pytest.mark.parametrize("processes", ["1", "2"])
async def test_systemd_passes_sockets_and_receives_states(
    tmp_path: Path, manager: socket.socket, processes: str
) -> None:
    """The sockets stay open when the server has ended, for the next one."""
    with socket.create_server(("127.0.0.1", 0)) as tcp, socket.socket(socket.AF_UNIX) as ipc:
        ipc.bind(str(tmp_path / "ipc"))
        ipc.listen()
        given = [tcp.fileno(), ipc.fileno()]
        endpoints = [f"tcp://127.0.0.1:{tcp.getsockname()[1]}", f"ipc://{tmp_path}/ipc"]
        script = f'LISTEN_PID=$$ exec "$@" 3<&{given[0]} 4<&{given[1]}'
        environment = {
            "NOTIFY_SOCKET": str(tmp_path / "notify"),
            "WATCHDOG_USEC": "200000",
            "LISTEN_FDS": "2",
        }
        async with served(
            tmp_path,
            "--processes",
            processes,
            command=["bash", "-c", script, "bash", *COMMAND],
            environment=environment,
            pass_fds=given,
        ) as server:
            assert await server.serving() == endpoints
            assert f"MAINPID={server.process.pid}" in await told(manager, "READY=1")
            await told(manager, "WATCHDOG=1")
            await told(manager, "STATUS=")
            for endpoint in endpoints:
                await ask(endpoint)
            server.process.send_signal(signal.SIGHUP)
            assert "MONOTONIC_USEC=" in await told(manager, "RELOADING=1")
            await told(manager, "READY=1")
            async with trio.open_nursery() as nursery:
                nursery.start_soon(ask, endpoints[0], b"sleep 0.5")
                await trio.sleep(0.2)
                server.process.terminate()
                await told(manager, "STOPPING=1")
            assert await ended(server) == 0
        with socket.create_connection(tcp.getsockname()):
            tcp.accept()[0].close()
        assert (tmp_path / "ipc").exists()


# Many processes.


async def test_a_process_that_dies_is_replaced_and_its_queue_is_kept(tmp_path: Path) -> None:
    async with two(tmp_path) as (server, endpoint, before):
        for pid in before:
            os.kill(pid, signal.SIGSTOP)
        replies: list[bytes] = []

        async def wait() -> None:
            replies.append(await ask(endpoint))

        async with trio.open_nursery() as nursery:
            for _ in range(10):
                nursery.start_soon(wait)
            await trio.testing.wait_all_tasks_blocked(0.2)  # they are connected, and wait
            for pid in before:
                os.kill(pid, signal.SIGKILL)
        assert len(replies) == 10
        assert not {int(pid) for pid in replies} & set(before)
        died = [text for text in server.errors() if text.endswith("died: SIGKILL; it is replaced")]
        assert len(died) == 2
        for _ in range(2):  # one that has not reported yet is killed at SIGTERM, and not counted
            await server.line(" serves")
        server.process.terminate()
        assert await ended(server) == 0
        total = server.lines[-1]["statistics"]
        assert (total["requests"], total["replied"]) == (10, 10)


async def test_a_process_that_hangs_is_killed_and_named(tmp_path: Path) -> None:
    async with two(tmp_path, "--hang-timeout", "1") as (server, endpoint, before):
        hung = before[0]
        os.kill(hung, signal.SIGSTOP)
        line = await server.line("hangs")
        assert f"(pid {hung}) hangs, without a sign of life for 1.0 s: killed" in line["message"]
        await server.line("it is replaced")
        await server.line(" serves")
        assert set(children(server)) > {before[1]}
        assert hung not in children(server)
        assert await ask(endpoint)


async def test_sighup_replaces_the_processes_and_no_request_is_lost(tmp_path: Path) -> None:
    """One that comes when its process ends may fail, with an error that says so."""
    path = tmp_path / "socket"
    async with two(tmp_path, "--bind", f"ipc://{path}") as (server, endpoint, before):
        asked = failed = 0
        ends = [os.pidfd_open(pid) for pid in before]

        async def keep_asking(endpoint: str) -> None:
            nonlocal asked, failed
            while True:
                try:
                    await ask(endpoint)
                except (trioreq.ReplyError, trioreq.ConnectionLost):
                    failed += 1
                else:
                    asked += 1

        async with trio.open_nursery() as nursery:
            nursery.start_soon(keep_asking, endpoint)
            nursery.start_soon(keep_asking, f"ipc://{path}")
            server.process.send_signal(signal.SIGHUP)
            for end in ends:
                await trio.lowlevel.wait_readable(end)
                os.close(end)
            nursery.cancel_scope.cancel()
        assert failed <= asked // 10
        for address in (endpoint, f"ipc://{path}"):
            assert await ask(address)
        assert len(children(server)) == 2
        server.process.terminate()
        assert await ended(server) == 0
        total = server.lines[-1]["statistics"]
        assert asked <= total["replied"] <= asked + failed + 4  # the cancelled clients had two
        assert not path.exists()
        assert server.errors() == []


async def test_the_limit_of_connections_is_that_of_all_processes(tmp_path: Path) -> None:
    async with two(tmp_path, "--max-connections", "5") as (server, endpoint, _):
        address = ("127.0.0.1", int(endpoint.rpartition(":")[2]))
        with trio.fail_after(LIMIT):
            accepted = [await trio.open_tcp_stream(*address) for _ in range(5)]
            for stream in accepted:
                assert await stream.receive_some(1)  # libzmq greets it
            more = await trio.open_tcp_stream(*address)
            await server.line("max_connections is reached")
        for stream in [*accepted, more]:
            await stream.aclose()


async def test_processes_end_when_their_supervisor_is_killed(tmp_path: Path) -> None:
    async with two(tmp_path) as (server, _, before):
        ends = [os.pidfd_open(pid) for pid in before]
        server.process.kill()
        for end in ends:
            await trio.lowlevel.wait_readable(end)
            os.close(end)
        await server.line("the supervisor has died")


async def test_a_second_signal_stops_all_processes_at_once(tmp_path: Path) -> None:
    errors: list[trioreq.TrioreqError] = []
    async with two(tmp_path, "--grace", "1000") as (server, endpoint, _):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(fail, endpoint, b"sleep 1000", errors)
            while not (await server.statistics(signal.SIGUSR1)).get("in_flight"):
                pass
            server.process.terminate()
            await server.line("draining")
            server.process.terminate()
        assert str(errors[0]).startswith("shutting-down")
        assert await ended(server) == 128 + signal.SIGTERM


async def change(server: Served, source: Path, text: str) -> None:
    """Write a file until that is noticed: the first change may come before it is watched."""
    while True:
        await trio.Path(source).write_text(text)
        with trio.move_on_after(2):
            await server.line("changed: ")
            return


async def test_a_change_of_the_source_restarts_and_a_mistake_does_not(tmp_path: Path) -> None:
    source = tmp_path / "service.py"
    source.write_text("async def handler(request):\n    return b'before'\n")
    async with served(tmp_path, "--bind", ANY, "--reload") as server:
        (endpoint,) = await server.serving()
        await server.line("watching")
        assert await ask(endpoint) == b"before"
        await change(server, source, "async def handler(request):\n    return b'after'\n")
        await server.line("stopped: ")
        assert await ask(endpoint) == b"after"
        await change(server, source, "async def handler(request:\n")
        await server.line("the restart is given up")
        assert await ask(endpoint) == b"after"


@pytest.mark.parametrize("unit", sorted((ROOT / "examples/systemd").iterdir()))
def test_the_units_of_the_examples_are_valid(unit: Path) -> None:
    if not Path("/usr/bin/systemd-analyze").exists():
        pytest.skip("there is no systemd here")
    ran = subprocess.run(
        ["/usr/bin/systemd-analyze", "verify", str(unit)],
        capture_output=True,
        text=True,
        check=False,
    )
    complaints = [line for line in ran.stderr.splitlines() if unit.name in line]
    assert [line for line in complaints if "is not executable" not in line] == []
