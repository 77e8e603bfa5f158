"""`trioreq-client` as a person and as a script use it: on a terminal, and in pipes.

Real processes and real time; the terminal is pexpect's. Everything waits for events, under a
limit.
"""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pexpect
import pytest
import trio
import zmq
from support.handlers import Worker
from support.serving import serving, until
from support.streamers import Streamer

import trioreq

pytestmark = pytest.mark.slow

CLIENT = [sys.executable, "-m", "trioreq.cli"]
LIMIT = 15  # seconds


class Shop:
    """A handler with answers of all kinds."""

    def __init__(self) -> None:
        self.worker = Worker()
        self.log = self.worker.log

    async def __call__(self, request: trioreq.Request) -> object:
        match request.body:
            case b"raw":
                return b"\x00\x1b[31m\xff"
            case b"frames":
                return [b"one", b"two"]
            case b"json":
                return b'{"name": "\xc3\xa4", "list": [1, null]}'
            case b"missing":
                raise trioreq.ReplyError("not-found", "no such thing")
        return await self.worker(request)


async def run(
    *arguments: str, stdin: bytes | None = None, **environment: str
) -> subprocess.CompletedProcess[bytes]:
    """Run it in pipes, to its end."""
    with trio.fail_after(LIMIT):
        return await trio.run_process(
            [*CLIENT, *arguments],
            stdin=stdin if stdin is not None else subprocess.DEVNULL,
            capture_stdout=True,
            capture_stderr=True,
            check=False,
            env=os.environ | environment,
        )


async def on_terminal(
    *arguments: str, keys: str = "", when: str = "", **environment: str
) -> tuple[str, int | None]:
    """Run it on a terminal; press keys when something is seen. Returns the screen and the code."""

    def interact() -> tuple[str, int | None]:
        child = pexpect.spawn(
            CLIENT[0],
            [*CLIENT[1:], *arguments],
            timeout=LIMIT,
            env=os.environ | {"TERM": "xterm-256color"} | environment,
            encoding="utf-8",
            dimensions=(40, 120),
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        )
        shown = ""
        if when:
            child.expect(when)
            shown = child.before + child.after
            child.sendcontrol(keys)
        child.expect(pexpect.EOF)
        shown += child.before
        child.close()
        return shown, child.exitstatus

    return await trio.to_thread.run_sync(interact)


async def cancelled(shop: Shop) -> None:
    """The server has stopped working: by a cancel, or by the disconnect."""
    await shop.log.wait("ended wait")
    reasons = [entry for entry in shop.log.entries if entry.startswith("cancelled")]
    assert reasons in (["cancelled wait: cancelled"], ["cancelled wait: disconnected"])


async def test_a_pipe_gets_the_reply_as_it_came(addr: str) -> None:
    async with serving(Shop(), addr) as server:
        done = await run(server.endpoints[0], "raw")
        assert (done.stdout, done.stderr, done.returncode) == (b"\x00\x1b[31m\xff", b"", 0)


async def test_a_terminal_gets_it_readable() -> None:
    async with serving(Shop()) as server:
        shown, code = await on_terminal(server.endpoints[0], "raw")
        assert (shown, code) == ("\\x00\\x1b[31m\\xff\r\n", 0)


@pytest.mark.parametrize(
    ("arguments", "stdin", "reply"),
    [
        (["echo"], None, b"re:echo"),
        ([], b"echo \x00\xff", b"re:echo "),
        (["-"], b"echo input", b"re:echo input"),
        (["--multipart", "echo"], None, b"re:echo\n"),
        (["frames"], None, b"one\ntwo\n"),
        (["request"], b"echo word", b"re:echo word"),
    ],
)
async def test_where_the_request_comes_from(
    arguments: list[str], stdin: bytes | None, reply: bytes
) -> None:
    class Lax(Shop):
        async def __call__(self, request: trioreq.Request) -> object:
            if b"\xff" in request.body:
                assert request.body == b"echo \x00\xff"
                return b"re:echo "
            return await super().__call__(request)

    async with serving(Lax()) as server:
        word = ["request"] if arguments[:1] == ["request"] else []
        done = await run(*word, server.endpoints[0], *arguments[len(word) :], stdin=stdin)
        assert (done.stdout, done.returncode) == (reply, 0), done.stderr


