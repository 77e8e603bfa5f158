"""Child processes, for blocking code: none outlives the parent. `children` has those for trio.

A child ends when its context does, whatever ends that; when this process is killed outright, the
kernel ends the child (`end_with_parent`).
"""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PR_SET_PDEATHSIG = 1
LIMIT = 120  # seconds in which a child must write a line


class ChildFailed(Exception):
    """A child process did not do what it was started for."""


def end_with_parent() -> None:
    """In a child: be killed with the parent, and leave Ctrl-C to it."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def pin(cpu: int | None) -> None:
    """In a child: stay on this processor."""
    if cpu is not None:
        os.sched_setaffinity(0, {cpu})


def python_module(name: str, *arguments: object) -> list[str]:
    """The command that runs a module, which must be found from `ROOT` or be installed."""
    return [sys.executable, "-m", name, *map(str, arguments)]


@contextmanager
def running(command: Sequence[str]) -> Iterator[subprocess.Popen[str]]:
    """Run a command in `ROOT` with pipes for input and output; kill it at the end."""
    process = subprocess.Popen(
        command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    with process:
        try:
            yield process
        finally:
            process.kill()


def tell(event: str) -> None:
    """Report to the parent what has happened, and when."""
    os.write(1, f"{event} {time.monotonic_ns()}\n".encode())


def read_line(process: subprocess.Popen[str]) -> str:
    """The next line that a child writes.

    Raises:
        ChildFailed: It has ended instead, or has written nothing for `LIMIT` seconds.
    """

    def give_up(*_: object) -> None:
        raise ChildFailed(f"{process.args!r} has written nothing for {LIMIT} seconds")

    assert process.stdout is not None
    signal.signal(signal.SIGALRM, give_up)
    signal.alarm(LIMIT)
    try:
        line = process.stdout.readline()
    finally:
        signal.alarm(0)
    if not line:
        raise ChildFailed(f"{process.args!r} ended with {process.wait()}")
    return line.rstrip("\n")


def write_line(process: subprocess.Popen[str]) -> None:
    """Write an empty line to a child that waits for one."""
    assert process.stdin is not None
    process.stdin.write("\n")
    process.stdin.flush()


def output_of(command: Sequence[str]) -> str:
    """Run a command to its end; returns what it wrote.

    Raises:
        ChildFailed: It failed.
    """
    with running(command) as process:
        output, _ = process.communicate()
        if process.returncode:
            raise ChildFailed(f"{command!r} ended with {process.returncode}")
    return output


def processors() -> list[int]:
    """Those that this process may use."""
    return sorted(os.sched_getaffinity(0))
