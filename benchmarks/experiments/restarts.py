"""Clients that ask all the while, through rolling restarts and a kill of a process.

    python -m benchmarks restarts [--clients 2000] [--restarts 20] [--processes 2]

`trioreq-server` serves with several processes. The clients are trioreq's own, in four processes;
each asks, pauses, and asks again. SIGHUP replaces the processes of the server, again and again, and
after half of the restarts one of them is killed with SIGKILL. In the end all requests are counted,
at the clients and at the server: each must have been answered, or have failed with an error that
has a name, and no request may have timed out. A request whose connection was lost may have been
answered or not. What the killed process did after it last told its statistics, half a second at
most, is missing at the server.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from contextlib import ExitStack
from pathlib import Path
from queue import Queue
from typing import Any

import trio

import trioreq
from harness.processes import end_with_parent, python_module, read_line, running

from ..shared.servers import allow_files

HANDLER = """
import trio
import trioreq

async def handler(request: trioreq.Request) -> bytes:
    await trio.sleep(0.01)
    return request.body
"""
PAUSE = 2.0  # seconds between two requests of a client
PATIENCE = 60.0  # seconds for a request
CLIENT_PROCESSES = 4


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's options."""
    parser.add_argument("--clients", type=int, default=2000)
    parser.add_argument("--restarts", type=int, default=20)
    parser.add_argument("--processes", type=int, default=2)


async def ask_all_the_while(endpoint: str, clients: int) -> Counter[str]:
    """Ask until standard input ends; returns how the requests went."""
    outcomes: Counter[str] = Counter()
    stopping = False

    async def ask(task_status: trio.TaskStatus[None]) -> None:
        async with trioreq.open_client(endpoint, timeout=PATIENCE, connect_timeout=PATIENCE) as one:
            first = True
            while not stopping:
                try:
                    await one.request(b"anything")
                except trioreq.ReplyError as error:
                    outcomes[error.code] += 1
                except trioreq.TrioreqError as error:
                    outcomes[type(error).__name__] += 1
                else:
                    outcomes["answered"] += 1
                if first:
                    first = False
                    task_status.started()
                with trio.move_on_after(random.uniform(0, 2 * PAUSE)):
                    await stop.wait()

    stop = trio.Event()
    async with trio.open_nursery() as nursery:
        for _ in range(clients):
            await nursery.start(ask)
        print("asking", flush=True)
        await trio.to_thread.run_sync(sys.stdin.read)
        stopping = True
        stop.set()
    return outcomes


class Log:
    """What the server logs, read in a thread.

    Attributes:
        errors: The lines of level ERROR.
    """

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process
        self._lines: Queue[dict[str, Any]] = Queue()
        self.errors: list[str] = []
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self) -> None:
        assert self._process.stderr is not None
        for text in self._process.stderr:
            if text.startswith("{"):
                line = json.loads(text)
                if line["level"] == "error":
                    self.errors.append(line["message"])
                self._lines.put(line)
            else:
                print(text, end="", file=sys.stderr)

    def wait_for(self, text: str, pid: int | None = None) -> dict[str, Any]:
        """The next line with a text, of a process."""
        while True:
            line = self._lines.get(timeout=PATIENCE)
            if text in line["message"] and pid in (None, line["pid"]):
                return line


def measure(clients: int, restarts: int, processes: int) -> tuple[dict[str, Any], list[str]]:
    """Restart; returns the counts, and what is wrong with them."""
    outcomes: Counter[str] = Counter()
    with ExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        (directory / "service.py").write_text(HANDLER)
        command = [sys.executable, "-m", "trioreq_cli", "service:handler", "--grace", "5"]
        command += ["--app-dir", str(directory), "--bind", "tcp://127.0.0.1:0"]
        command += ["--processes", str(processes), "--hang-timeout", "60"]
        server = stack.enter_context(
            subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env={**os.environ})
        )
        stack.callback(server.kill)
        log = Log(server)
        endpoint = log.wait_for("serving on ")["message"].removeprefix("serving on ")
        pids = {log.wait_for(" serves")["message"] for _ in range(processes)}
        share = clients // CLIENT_PROCESSES
        askers = [
            stack.enter_context(running(python_module(__name__, endpoint, share)))
            for _ in range(CLIENT_PROCESSES)
        ]
        for asker in askers:
            read_line(asker)
        print(f"{share * CLIENT_PROCESSES} clients ask; {sorted(pids)}", file=sys.stderr)
        began = time.monotonic()
        for number in range(restarts):
            server.send_signal(signal.SIGHUP)
            for _ in range(processes):
                newest = log.wait_for(" serves", server.pid)["message"]
                log.wait_for("stopped: ")
            if number == restarts // 2:
                os.kill(int(newest.partition("pid ")[2].partition(")")[0]), signal.SIGKILL)
                log.wait_for("it is replaced")
                log.wait_for(" serves")
            print(f"restart {number + 1} of {restarts}", file=sys.stderr)
        seconds = time.monotonic() - began
        for asker in askers:
            told, _ = asker.communicate()
            outcomes.update(json.loads(told))
        server.terminate()
        counts = log.wait_for("stopped: ", server.pid)["statistics"]
        server.wait()
    report = {"seconds": seconds, "clients": dict(outcomes), "server": counts, "log": log.errors}
    return report, faults(outcomes, counts)


def faults(outcomes: Counter[str], counts: dict[str, Any]) -> list[str]:
    """What does not add up."""
    answered, lost = outcomes["answered"], outcomes["ConnectionLost"]
    known = {"answered", "ConnectionLost", "shutting-down"}
    found = [f"{count} requests ended as {name}" for name, count in outcomes.items()
             if name not in known]  # fmt: skip
    ended = sum(counts[name] for name in ENDINGS)
    if counts["requests"] != ended:
        found.append(f"the server has {counts['requests']} requests, of which {ended} have ended")
    if counts["replied"] > answered + lost:
        found.append("the server has replied to more requests than were answered or lost")
    if counts["shut_down"] < outcomes["shutting-down"]:
        found.append("clients were told more often that the server shuts down than it says")
    return found


ENDINGS = (
    "replied", "failed", "timed_out", "superseded", "cancelled_by_disconnect",
    "cancelled_by_client", "never_started", "overloaded", "malformed", "shut_down",
)  # fmt: skip


def run(options: argparse.Namespace) -> int:
    """Measure and show."""
    allow_files(options.clients)
    report, wrong = measure(options.clients, options.restarts, options.processes)
    outcomes, counts = report["clients"], report["server"]
    print(f"{options.restarts} restarts of {options.processes} processes and a kill, ", end="")
    print(f"{options.clients} clients, {report['seconds']:.0f} s")
    for name, count in sorted(outcomes.items()):
        print(f"  clients: {count:8,} {name}")
    for name in ("requests", *ENDINGS):
        if counts[name]:
            print(f"  server:  {counts[name]:8,} {name}")
    missing = outcomes["answered"] - counts["replied"]
    print(f"  answered, and not counted by the process that was killed: at least {missing:,}")
    for line in report["log"]:
        print(f"  log: {line}")
    for line in wrong:
        print(f"WRONG: {line}")
    return 1 if wrong else 0


if __name__ == "__main__":
    end_with_parent()
    allow_files(4 * int(sys.argv[2]))
    print(json.dumps(trio.run(ask_all_the_while, sys.argv[1], int(sys.argv[2]))))
