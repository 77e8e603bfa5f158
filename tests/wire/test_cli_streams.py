"""The standard streams of both programs, the signals that end them, and their exit codes.

Real processes, pipes and terminals. Everything waits for events, under a limit.
"""

from __future__ import annotations

import fcntl
import os
import pty
import re
import signal
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, closing, contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
import trio
from support.handlers import Worker
from support.serving import serving, until

import trioreq

pytestmark = pytest.mark.slow

CLIENT = [sys.executable, "-c", "from trioreq_cli import client; client()"]
KEYGEN = [sys.executable, "-c", "from trioreq_cli import keygen; keygen()"]
NOWHERE = "tcp://127.0.0.1:1"
LIMIT = 30  # seconds
SIZE = 1_000_000  # bytes, and a pipe has room for 65,536
DOCS = Path(__file__).parents[2] / "docs" / "cli.md"


class Shop(Worker):
    """A worker with a reply that is longer than a pipe has room for, and an unfriendly error."""

    async def __call__(self, request: trioreq.Request) -> bytes:
        if request.body == b"long":
            return b"y" * SIZE
        if request.body == b"unfriendly":
            raise trioreq.ReplyError("unfriendly", "\x1b[2J\x9b2J")
        if request.body.startswith(b"size"):
            return b"%d" % len(request.body)
        return await super().__call__(request)


async def run(program: list[str], *arguments: object, shell: str = "", **options: Any) -> Any:
    """Run a program to its end, with what a shell does before; returns what came of it."""
    command = [*program, *map(str, arguments)]
    if shell:
        command = ["sh", "-c", shell.replace("RUN", 'exec "$@"'), "sh", *command]
    options = {"stdin": subprocess.DEVNULL, "capture_stdout": True} | options
    with trio.fail_after(LIMIT):
        return await trio.run_process(command, capture_stderr=True, check=False, **options)


@asynccontextmanager
async def running(
    *arguments: object, interrupts: bool = True, **options: Any
) -> AsyncIterator[trio.Process]:
    """Start `trioreq-client`, where Ctrl-C works or is ignored; kill it at the end."""

    def set_signals() -> None:
        signal.signal(signal.SIGINT, signal.SIG_DFL if interrupts else signal.SIG_IGN)
        signal.signal(signal.SIGHUP, signal.SIG_DFL)

    options = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE} | options
    process = await trio.lowlevel.open_process(
        [*CLIENT, *map(str, arguments)],
        stderr=subprocess.PIPE,
        preexec_fn=set_signals,
        **options,
    )
    try:
        with trio.fail_after(LIMIT):
            yield process
    finally:
        with trio.CancelScope(shield=True):
            process.kill()
            await process.wait()
            for stream in (process.stdin, process.stdout, process.stderr):
                if stream is not None:
                    await stream.aclose()


async def errors(process: trio.Process) -> bytes:
    """All of its standard error."""
    assert process.stderr is not None
    return b"".join([part async for part in process.stderr])


@contextmanager
def pipe() -> Iterator[tuple[int, int]]:
    """A pipe's ends, which the test may close itself."""
    ends = os.pipe()
    try:
        yield ends
    finally:
        for end in ends:
            with suppress(OSError):
                os.close(end)


@contextmanager
def terminal() -> Iterator[tuple[int, int]]:
    """A terminal: the end of its user, and the one of its programs."""
    user, programs = pty.openpty()
    try:
        yield user, programs
    finally:
        os.close(user)
        with suppress(OSError):
            os.close(programs)


def is_nonblocking(descriptor: int) -> bool:
    return bool(fcntl.fcntl(descriptor, fcntl.F_GETFL) & os.O_NONBLOCK)


# Streams that are closed, full, or of the wrong kind.