async def test_a_file_is_a_request(tmp_path: Path) -> None:
    file = tmp_path / "request"
    file.write_bytes(b"echo file")
    async with serving(Shop()) as server:
        done = await run("--file", str(file), server.endpoints[0])
        assert done.stdout == b"re:echo file"


async def test_each_word_is_a_frame() -> None:
    async def handler(request: trioreq.Request) -> bytes:
        return b"%d" % len(request.frames)

    async with serving(handler) as server:
        assert (await run(server.endpoints[0], "a", "b", "")).stdout == b"3"


async def test_hex() -> None:
    async with serving(Shop()) as server:
        done = await run("--hex", server.endpoints[0], "frames")
        assert done.stdout.decode().splitlines() == [
            "00000000  6f 6e 65                                         one",
            "",
            "00000000  74 77 6f                                         two",
        ]


async def test_json_is_indented_and_coloured_on_a_terminal_alone() -> None:
    async with serving(Shop()) as server:
        endpoint = server.endpoints[0]
        done = await run("--json", endpoint, "json")
        assert json.loads(done.stdout) == {"name": "ä", "list": [1, None]}
        assert b"\x1b" not in done.stdout
        assert done.stdout.count(b"\n") > 3
        shown, _ = await on_terminal("--json", endpoint, "json")
        assert "\x1b[" in shown
        plain, _ = await on_terminal("--json", endpoint, "json", NO_COLOR="1")
        assert "\x1b[" not in plain
        assert json.loads(plain) == {"name": "ä", "list": [1, None]}
        done = await run("--json", endpoint, "echo")
        assert done.stdout == b"re:echo"
        assert b"not JSON" in done.stderr


async def test_each_failure_has_its_code(tmp_path: Path) -> None:
    async with serving(Shop()) as server:
        endpoint = server.endpoints[0]
        for arguments, code, says in (
            ([endpoint, "missing"], 1, "error: not-found: no such thing"),
            ([endpoint, "fail"], 1, "error: handler-failed"),
            (["nowhere", "x"], 2, "write it as"),
            (["--no-such-option", endpoint], 2, "No such option"),
            (["--timeout", "0", endpoint, "x"], 2, "0<x"),
            (["--interval", "nan", endpoint, "x"], 2, "nan is not a number of seconds"),
            (["--hex", "--json", endpoint, "x"], 2, "choose one"),
            (["--file", "/no/such/file", endpoint], 2, "does not exist"),
            (["--file", __file__, endpoint, "x"], 2, "--file and BODY cannot be combined"),
            (["--timeout", "0.1", endpoint, "wait"], 3, "has not answered within 0.1 s"),
            (["--connect-timeout", "0.1", f"ipc://{tmp_path}/none", "x"], 4, "no connection"),
        ):
            done = await run(*arguments)
            assert done.returncode == code, (arguments, done)
            assert says in done.stderr.decode()
            assert b"Traceback" not in done.stderr
            assert done.stdout == b""


async def test_a_server_that_dies_is_a_connection_lost(tmp_path: Path) -> None:
    endpoint = f"ipc://{tmp_path}/socket"
    with zmq.Context() as context, context.socket(zmq.ROUTER) as router:
        router.bind(endpoint)
        async with trio.open_nursery() as nursery:
            results: list[subprocess.CompletedProcess[bytes]] = []

            async def ask() -> None:
                results.append(await run(endpoint, "x"))

            nursery.start_soon(ask)
            await trio.to_thread.run_sync(router.recv_multipart)
            router.close(linger=0)
    assert results[0].returncode == 5
    assert b"unknown" in results[0].stderr


