"""Ctrl-C never comes while the server uses its sockets.

The other half of a message that was sent or read by half would be taken for the beginning of the
next.
"""

from __future__ import annotations

import logging
import signal
import subprocess
import sys
from collections.abc import Callable
from types import FrameType
from typing import Any

import pytest
import trio
import zmq
from support.handlers import Worker
from support.serving import serving, until

import trioreq
from harness.clients import Clients
from trioreq._server import guard
from trioreq._transport.server_sockets import BoundSockets

ALICE, SERVER = trioreq.KeyPair.generate(), trioreq.KeyPair.generate()


class Uses:
    """All uses of a server's sockets.

    Attributes:
        by: The functions that have called for them, at any depth.
        exposed: The stacks of those into which Ctrl-C could have come.
    """

    def __init__(self) -> None:
        self.by: set[str] = set()
        self.exposed: list[list[str]] = []

    def watch(self, use: Callable[..., Any]) -> Callable[..., Any]:
        def watched(*args: Any, **options: Any) -> Any:
            frame: FrameType | None = sys._getframe(1)
            names = []
            while frame is not None:
                names.append(frame.f_code.co_name)
                frame = frame.f_back
            self.by.update(names)
            if not trio.lowlevel.currently_ki_protected():
                self.exposed.append(names)
            return use(*args, **options)

        return watched


@pytest.fixture
def uses(monkeypatch: pytest.MonkeyPatch) -> Uses:
    seen = Uses()
    init = BoundSockets.__init__

    def watched(self: BoundSockets, *args: Any, **options: Any) -> None:
        init(self, *args, **options)
        for socket in (self.router, self.monitor, self.zap):
            for use in ("receive", "receive_from", "send", "send_to", "readable"):
                setattr(socket, use, seen.watch(getattr(socket, use)))
        self._remove_files = seen.watch(self._remove_files)  # type: ignore[method-assign]

    monkeypatch.setattr(BoundSockets, "__init__", watched)
    return seen


def plain(request: trioreq.Request) -> bytes:
    return request.body


async def in_the_loop(request: trioreq.Request) -> bytes:
    return request.body


async def in_a_task(request: trioreq.Request) -> bytes:
    await trio.lowlevel.checkpoint()
    if request.body == b"fail":
        raise trioreq.ReplyError("failed")
    return request.body


@pytest.mark.parametrize(
    ("handler", "by"),
    [(in_the_loop, "_run_here"), (plain, "_collect"), (in_a_task, "_go_on")],
    ids=["in the loop", "in a thread", "in a task"],
)
async def test_not_while_requests_are_answered(
    uses: Uses, clients: Clients, handler: Any, by: str
) -> None:
    async with serving(handler) as server:
        client = clients.connect(server.endpoints[0], zmq.DEALER)
        for _ in range(3):
            await client.request(b"", b"echo")
        await client.request(b"", b"fail")
        for _ in range(3):  # more than one at a time: some run in tasks of the client's
            await client.send(b"", b"echo")
        for _ in range(3):
            await client.receive()
        assert (await client.request(b"no delimiter"))[1] == b"trioreq-error"
        await until(lambda: "look" in uses.by)
    assert {"keep_reading", by, "aclose"} < uses.by
    assert not uses.exposed