@pytest.mark.parametrize(
    ("shell", "arguments", "code", "says"),
    [
        ("RUN >&-", ["echo"], 8, "cannot write to standard output: Bad file descriptor"),
        ("RUN >/dev/full", ["echo"], 8, "cannot write to standard output: No space left"),
        ("RUN >/dev/full", ["--repeat", "1", "echo"], 8, "No space left"),
        ("RUN >/dev/full 2>&-", ["echo"], 8, ""),
        ("RUN >/dev/full 2>/dev/full", ["echo"], 8, ""),
        ("RUN <&- >&- 2>&-", ["echo"], 8, ""),
        ("RUN </dev/zero", [], 2, "a request must have at most 268435456 bytes"),
        ("RUN <&-", [], 2, "cannot read standard input: Bad file descriptor; give BODY"),
        ("RUN 0>/dev/null", [], 2, "cannot read standard input: Bad file descriptor"),
        ("RUN", ["--file", "/proc/self/mem"], 2, "cannot read /proc/self/mem: Input/output"),
        ("RUN 2>&-", ["fail"], 1, ""),
        ("RUN 2>/dev/full", ["fail"], 1, ""),
        ("RUN 2>/dev/full", ["--no-such-option"], 2, ""),
        ("ulimit -f 1024; RUN >file", ["long"], 8, "File too large"),
    ],
)
async def test_an_unusable_stream_is_reported_with_an_exit_code(
    shell: str, arguments: list[str], code: int, says: str, tmp_path: Path
) -> None:
    """As in dvc #10041 and crudini #82, whose tracebacks were those of a stream that is None."""
    async with serving(Shop()) as server:
        done = await run(CLIENT, server.endpoints[0], *arguments, shell=shell, cwd=tmp_path)
        assert done.returncode == code
        assert done.stdout == b""
        assert done.stderr.count(b"\n") == (1 if says else 0)
        assert says in done.stderr.decode()


@pytest.mark.parametrize(
    "shell", ["RUN <&-", "RUN <&- 2>&-", "RUN 2>/dev/full", "RUN </dev/full", "RUN <&- 2>&1"]
)
async def test_a_stream_that_is_not_needed_may_be_closed(shell: str) -> None:
    """No socket of the client gets the number of one that is closed: the reply is not sent there.

    With standard error closed, that may have been `uutils/coreutils` #10613's wrong exit code.
    """
    async with serving(Shop()) as server:
        done = await run(CLIENT, server.endpoints[0], "echo", shell=shell)
        assert (done.returncode, done.stdout, done.stderr) == (0, b"re:echo", b"")


@pytest.mark.parametrize("shell", ["RUN >&-", "RUN >/dev/full"])
@pytest.mark.parametrize(
    ("program", "arguments", "environment"),
    [
        (CLIENT, ["--help"], {}),
        (CLIENT, ["bench", "--help"], {}),
        (CLIENT, ["--version"], {}),
        (CLIENT, [], {"_TRIOREQ_CLIENT_COMPLETE": "bash_source"}),
        (KEYGEN, ["--help"], {}),
        (KEYGEN, ["alice"], {}),
    ],
)
async def test_help_and_version_report_a_failed_write(
    program: list[str],
    arguments: list[str],
    environment: dict[str, str],
    shell: str,
    tmp_path: Path,
) -> None:
    env = os.environ | environment
    done = await run(program, *arguments, shell=shell, env=env, cwd=tmp_path)
    assert done.returncode == 8
    assert done.stderr.count(b"\n") == 1
    assert b": cannot write to standard output: " in done.stderr
    if arguments == ["alice"]:
        trioreq.KeyPair.load(tmp_path / "alice.key_secret")  # the keys are made


async def test_a_measurement_reports_a_failed_write() -> None:
    async with serving(Shop()) as server:
        done = await run(CLIENT, "bench", "-n", "5", server.endpoints[0], shell="RUN >/dev/full")
        assert done.returncode == 8
        assert done.stderr.count(b"\n") == 1


# Pipes.


async def test_a_pipe_in_nonblocking_mode_gets_the_whole_reply() -> None:
    """As in honcho #168; the mode is the other process's, and stays as it is."""
    async with serving(Shop()) as server:
        with pipe() as (reading, writing):
            os.set_blocking(writing, False)
            async with running(server.endpoints[0], "long", stdout=writing) as process:
                await trio.lowlevel.wait_readable(reading)
                assert is_nonblocking(writing)
                os.close(writing)
                reply = await trio.to_thread.run_sync(_read_to_the_end, reading)
                assert await process.wait() == 0
                assert reply == b"y" * SIZE
                assert (await errors(process)).decode() == ""


def _read_to_the_end(descriptor: int) -> bytes:
    with open(descriptor, "rb", closefd=False) as file:
        return file.read()


async def test_standard_input_in_nonblocking_mode_is_waited_for() -> None:
    """The pipe is filled again whenever the client has emptied it, which reads faster."""
    async with serving(Shop()) as server:
        with pipe() as (reading, writing):
            os.set_blocking(reading, False)
            os.set_blocking(writing, False)
            async with running(server.endpoints[0], stdin=reading) as process:
                size = os.write(writing, b"size")
                for _ in range(20):
                    size += os.write(writing, b"x" * SIZE)
                    await trio.lowlevel.wait_writable(writing)
                os.close(writing)
                assert await process.wait() == 0
                assert process.stdout is not None
                assert await process.stdout.receive_some() == b"%d" % size
                assert is_nonblocking(reading)


