"""What happens to a client's request when the client crashes? Run this, and watch.

    python examples/client_crash.py

Four clients, each a process of its own, request a report. While the requests run, bob is killed,
and carol is stopped: that process exists and its connection stays open, but it does not respond.
The server cancels these two requests, and sends no reply to them. alice and dave get their reports.

At the end the example checks all of this, and exits with 1 if a check fails. It takes about 3
seconds.
"""

from __future__ import annotations

import math
import os
import signal
import subprocess
import sys
import time

import trio
import zmq

import trioreq

HEARTBEAT = 2.0  # seconds within which the server detects that a client is stopped
SLACK = 1.0  # seconds that a busy machine may add to each limit
PATIENCE = 15.0  # seconds for the whole example

BEGIN = time.monotonic()
COLOURED = sys.stdout.isatty() and not os.environ.get("NO_COLOR")
DIM, RED, GREEN, YELLOW = 2, 31, 32, 33


def ask(name: str, endpoint: str) -> None:
    """Be a client: a stock REQ socket that blocks, without trioreq and trio."""
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    socket = context.socket(zmq.REQ)
    socket.connect(endpoint)
    socket.send_string(name)
    print(socket.recv_string())
    context.destroy()


class Client:
    """One client: its process, and the outcome of its request."""

    process: trio.Process

    def __init__(self, name: str) -> None:
        self.name = name
        self.asked = trio.Event()
        self.cancelled = trio.Event()
        self.ended = trio.Event()
        self.hit = ""  # the signal that it was sent
        self.hit_at = math.nan
        self.cancelled_after = math.nan  # seconds since then
        self.printed = ""

    async def run(self, endpoint: str, task_status: trio.TaskStatus[None]) -> None:
        """Start the process, and report its output when it ends."""
        command = [sys.executable, __file__, "client", self.name, endpoint]
        self.process = await trio.lowlevel.open_process(command, stdout=subprocess.PIPE)
        assert self.process.stdout is not None
        async with self.process.stdout as stdout:
            try:
                task_status.started()
                self.printed = b"".join([some async for some in stdout]).decode().strip()
                code = await self.process.wait()
            finally:
                self.process.kill()  # if it has not ended; a stopped one, too
                with trio.CancelScope(shield=True):
                    await self.process.wait()
        what = f"has printed {self.printed!r}" if self.printed else "has printed nothing"
        tell(self, "process", f"{what}, exit code {code}", GREEN if self.printed else DIM)
        self.ended.set()

    def strike(self, number: signal.Signals, remark: str) -> None:
        """Send the process a signal, and record the time."""
        self.hit, self.hit_at = number.name, time.monotonic()
        os.kill(self.process.pid, number)
        tell(self, "process", f"{number.name}: {remark}", RED)


