"""The examples in the docstrings of the reference run.

Deterministic: those on the network in memory use the autojump clock; for the others, every wait is
for the end of a process. Clients wait for servers by reconnecting.
"""

from __future__ import annotations

import doctest
import subprocess
import sys
from pathlib import Path

import pytest

import trioreq
import trioreq.testing

ADDRESSES = ("tcp://127.0.0.1:5555", "tcp://*:5555")
LIMIT = 30  # seconds
CONTEXT = """
import zlib
from functools import partial

import trio
import trio.testing
import trioreq
import trioreq.testing
from trioreq import ReplyError
from trioreq.testing import make_request, open_memory_network, open_memory_server

async def handler(request):
    return request.body.upper()

async def resize(request):
    return b"small " + request.body

def compute(request):
    return request.body.upper()

async def keep_up_to_date(prices):
    prices[b"hello"] = b"5"

async def withdraw(body):
    await trio.sleep(1)

deposit = withdraw

async def count(request):
    for number in range(2):
        yield b"%d" % number

async def stream_of(consumer):
    async with open_memory_network() as network, trio.open_nursery() as nursery:
        await nursery.start(trioreq.serve, count, network)
        async with trioreq.open_client(network) as client:
            await consumer(client)
        nursery.cancel_scope.cancel()

async def request_of(handler):
    async with open_memory_server(handler) as net:
        print(await net.connect().request(b"hello"))

def run(function, *args):
    trio.run(function, *args, clock=trio.testing.MockClock(autojump_threshold=0))

"""
SERVER = "trio.run(trioreq.serve, handler, 'tcp://127.0.0.1:5555')"
# The statement that runs each example, and its output.
ALONE = {
    "Client.stream": ("run(stream_of, print_all)", "b'0'\nb'1'\n"),
    "CurveServer": ("print(type(curve).__name__)", "CurveServer\n"),
    "Peer.start_soon": ("run(request_of, handler)", "[b'']\n"),
    "Request.replace": (
        "print(trio.run(unzipped(handler), make_request(zlib.compress(b'hello'))))",
        "b'HELLO'\n",
    ),
    "check_cancelled": ("run(request_of, count_words)", "[b'1']\n"),
    "finishing": ("run(request_of, handler)", "[b'done']\n"),
    "open_server": ("trio.run(main)", "b'HELLO'\n"),
    "make_request": ("run(test_a_picture_is_resized)", ""),
    "open_memory_network": ("trio.run(main)", "b'HELLO'\n"),
    "open_memory_server": ("run(test_a_crash_cancels, None)", ""),
    "sleep": ("run(request_of, handler)", "[b'done']\n"),
}
SERVERS = ["ProcessWorkers", "serve"]
OTHERS = ["ReplyError", "open_client", "open_gateway"]
WORKER = """
import zmq

worker = zmq.Context().socket(zmq.REP)
worker.bind({address!r})
while True:
    worker.send(worker.recv().upper())
"""


def examples() -> dict[str, str]:
    finder = doctest.DocTestFinder()
    found = {}
    for module in (trioreq, trioreq.testing):
        for name in module.__all__:
            for test in finder.find(getattr(module, name), name, module=False):
                if test.examples:
                    found[test.name] = "".join(example.source for example in test.examples)
    return found


def start(folder: Path, code: str, file: str = "program.py") -> subprocess.Popen[str]:
    """Start a program, from a file, since worker processes import it."""
    for address in ADDRESSES:
        code = code.replace(address, f"ipc://{folder}/socket")
    (folder / file).write_text(CONTEXT + code)
    command = [sys.executable, str(folder / file)]
    return subprocess.Popen(command, stdout=-1, stderr=-1, text=True)


def test_each_example_is_run() -> None:
    assert sorted(examples()) == sorted([*ALONE, *SERVERS, *OTHERS])


@pytest.mark.parametrize("name", ALONE)
def test_an_example_prints_its_result(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    statement, output = ALONE[name]
    exec(f"{CONTEXT}{examples()[name]}\n{statement}", {})
    assert capsys.readouterr() == (output, "")


def check_it_serves(tmp_path: Path, code: str) -> None:
    with start(tmp_path, code) as server:
        try:
            command = [sys.executable, "-m", "trioreq.cli", f"ipc://{tmp_path}/socket", "hello"]
            done = subprocess.run(
                [*command, "--connect-timeout", str(LIMIT)],
                capture_output=True,
                text=True,
                timeout=LIMIT,
                check=False,
            )
        finally:
            server.terminate()
        assert (done.stdout, done.stderr) == ("HELLO", "")
        assert server.communicate(timeout=LIMIT)[1] == ""


@pytest.mark.slow
@pytest.mark.parametrize("name", SERVERS)
def test_an_example_serves(name: str, tmp_path: Path) -> None:
    check_it_serves(tmp_path, examples()[name])


@pytest.mark.slow
def test_the_example_of_open_gateway_forwards_requests(tmp_path: Path) -> None:
    address = f"ipc://{tmp_path}/worker"
    with start(tmp_path, WORKER.format(address=address), "worker.py") as worker:
        try:
            code = examples()["open_gateway"].replace(', "tcp://127.0.0.1:5557"', "")
            check_it_serves(tmp_path, code.replace("tcp://127.0.0.1:5556", address))
        finally:
            worker.terminate()


@pytest.mark.slow
def test_the_example_of_open_client_gets_a_reply(tmp_path: Path) -> None:
    with start(tmp_path, SERVER, "server.py") as server:
        try:
            with start(tmp_path, examples()["open_client"]) as program:
                assert program.communicate(timeout=LIMIT) == ("b'HELLO'\n", "")
        finally:
            server.terminate()


def test_the_example_of_reply_error_raises_it() -> None:
    with pytest.raises(trioreq.ReplyError, match=r"^not-found: there is no image 17$"):
        exec(examples()["ReplyError"], {"ReplyError": trioreq.ReplyError})