async def test_ctrl_c_is_quiet_and_cancels_on_the_server() -> None:
    worker = Shop()
    async with serving(worker) as server, trio.open_nursery() as nursery:

        async def press() -> None:
            await worker.log.wait("started wait")
            process.send_signal(signal.SIGINT)

        nursery.start_soon(press)
        process = await trio.lowlevel.open_process(
            [*CLIENT, server.endpoints[0], "wait"],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
        )
        assert process.stderr is not None
        assert process.stdout is not None
        async with process.stderr, process.stdout:
            assert await process.wait() == 130
            assert await process.stderr.receive_some() == b""
        await cancelled(worker)


async def test_a_reader_that_goes_ends_it_and_cancels_on_the_server() -> None:
    """While it waits, too: there is no client for the reply."""
    worker = Shop()
    async with serving(worker) as server:
        process = await trio.lowlevel.open_process(
            [*CLIENT, server.endpoints[0], "wait"],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        assert process.stderr is not None
        assert process.stdout is not None
        await worker.log.wait("started wait")
        await process.stdout.aclose()
        assert await process.wait() == 141
        assert await process.stderr.receive_some() == b""
        await process.stderr.aclose()
        await cancelled(worker)


async def test_ctrl_c_on_a_terminal_while_a_request_is_typed() -> None:
    """As in clustershell #461, where the interpreter aborts."""
    async with serving(Shop()) as server:
        shown, code = await on_terminal(server.endpoints[0], keys="c", when="with Ctrl-D\r\n")
        assert code == 130
        assert shown == "trioreq-client: type the request, and end it with Ctrl-D\r\n^C"


async def test_repeat_is_like_ping() -> None:
    async with serving(Shop()) as server:
        done = await run("--repeat", "3", "--interval", "0", server.endpoints[0], "echo")
        lines = done.stdout.decode().splitlines()
        assert [re.sub(r"[\d.]+ ms", "T", line) for line in lines[:3]] == [
            f"{number}: 7 bytes, T" for number in (1, 2, 3)
        ]
        assert lines[3].startswith("3 requests, 3 replies, 0% lost; min/median/max ")
        done = await run("--repeat", "2", "--interval", "0", server.endpoints[0], "missing")
        assert done.returncode == 1
        assert done.stdout.splitlines()[-1] == b"2 requests, 0 replies, 100% lost"


async def test_ctrl_c_in_a_repeat_shows_the_summary() -> None:
    async with serving(Shop()) as server:
        shown, code = await on_terminal(
            "--repeat",
            "0",
            "--interval",
            "1000",
            server.endpoints[0],
            "echo",
            keys="c",
            when=r"1: 7 bytes, [\d.]+ ms\r\n",
        )
        assert "1 requests, 1 replies, 0% lost" in shown
        assert "Traceback" not in shown
        assert code == 130


async def test_a_stream_is_printed_as_it_comes_and_ctrl_c_cancels_it() -> None:
    streamer = Streamer()
    async with serving(streamer) as server:
        shown, code = await on_terminal(
            "--stream", server.endpoints[0], "wait 3", keys="c", when="0\r\n1\r\n2\r\n"
        )
        assert (shown, code) == ("0\r\n1\r\n2\r\n^C", 130)
        await streamer.log.wait("ended")
        reasons = [entry for entry in streamer.log.entries if entry.startswith("cancelled")]
        assert reasons in (["cancelled: cancelled"], ["cancelled: disconnected"])


async def test_a_stream_ends_with_its_end_or_an_error() -> None:
    async with serving(Streamer()) as server:
        endpoint = server.endpoints[0]
        done = await run("--stream", endpoint, "end 12")
        assert (done.stdout, done.stderr, done.returncode) == (b"01234567891011", b"", 0)
        done = await run("--stream", "--multipart", endpoint, "end 2")
        assert (done.stdout, done.returncode) == (b"0\n1\n", 0)
        done = await run("--stream", endpoint, "refuse 2")
        assert (done.stdout, done.returncode) == (b"01", 1)
        assert b"not-found: no more" in done.stderr
        done = await run("--stream", "--timeout", "0.1", endpoint, "wait 1")
        assert (done.stdout, done.returncode) == (b"0", 3)
        assert b"sent no reply for 0.1 s" in done.stderr


async def test_verbose_shows_the_times() -> None:
    async with serving(Shop()) as server:
        done = await run("-v", server.endpoints[0], "echo")
        text = done.stderr.decode()
        assert re.search(r"connected to tcp://\S+ in [\d.]+ ms, handshake [\d.]+ ms", text)
        assert re.search(r"reply in [\d.]+ ms, 7 bytes", text)
        assert done.stdout == b"re:echo"


async def test_bench_counts_and_has_figures_for_machines() -> None:
    async with serving(Shop()) as server:
        done = await run(
            "bench", server.endpoints[0], "-c", "2", "-p", "3", "-n", "200", "--size", "4", "--json"
        )
        figures = json.loads(done.stdout)
        assert figures["requests"] == 200
        assert figures["errors"] == {}
        assert figures["latency_ms"]["min"] <= figures["latency_ms"]["p50"]
        assert server.statistics().requests == 202  # and one to connect, of each client
        assert done.stderr == b""
        await until(lambda: server.statistics().connections == 0)


async def test_bench_sends_the_content_of_a_file(tmp_path: Path) -> None:
    (tmp_path / "query").write_bytes(b"a query")
    bodies = set()

    async def handler(request: trioreq.Request) -> bytes:
        bodies.add(request.body)
        return b""

    async with serving(handler) as server:
        options = ["-n", "10", "--file", str(tmp_path / "query"), "--json"]
        done = await run("bench", server.endpoints[0], *options)
    assert done.returncode == 0
    assert json.loads(done.stdout)["load"]["size"] == len(b"a query")
    assert bodies == {b"a query"}


async def test_the_usage_has_the_options_where_they_are_accepted() -> None:
    usage = (await run("--help")).stdout.decode()
    assert "Usage: trioreq-client [request] [OPTIONS] ENDPOINT [BODY]... |" in usage


async def test_bench_counts_errors_by_kind() -> None:
    async def handler(request: trioreq.Request) -> bytes:
        raise trioreq.ReplyError("busy")

    async with serving(handler) as server:
        done = await run("bench", server.endpoints[0], "-n", "10")
        assert done.returncode == 1
        assert "busy" in (done.stdout + done.stderr).decode()


async def test_bench_shows_its_progress_on_a_terminal() -> None:
    async with serving(Shop()) as server:
        shown, code = await on_terminal("bench", server.endpoints[0], "-d", "0.5")
        assert code == 0
        assert "replies a second" in shown
        assert "-" * 29 in shown
        assert " s left " in shown


async def test_bench_measures_a_plain_rep_server_too() -> None:
    def serve(context: zmq.Context[zmq.Socket[bytes]]) -> None:
        with context.socket(zmq.REP) as rep:
            rep.rcvtimeo = LIMIT * 1000
            ports.append(rep.bind_to_random_port("tcp://127.0.0.1"))
            bound.set()
            for _ in range(51):
                rep.send(rep.recv())

    ports: list[int] = []
    bound = threading.Event()
    with zmq.Context() as context:
        thread = threading.Thread(target=serve, args=[context])
        thread.start()
        assert bound.wait(LIMIT)
        done = await run("bench", f"tcp://127.0.0.1:{ports[0]}", "-n", "50", "--json")
        thread.join(LIMIT)
    assert json.loads(done.stdout)["requests"] == 50


async def test_help_version_and_completion() -> None:
    assert (await run("--version")).stdout.decode().split()[-1] == trioreq.__version__
    assert b"--multipart" in (await run("request", "--help")).stdout
    assert b"--pipeline" in (await run("bench", "--help")).stdout
    for shell in ("bash", "zsh", "fish"):
        script = await run(_TRIOREQ_CLIENT_COMPLETE=f"{shell}_source")
        assert b"trioreq-client" in script.stdout
    words = await run(
        _TRIOREQ_CLIENT_COMPLETE="bash_complete", COMP_WORDS="trioreq-client --mul", COMP_CWORD="1"
    )
    assert b"--multipart" in words.stdout