class Demo:
    """The clients, and the handler that works for them."""

    def __init__(self) -> None:
        self.clients = {name: Client(name) for name in ("alice", "bob", "carol", "dave")}
        self.work = trio.Event()

    async def report(self, request: trioreq.Request) -> bytes:
        """The server's handler. It needs no code to be cancelled: here it only reports."""
        client = self.clients[request.body.decode()]
        peer = request.client
        where = f"{peer.socket_type} at {peer.address}"
        tell(client, "server", f"request from a {where}; handler starts")
        client.asked.set()
        try:
            await self.work.wait()  # instead of a query, a download, an hour of computation
        except trio.Cancelled:
            client.cancelled_after = time.monotonic() - client.hit_at
            when = f", {client.cancelled_after * 1000:.1f} ms after {client.hit}"
            what = f"handler cancelled: {request.cancel_reason}{when if client.hit else ''}"
            tell(client, "server", what, YELLOW)
            client.cancelled.set()
            raise
        tell(client, "server", "handler returns the report")
        return f"a report for {client.name}".encode()

    async def play(self) -> trioreq.Statistics:
        """Start the server and the clients, kill bob, and stop carol."""
        alice, bob, carol, dave = self.clients.values()
        async with trioreq.open_server(
            self.report, "tcp://127.0.0.1:0", heartbeat=HEARTBEAT
        ) as server:
            (endpoint,) = server.endpoints
            print(f"A server at {endpoint}, heartbeat {HEARTBEAT:g} s, and four clients\n")
            print(paint("seconds  client  where    what", DIM))
            async with trio.open_nursery() as processes:
                for client in self.clients.values():
                    await processes.start(client.run, endpoint)
                for client in self.clients.values():
                    await client.asked.wait()

                bob.strike(signal.SIGKILL, "killed while its request runs")
                await bob.cancelled.wait()
                await bob.ended.wait()

                carol.strike(signal.SIGSTOP, "stopped while its request runs; stays connected")
                await carol.cancelled.wait()

                self.work.set()
                await alice.ended.wait()
                await dave.ended.wait()
                carol.process.kill()
            await server.drain(grace=1)
        return server.statistics()

    def judge(self, stats: trioreq.Statistics) -> bool:
        """Print the statistics, and whether the guarantees were kept."""
        alice, bob, carol, dave = self.clients.values()
        print(paint("\nthe server's statistics  count  expected", DIM))
        counted = [
            count("requests", stats.requests, 4, "one of each client"),
            count("replied", stats.replied, 2, "alice, dave"),
            count("cancelled_by_disconnect", stats.cancelled_by_disconnect, 2, "bob, carol"),
            count("replies_sent", stats.replies_sent, 2, "to alice and dave; none to bob or carol"),
            count("running", stats.running, 0, "no handler runs any more"),
        ]
        served = [client.printed == f"a report for {client.name}" for client in (alice, dave)]
        unserved = not bob.printed and not carol.printed and stats.replies_sent == sum(served)
        print(paint("\nwhat is guaranteed", DIM))
        kept = [
            promise("bob's request is cancelled immediately", bob.cancelled_after < SLACK),
            promise(
                f"carol's is cancelled within {HEARTBEAT:g} s",
                carol.cancelled_after < HEARTBEAT + SLACK,
            ),
            promise("no reply is sent to bob or carol", unserved),
            promise("alice and dave have their reports", all(served)),
            promise("every request is counted", all(counted)),
        ]
        return all(kept)


def tell(client: Client, where: str, what: str, colour: int = 0) -> None:
    """Print an event, with its time."""
    now = paint(f"{time.monotonic() - BEGIN:7.3f}", DIM)
    print(f"{now}  {client.name:6}  {where:7}  {paint(what, colour)}", flush=True)


def count(name: str, value: int, expected: int, whose: str) -> bool:
    """Print a line of the statistics; returns whether it is as expected."""
    right = value == expected
    counted = paint(f"{value:5}", GREEN if right else RED)
    print(f"{name:23}  {counted}  {expected:8}  {paint(whose, DIM)}")
    return right


def promise(text: str, kept: bool) -> bool:
    """Print whether a guarantee was kept; returns the same."""
    print(f"{text:38}  {paint('yes', GREEN) if kept else paint('NO', RED)}")
    return kept


def paint(text: str, colour: int) -> str:
    """Colour a text for a terminal; elsewhere, or with NO_COLOR, leave it plain."""
    return f"\x1b[{colour}m{text}\x1b[0m" if COLOURED and colour else text


async def main() -> str | None:
    """Run the demo and check it; returns an error message if a check fails."""
    demo = Demo()
    with trio.move_on_after(PATIENCE):
        stats = await demo.play()
        return None if demo.judge(stats) else "\nFAILED: a check failed, see above"
    return f"\nFAILED: still running after {PATIENCE:g} s; the lines above show its progress"


if __name__ == "__main__":
    outcome: str | int | None = None
    try:
        if sys.argv[1:2] == ["client"]:
            ask(*sys.argv[2:])
        else:
            outcome = trio.run(main)
    except* KeyboardInterrupt:
        outcome = 130
    sys.exit(outcome)