@pytest.mark.parametrize(
    "arguments", [["--help"], ["bench", "--help"], ["--version"], ["ENDPOINT", "long"]]
)
async def test_output_without_a_reader_is_a_broken_pipe(arguments: list[str]) -> None:
    async with serving(Shop()) as server:
        words = [word.replace("ENDPOINT", server.endpoints[0]) for word in arguments]
        with pipe() as (reading, writing):
            os.close(reading)
            done = await run(CLIENT, *words, stdout=writing, capture_stdout=False)
        assert (done.returncode, done.stderr) == (141, b"")


async def test_a_fifo_that_is_open_for_both_directions_has_a_reader(tmp_path: Path) -> None:
    """As ``exec 3<>fifo`` opens it. What is written can be read there, and is not its end."""
    os.mkfifo(tmp_path / "fifo")
    fifo = os.open(tmp_path / "fifo", os.O_RDWR)
    try:
        async with serving(Shop()) as server:
            done = await run(
                CLIENT, "--repeat", "3", "--interval", "0.05", server.endpoints[0], "echo",
                stdout=fifo, capture_stdout=False,
            )  # fmt: skip
        assert (done.returncode, done.stderr) == (0, b"")
        assert os.read(fifo, 10_000).count(b"\n") == 4
    finally:
        os.close(fifo)


async def test_a_wrong_endpoint_is_reported_before_standard_input_is_read() -> None:
    async with running("nowhere", stdin=subprocess.PIPE) as process:
        assert await process.wait() == 2
        assert b"'nowhere'" in await errors(process)


# Ctrl-C, and other signals.


async def test_ctrl_c_while_standard_input_is_read() -> None:
    """As in clustershell #461 and cpython #129536, where the interpreter aborts."""
    async with (
        serving(Shop()) as server,
        running(server.endpoints[0], stdin=subprocess.PIPE) as process,
    ):
        await until(lambda: server.statistics().connections == 1)
        process.send_signal(signal.SIGINT)
        assert await process.wait() == 130
        assert (await errors(process)).decode() == ""


async def test_a_reader_that_goes_while_standard_input_is_read() -> None:
    async with (
        serving(Shop()) as server,
        running(server.endpoints[0], stdin=subprocess.PIPE) as process,
    ):
        await until(lambda: server.statistics().connections == 1)
        assert process.stdout is not None
        await process.stdout.aclose()
        assert await process.wait() == 141
        assert (await errors(process)).decode() == ""


async def test_ctrl_c_while_a_file_is_waited_for(tmp_path: Path) -> None:
    """A FIFO without a writer."""
    os.mkfifo(tmp_path / "fifo")
    async with (
        serving(Shop()) as server,
        running("--file", tmp_path / "fifo", server.endpoints[0]) as process,
    ):
        await until(lambda: server.statistics().connections == 1)
        process.send_signal(signal.SIGINT)
        assert await process.wait() == 130
        assert (await errors(process)).decode() == ""


async def test_a_request_on_a_terminal_ends_with_ctrl_d() -> None:
    async with serving(Shop()) as server:
        with terminal() as (user, programs):
            async with running(server.endpoints[0], stdin=programs) as process:
                await until(lambda: server.statistics().connections == 1)
                assert process.stderr is not None
                said = await process.stderr.receive_some()
                assert said == b"trioreq-client: type the request, and end it with Ctrl-D\n"
                os.write(user, b"echo typed\n\x04")
                assert await process.wait() == 0
                assert process.stdout is not None
                assert await process.stdout.receive_some() == b"re:echo typed\n"


async def test_ctrl_c_while_it_connects() -> None:
    """To a server that accepts, and says nothing."""
    with closing(socket.create_server(("127.0.0.1", 0))) as listener:
        port = listener.getsockname()[1]
        listener.setblocking(False)
        async with running(f"tcp://127.0.0.1:{port}", "x") as process:
            await trio.lowlevel.wait_readable(listener)
            process.send_signal(signal.SIGINT)
            assert await process.wait() == 130
            assert (await errors(process)).decode() == ""


@pytest.mark.parametrize("bench", [False, True])
async def test_ctrl_c_twice_while_it_waits(bench: bool) -> None:
    shop = Shop()
    async with serving(shop) as server:
        arguments = ["bench"] if bench else []
        async with running(
            *arguments, server.endpoints[0], *([] if bench else ["wait"])
        ) as process:
            if bench:
                await until(lambda: server.statistics().requests > 10)
            else:
                await shop.log.wait("started wait")
            process.send_signal(signal.SIGINT)
            await until(lambda: server.statistics().running == 0)
            process.send_signal(signal.SIGINT)
            assert await process.wait() == 130
            assert (await errors(process)).decode() == ""


