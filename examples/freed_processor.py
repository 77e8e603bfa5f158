"""A long computation whose client is killed: the next request gets the processor.

    pip install "trioreq[examples]"
    python examples/freed_processor.py

The server has one worker process, and a spare. alice and bob, each a process of their own, request
the same long computation: one call of `pow`, which cannot be interrupted. alice is first, and bob
has to wait. Then alice is killed. The server kills her worker, and bob's job has the processor.

At the end the example prints how much processor time was saved, and exits with 1 if it was none. It
takes some seconds.
"""

from __future__ import annotations

import subprocess
import sys
import time

import trio
import zmq

import trioreq

EXPONENT = 4_000_000  # a power that takes a second or two
HEAD_START = 0.5  # seconds for which alice's job runs
BEGIN = time.monotonic()


def compute(request: trioreq.Request) -> bytes:
    """Compute in one call into C, in a worker process; returns the processor time that it took."""
    start = time.process_time()
    pow(7, EXPONENT)
    return b"%.2f" % (time.process_time() - start)


def say(text: str) -> None:
    """Print a line, with the time."""
    print(f"{time.monotonic() - BEGIN:5.2f} s  {text}", flush=True)


def ask(endpoint: str, name: str) -> None:
    """Be a client: a stock REQ socket."""
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    socket = context.socket(zmq.REQ)
    socket.connect(endpoint)
    socket.send_string(name)
    print(socket.recv_string())
    context.destroy()


async def main() -> int:
    """Serve, start both clients, and kill alice."""
    workers = trioreq.ProcessWorkers(1, spares=1)
    async with trioreq.open_server(compute, "tcp://127.0.0.1:0", workers=workers) as server:
        command = [sys.executable, __file__, server.endpoints[0]]
        alice = await trio.lowlevel.open_process([*command, "alice"])
        while not server.statistics().running:  # noqa: ASYNC110  # there is no event for it
            await trio.sleep(0.01)
        say("alice's job runs")
        started = time.monotonic()
        bob = await trio.lowlevel.open_process([*command, "bob"], stdout=subprocess.PIPE)
        assert bob.stdout is not None
        await trio.sleep(HEAD_START)
        alice.kill()
        say("alice is killed")
        used = time.monotonic() - started
        await alice.wait()
        output = b""
        async for some in bob.stdout:
            output += some
        await bob.wait()
        took = float(output)
        say(f"bob has his reply; his job took {took:.2f} s of processor time")
        saved = took - used
        say(f"alice's was killed after {used:.2f} s: at least {saved:.2f} s were saved")
        return 0 if saved > 0 and server.statistics().killed == 1 else 1


if __name__ == "__main__":  # each worker process imports this file
    if sys.argv[1:]:
        ask(*sys.argv[1:])
    else:
        sys.exit(trio.run(main))
