"""Handlers that misbehave: the effect on others, and which handler the log names.

Time is real. What makes it deterministic: the tests wait for the server's reports; a bound on time
is the one that is promised, with room for a machine that is busy.
"""

from __future__ import annotations

import logging
import os
import signal
import threading
import time

import pytest
import trio
from support.handlers import Log
from support.serving import serving, until

import trioreq
from harness.clients import open_clients
from harness.servers import ServerProcess, open_server
from trioreq._server.watchdog import Watchdog

pytestmark = pytest.mark.slow

LIMIT = 15  # seconds of real time for a test that got stuck
PATIENCE = 0.2  # seconds


async def logged(server: ServerProcess, words: str) -> tuple[str, float]:
    """Wait until the server has logged something with these words; returns all of it, and when."""

    def found() -> list[tuple[str, float]]:
        return [
            (text, at)
            for (word, text), at in server.told.items()
            if word == "log" and words in text
        ]

    while not found():
        await server.changed()
    return found()[0]


async def test_the_log_names_the_handler_that_blocks_the_event_loop() -> None:
    with trio.fail_after(LIMIT), open_clients() as clients:
        async with open_server(watchdog=PATIENCE) as server:
            client = clients.connect(server.endpoint)
            start = time.monotonic()
            await client.send(b"block 1")
            text, at = await logged(server, "event loop blocked for")
            assert PATIENCE <= at - start < 1
            assert "by the handler of client 1 (REQ at 127.0.0.1); current stack:" in text
            lines = text.splitlines()
            assert "time.sleep(" in lines[-1]
            assert "in handler" in lines[-2]
            assert "trio/_core" not in text  # no more of the stack than is the handler's
            _, turned = await logged(server, "responsive again after")
            assert turned - start >= 1
            assert await client.receive() == [b"block 1"]
            # Once for each time that it stands.
            assert len([word for word, _ in server.told if word == "log"]) == 2


async def test_the_log_reports_a_call_that_keeps_the_gil() -> None:
    with trio.fail_after(LIMIT), open_clients() as clients:
        async with open_server(watchdog=PATIENCE) as server:
            client = clients.connect(server.endpoint)
            await client.request(b"lock 1")
            text, _ = await logged(server, "kept the GIL")
            assert "all threads blocked for" in text


async def test_a_process_that_was_stopped_is_not_blamed() -> None:
    with trio.fail_after(LIMIT), open_clients() as clients:
        async with open_server(watchdog=PATIENCE) as server:
            client = clients.connect(server.endpoint)
            await client.send(b"work 1.5")
            await server.until(lambda state: state["statistics"][0]["in_flight"] == 1)
            os.kill(server.process.pid, signal.SIGSTOP)
            await trio.sleep(4 * PATIENCE)  # the fault, not a wait for something
            os.kill(server.process.pid, signal.SIGCONT)
            await client.receive()
            assert not server.told


async def test_an_event_loop_that_responds_is_not_reported() -> None:
    """However long its handlers take."""
    with trio.fail_after(LIMIT), open_clients() as clients:
        async with open_server(watchdog=PATIENCE) as server:
            client = clients.connect(server.endpoint)
            await client.request(b"work 1")
            assert not server.told


def test_a_watchdog_sleeps_while_nothing_is_worked_on(caplog: pytest.LogCaptureFixture) -> None:
    """Seen from its thread: no look at the loop without a request, and none after the last."""

    async def main() -> None:
        looks: list[float] = []
        look = Watchdog._is_blocked

        def counted(self: Watchdog) -> bool:
            looks.append(time.monotonic())
            return look(self)

        async def handler(request: trioreq.Request) -> bytes:
            await trio.sleep(float(request.body))
            return b""

        with pytest.MonkeyPatch.context() as patch, open_clients() as clients:
            patch.setattr(Watchdog, "_is_blocked", counted)
            async with serving(handler, watchdog=0.02) as server:
                client = clients.connect(server.endpoints[0])
                await trio.sleep(0.2)
                assert not looks
                await client.request(b"0.2")
                assert looks
                await trio.sleep(0.1)  # it may be about to look once more
                seen = len(looks)
                await trio.sleep(0.2)
                assert len(looks) == seen
        for thread in threading.enumerate():
            if thread.name == "trioreq-watchdog":
                thread.join(LIMIT)
                assert not thread.is_alive()

    with caplog.at_level(logging.WARNING):
        trio.run(main)
    assert not caplog.records