async def test_ctrl_c_does_not_interrupt_the_start_of_the_server() -> None:
    protected = []

    class Handler(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            if record.getMessage().startswith("serving on"):
                protected.append(trio.lowlevel.currently_ki_protected())

    handler = Handler()
    log = logging.getLogger("trioreq")
    log.addHandler(handler)
    level = log.level
    log.setLevel(logging.INFO)
    try:
        async with serving(in_the_loop):
            pass
    finally:
        log.removeHandler(handler)
        log.setLevel(level)
    assert protected == [True]


async def test_ctrl_c_does_not_interrupt_replies_to_timeouts_or_at_the_shutdown(
    uses: Uses, clients: Clients
) -> None:
    worker = Worker()
    async with serving(worker, timeout=0.1) as server:
        client = clients.connect(server.endpoints[0], zmq.DEALER)
        # The first does not end by itself when trio cancels it at its deadline.
        for body in (b"shield", b"wait"):
            assert (await client.request(b"", body))[2] == b"timed-out"
        worker.release.set()
    async with serving(Worker()) as server:
        client = clients.connect(server.endpoints[0], zmq.DEALER)
        await client.send(b"", b"wait")
        await until(lambda: server.statistics().running == 1)
    assert {"_expire", "stop"} < uses.by
    assert not uses.exposed


async def test_ctrl_c_does_not_interrupt_an_accept_or_an_eviction(uses: Uses) -> None:
    async def admit(_: trioreq.Applicant) -> str:
        await trio.lowlevel.checkpoint()
        return "anybody"

    curve = trioreq.CurveClient(SERVER.public, ALICE)
    async with (
        serving(Worker(), curve=trioreq.CurveServer(SERVER), admit=admit) as server,
        trioreq.open_client(server.endpoints[0], curve=curve) as client,
    ):
        assert await client.request(b"echo") == b"re:echo"
    settings = trioreq.CurveServer(SERVER, {ALICE.public: "alice"})
    async with (
        serving(Worker(), curve=settings) as server,
        trioreq.open_client(server.endpoints[0], curve=curve) as client,
    ):
        assert await client.request(b"echo") == b"re:echo"
        assert settings.allow is not None
        settings.allow.replace({})
        await until(lambda: server.statistics().evicted == 1)
    assert {"_ask", "replace"} < uses.by
    assert not uses.exposed


@pytest.fixture(autouse=True)
def _looks_soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(guard, "PAUSE", 0.01)


INTERRUPTED = """
import signal, sys
import trio, trioreq, zmq
from trioreq._transport.server_sockets import BoundSockets

word, timeout = sys.argv[1].encode(), float(sys.argv[2])
init = BoundSockets.__init__

def watched(self, *args, **options):
    init(self, *args, **options)
    send_to = self.router.send_to

    def spy(routing_id, frames):
        global word
        if word in frames:
            word = None
            signal.raise_signal(signal.SIGINT)  # as pyzmq does, which looks for it in each call
        return send_to(routing_id, frames)

    self.router.send_to = spy

BoundSockets.__init__ = watched

async def handler(request):
    await trio.sleep_forever()

async def main():
    with zmq.Context() as context:
        dealers = []
        try:
            async with trio.open_nursery() as nursery:
                server = await nursery.start(
                    lambda task_status: trioreq.serve(
                        handler, "tcp://127.0.0.1:0", timeout=timeout, task_status=task_status
                    )
                )
                for number in range(2):
                    dealer = context.socket(zmq.DEALER)
                    dealers.append(dealer)
                    dealer.connect(server.endpoints[0])
                    dealer.send_multipart([b"", b"x"])
                    while server.statistics().running <= number:
                        await trio.sleep(0.01)
                if word == b"shutting-down":
                    signal.raise_signal(signal.SIGINT)
                await trio.sleep_forever()
        finally:
            for dealer in dealers:
                if dealer.poll(1000):
                    print(dealer.recv_multipart()[:3], flush=True)
                dealer.close(linger=0)

trio.run(main)
"""


@pytest.mark.slow
@pytest.mark.parametrize(("word", "timeout"), [("shutting-down", 1000), ("timed-out", 1)])
async def test_each_client_gets_its_own_error_and_the_server_ends(
    word: str, timeout: float
) -> None:
    """With one Ctrl-C for the end, and another in the midst of the last words."""
    with trio.fail_after(20):  # and killed
        process = await trio.run_process(
            [sys.executable, "-c", INTERRUPTED, word, str(timeout)],
            capture_stdout=True,
            capture_stderr=True,
            check=False,
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
            stdin=subprocess.DEVNULL,
        )
    assert "KeyboardInterrupt" in process.stderr.decode()
    words = process.stdout.decode().splitlines()
    assert len(words) == 2
    for line in words:
        assert "[b'', b'trioreq-error', b'" in line
    assert word in words[0]