@pytest.mark.parametrize("nonblocking", [False, True])
async def test_ctrl_c_while_the_output_is_not_read(nonblocking: bool) -> None:
    async with serving(Shop()) as server:
        with pipe() as (reading, writing):
            os.set_blocking(writing, not nonblocking)
            async with running(server.endpoints[0], "long", stdout=writing) as process:
                await trio.lowlevel.wait_readable(reading)
                process.send_signal(signal.SIGINT)
                assert await process.wait() == 130
                assert (await errors(process)).decode() == ""


async def test_ctrl_c_while_the_lines_of_a_repeat_are_not_read() -> None:
    """A full pipe takes neither the first line nor the summary."""
    shop = Shop()
    async with serving(shop) as server:
        with pipe() as (_, writing):
            os.set_blocking(writing, False)
            os.write(writing, b"x" * SIZE)
            os.set_blocking(writing, True)
            arguments = ["--repeat", "0", server.endpoints[0], "echo"]
            async with running(*arguments, stdout=writing) as process:
                await shop.log.wait("ended echo")
                process.send_signal(signal.SIGINT)
                assert await process.wait() == 130
                assert (await errors(process)).decode() == ""


async def test_ctrl_c_in_the_background_is_ignored() -> None:
    """A shell without job control starts a job in the background so."""
    shop = Shop()
    async with (
        serving(shop) as server,
        running(server.endpoints[0], "wait", interrupts=False) as process,
    ):
        await shop.log.wait("started wait")
        process.send_signal(signal.SIGINT)
        shop.release.set()
        assert await process.wait() == 0


async def test_ctrl_c_while_it_starts() -> None:
    """While the package is imported there is no traceback either."""
    environment = os.environ | {"PYTHONPROFILEIMPORTTIME": "1"}  # a line for each import
    async with running(NOWHERE, "x", env=environment) as process:
        assert process.stderr is not None
        said = b""
        while b" trio._core" not in said:
            said += await process.stderr.receive_some()
        process.send_signal(signal.SIGINT)
        assert await process.wait() == 130
        said += await errors(process)
        lines = said.decode().splitlines()
        assert [line for line in lines if not line.startswith("import time:")] == []


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
async def test_a_signal_that_kills_ends_the_request_too(number: signal.Signals) -> None:
    shop = Shop()
    async with (
        serving(shop) as server,
        running(server.endpoints[0], "wait", stdin=subprocess.PIPE) as process,
    ):
        await shop.log.wait("started wait")
        process.send_signal(number)
        assert await process.wait() == -number
        assert (await errors(process)).decode() == ""
        await shop.log.wait("cancelled wait: disconnected")


# What is printed.


async def test_an_error_of_the_server_cannot_control_the_terminal() -> None:
    async with serving(Shop()) as server:
        done = await run(CLIENT, server.endpoints[0], "unfriendly")
        assert done.stderr == rb"trioreq-client: error: unfriendly: \x1b[2J\x9b2J" + b"\n"


async def test_an_unexpected_error_has_its_own_exit_code() -> None:
    done = await run(CLIENT, NOWHERE, "x", shell="ulimit -n 5; RUN")
    assert done.returncode == 70
    assert b"Traceback" in done.stderr
    assert b"Too many open files" in done.stderr


def codes(text: str, row: str) -> list[int]:
    return [int(code) for code in re.findall(row, text, re.MULTILINE)]


@pytest.mark.parametrize(
    ("heading", "program", "commands"),
    [
        ("`trioreq-client`", CLIENT, [[], ["request"], ["bench"]]),
        ("`trioreq-keygen`", KEYGEN, [[]]),
    ],
)
async def test_the_help_has_the_exit_codes_of_the_docs(
    heading: str, program: list[str], commands: list[list[str]]
) -> None:
    _, found, rest = DOCS.read_text().partition(f"\n| code of {heading} |")
    assert found
    documented = codes(rest.partition("\n\n")[0], r"^\| (\d+) \|")
    assert {0, 2, 8, 70, 130, 141} <= set(documented)
    for command in commands:
        text = (await run(program, *command, "--help")).stdout.decode()
        assert codes(text.partition("Exit codes:")[2], r"^ +(\d+)  ") == documented


async def test_the_help_has_its_examples_on_lines_of_their_own() -> None:
    for program, example in (
        (CLIENT, "  trioreq-client tcp://127.0.0.1:5555 hello"),
        (KEYGEN, "  trioreq-keygen server      for a server"),
    ):
        text = (await run(program, "--help")).stdout.decode()
        assert example in text.splitlines()
        assert "\\b" not in text