async def test_a_handler_that_ignores_its_end_keeps_its_slot() -> None:
    """Its client goes, it goes on; others are served meanwhile, and its result is dropped."""
    log = Log()
    release = trio.Event()

    async def handler(request: trioreq.Request) -> bytes:
        if request.body == b"echo":
            return request.body
        with trio.CancelScope(shield=True):
            log.add("started")
            await release.wait()
        log.add("ended")
        return b"for nobody"

    with open_clients() as clients:
        async with serving(handler, max_in_flight=2) as server:
            stubborn = clients.connect(server.endpoints[0])
            await stubborn.send(b"shield")
            await log.wait("started")
            stubborn.close()
            other = clients.connect(server.endpoints[0])
            for _ in range(100):
                assert await other.request(b"echo") == [b"echo"]
            await until(lambda: server.statistics().connections == 1)
            statistics = server.statistics()
            assert (statistics.running, statistics.cancelled_by_disconnect) == (1, 1)
            release.set()
            await log.wait("ended")
            assert await other.request(b"echo") == [b"echo"]
            assert server.statistics().replies_sent == 101


class Odd(BaseException):
    """What no one expects."""


@pytest.mark.parametrize("error", [Odd, RuntimeError, MemoryError, RecursionError])
async def test_an_exception_of_a_handler_affects_only_its_client(
    error: type[BaseException],
) -> None:
    async def handler(request: trioreq.Request) -> bytes:
        if request.body == b"echo":
            return request.body
        raise error("oh")

    with open_clients() as clients:
        async with serving(handler) as server:
            client, other = (clients.connect(server.endpoints[0]) for _ in range(2))
            code = (await client.request(b"raise"))[1]
            assert code == b"handler-failed"
            assert await other.request(b"echo") == [b"echo"]


@pytest.mark.parametrize("error", [SystemExit, KeyboardInterrupt])
async def test_an_exception_that_ends_a_program_ends_the_server(error: type[BaseException]) -> None:
    """And each client with a request in flight is answered first."""
    log = Log()

    async def handler(request: trioreq.Request) -> bytes:
        if request.body == b"wait":
            log.add("started")
            await trio.sleep_forever()
        raise error

    with open_clients() as clients, pytest.raises(BaseException) as caught:  # noqa: PT011, PT012
        async with trio.open_nursery() as nursery:
            server = await nursery.start(trioreq.serve, handler, "tcp://127.0.0.1:0")
            waits, ends = (clients.connect(server.endpoints[0]) for _ in range(2))
            await waits.send(b"wait")
            await log.wait("started")
            await ends.send(b"end")
            with trio.CancelScope(shield=True), trio.fail_after(LIMIT):
                assert (await waits.receive())[1] == b"shutting-down"
    found: BaseException = caught.value
    while isinstance(found, BaseExceptionGroup):
        found = found.exceptions[0]
    assert isinstance(found, error)


async def test_a_huge_reply_does_not_delay_other_clients_for_long() -> None:
    """It is handed over as it is, and is that much memory, until it is sent."""
    with trio.fail_after(LIMIT), open_clients() as clients:
        async with open_server() as server:
            greedy, other = (clients.connect(server.endpoint) for _ in range(2))
            before = (await server.state())["memory"]
            await greedy.send(b"reply %d" % 2**28)
            longest = 0.0
            async with trio.open_nursery() as nursery:

                async def ask() -> None:
                    nonlocal longest
                    while True:
                        start = time.monotonic()
                        await other.request(b"echo")
                        longest = max(longest, time.monotonic() - start)

                nursery.start_soon(ask)
                (reply,) = await greedy.receive()
                nursery.cancel_scope.cancel()
            assert len(reply) == 2**28
            assert longest < 2
            await server.until(lambda state: state["memory"] < before + 50e6)
