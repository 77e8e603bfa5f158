"""Plain functions that run anywhere: in threads, in processes, and in memory.

A request's body is a command and its argument. A process shares nothing with the test. So what a
function does is reported to a socket of the test's, `Reports`, whose path is the environment's.
"""

from __future__ import annotations

import asyncio
import ctypes
import functools
import logging
import os
import select
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, NoReturn

import trio

import trioreq
from trioreq._server import worker_log
from trioreq.testing import sleep

PATH = "TRIOREQ_TEST_REPORTS"
STUBBORN = 20  # seconds after which what ignores its end does end
ORPHANED = 60  # seconds after which a program ends that should have been killed
FLOOD = 5000  # records of a kilobyte

variable: ContextVar[str] = ContextVar("variable", default="unset")
loaded: list[str] = []  # what the initializer has loaded


class TwoArguments(Exception):
    """It cannot be pickled: it is made of something else than its `args`."""

    def __init__(self, first: int, second: int) -> None:
        super().__init__(f"{first} and {second}")


class NotFound(trioreq.ReplyError):
    """A user's own."""

    def __init__(self, number: int) -> None:
        super().__init__("not-found", f"there is no image {number}")


class Frame(bytes):
    """A subclass, whose instances are frames too."""


class Reports:
    """What functions have reported, as it comes."""

    def __init__(self, receiver: socket.socket) -> None:
        self._receiver = receiver

    async def next(self) -> str:
        """Wait for a report."""
        await trio.lowlevel.wait_readable(self._receiver)
        return self._receiver.recv(1000).decode()

    async def wait(self, report: str) -> int:
        """Wait for a report, which must be the next; returns the number of the process."""
        text, _, pid = (await self.next()).rpartition(" ")
        assert text == report, text
        return int(pid)

    def block_until(self, report: str) -> None:
        """Wait for a report, and let nothing else in this thread run meanwhile."""
        assert select.select([self._receiver], [], [], STUBBORN)[0]
        assert self._receiver.recv(1000).decode().rpartition(" ")[0] == report

    def rest(self) -> list[str]:
        """Those that have come and were not waited for."""
        found = []
        while True:
            try:
                found.append(self._receiver.recv(1000).decode().rpartition(" ")[0])
            except BlockingIOError:
                return found


@contextmanager
def open_reports(path: str) -> Iterator[Reports]:
    """Receive reports."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as receiver:
        receiver.bind(path)
        receiver.setblocking(False)
        os.environ[PATH] = path
        try:
            yield Reports(receiver)
        finally:
            del os.environ[PATH]
            os.unlink(path)  # noqa: PTH108  # a str, as the environment has


def report(text: str) -> None:
    """Report to the test."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender:
        sender.sendto(f"{text} {os.getpid()}".encode(), os.environ[PATH])


# Jobs, by their commands.


def echo(request: trioreq.Request, _: str) -> list[bytes]:
    return [b"re", *request.frames]


def describe(request: trioreq.Request, _: str) -> str:
    return f"{request.client.id} {request.client.socket_type} {request.cancel_reason}"


def left(request: trioreq.Request, _: str) -> str:
    return f"{request.deadline}"


def pid(_: trioreq.Request, __: str) -> str:
    return str(os.getpid())


def check(request: trioreq.Request, _: str) -> str:
    trioreq.check_cancelled()
    request.check_cancelled()
    return "goes on"


def wait(request: trioreq.Request, name: str) -> NoReturn:
    """Until the request ends, which this checks."""
    report(f"waits {name}")
    try:
        while True:
            trioreq.check_cancelled()
            sleep(0.001)
    except trioreq.RequestCancelled:
        report(f"cancelled {name}: {request.cancel_reason}")
        raise


def deaf(_: trioreq.Request, name: str) -> str:
    """Whatever happens."""
    report(f"waits {name}")
    for _second in range(STUBBORN * 10):
        sleep(0.1)
    report(f"ended {name}")
    return "ended"


def until(_: trioreq.Request, path: str) -> str:
    """Until there is a file, whatever happens."""
    report("waits")
    while not os.path.exists(path):  # noqa: PTH110  # a loop in a hurry
        sleep(0.001)
    report("ended")
    return "ended"


def finish(request: trioreq.Request, arguments: str) -> str:
    """Until its request has ended and there is a file, in a block that must finish."""
    limit, _, path = arguments.partition(" ")
    with trioreq.finishing(limit=float(limit)), trioreq.finishing(limit=0):
        report("in the block")
        while request.cancel_reason is None or not os.path.exists(path):  # noqa: PTH110
            trioreq.check_cancelled()
            sleep(0.001)
        report(f"done: {request.cancel_reason}")
    report("left")  # lost, if it is killed where the block ends
    sleep(STUBBORN)
    return "ended"


def compute(_: trioreq.Request, name: str) -> str:
    """In one call into C, which keeps the GIL."""
    report(f"computes {name}")
    ctypes.PyDLL(None).sleep(STUBBORN)
    report(f"computed {name}")
    return ""


def spawn(_: trioreq.Request, __: str) -> str:
    """Start another program, and wait for it."""
    child = subprocess.Popen([sys.executable, "-c", f"import time; time.sleep({ORPHANED})"])
    report(f"started {child.pid}")
    child.wait()
    return ""


def leave(_: trioreq.Request, __: str) -> str:
    """Start another program, and do not wait for it."""
    child = subprocess.Popen([sys.executable, "-c", f"import time; time.sleep({ORPHANED})"])
    child.returncode = 0  # else Python warns
    return str(child.pid)


def die(_: trioreq.Request, how: str) -> NoReturn:
    if how == "segmentation fault":
        ctypes.string_at(0)
    if how.startswith("SIG"):
        os.kill(os.getpid(), getattr(signal, how))
        time.sleep(STUBBORN)
    os._exit(int(how))


def report_and_die(request: trioreq.Request, how: str) -> NoReturn:
    report("dies")
    die(request, how)


def fork_and_die(_: trioreq.Request, __: str) -> NoReturn:
    """Leave a copy of the process behind, with all its descriptors."""
    if not os.fork():
        time.sleep(ORPHANED)
    os._exit(3)


def interruptible(_: trioreq.Request, name: str) -> str:
    """Until ``KeyboardInterrupt``."""
    try:
        report(f"waits {name}")
        for _second in range(STUBBORN * 100):
            time.sleep(0.01)
    except KeyboardInterrupt:
        report(f"interrupted {name}")
        raise
    return "ended"


def fail(_: trioreq.Request, how: str) -> NoReturn:
    match how:
        case "lookup":
            raise LookupError("no such thing")
        case "two":
            raise TwoArguments(1, 2)
        case "reply":
            raise trioreq.ReplyError("no-luck", "try again")
        case "not found":
            raise NotFound(17)
        case "group":
            raise ExceptionGroup("group", [ExceptionGroup("group", [NotFound(18)])])
        case "exit":
            raise SystemExit(3)
        case "interrupt":
            raise KeyboardInterrupt
        case "stale":
            raise trioreq.RequestCancelled(trioreq.CancelReason.DEADLINE)
    raise AssertionError


def result(_: trioreq.Request, kind: str) -> Any:
    return {
        "dict": {},
        "none": None,
        "text in a list": ["text"],
        "lambda": lambda: None,
        "subclass": Frame(b"frame"),
        "memoryview": memoryview(b"view"),
        "tuple": (b"1", bytearray(b"2")),
    }[kind]


def remember(_: trioreq.Request, value: str) -> str:
    before = variable.get()
    variable.set(value)
    return before


def loop(_: trioreq.Request, __: str) -> str:
    async def in_trio() -> None: ...

    trio.from_thread.check_cancelled()
    try:
        trio.from_thread.run(in_trio)
    except RuntimeError as error:
        return str(error)
    raise AssertionError


def run_asyncio(_: trioreq.Request, __: str) -> str:
    async def answer() -> str:
        return "asyncio"

    return asyncio.run(answer())


def say(_: trioreq.Request, text: str) -> str:
    print(text * 50)
    logging.getLogger("jobs").info("logged %s", text)
    return ""


def say_and_die(_: trioreq.Request, text: str) -> NoReturn:
    print(text * 50)
    os._exit(1)


class Unreadable:
    """It can be pickled, and not unpickled."""

    def __reduce__(self) -> tuple[Any, ...]:
        return _raise, ("no",)


def _raise(text: str) -> NoReturn:
    raise LookupError(text)


def log(request: trioreq.Request, kind: str) -> str:
    logger = logging.getLogger("jobs")
    match kind.split():
        case ["level"]:
            return str(logger.getEffectiveLevel())
        case ["exception"]:
            try:
                _ = 1 // 0
            except ZeroDivisionError:
                extra = {"order": 17, "lock": threading.Lock()}
                logger.exception("failed: %d", 3, extra=extra)
        case ["unreadable"]:
            logger.error("unreadable", extra={"thing": Unreadable()})
        case ["die"]:
            logger.info("the last words")
            os._exit(1)
        case ["compute"]:
            logger.info("then it computes")
            return compute(request, "it")
        case ["flood", many]:
            report("floods")
            for number in range(int(many)):
                logger.info("%d %s", number, "x" * 1000)
            report("flooded")
    return ""


def what_is_loaded(_: trioreq.Request, __: str) -> str:
    return ",".join(loaded)


def grow(_: trioreq.Request, size: str) -> str:
    """Leak memory, which is used."""
    loaded.append("x" * int(size))
    return str(os.getpid())


def big(request: trioreq.Request, _: str) -> bytes:
    return request.frames[1]


JOBS: dict[str, Callable[[trioreq.Request, str], Any]] = {
    function.__name__: function
    for function in (
        echo,
        describe,
        left,
        pid,
        check,
        wait,
        deaf,
        until,
        compute,
        spawn,
        leave,
        die,
        report_and_die,
        fork_and_die,
        interruptible,
        fail,
        result,
        remember,
        loop,
        run_asyncio,
        say,
        say_and_die,
        log,
        what_is_loaded,
        big,
        grow,
        finish,
    )
}


def work(request: trioreq.Request) -> Any:
    """The handler."""
    command, _, argument = request.body.decode().partition(" ")
    answer = JOBS[command](request, argument)
    return answer.encode() if isinstance(answer, str) else answer


class Object:
    """An object that can be called."""

    def __call__(self, request: trioreq.Request) -> Any:
        return work(request)

    def method(self, request: trioreq.Request) -> Any:
        return work(request)


def prefixed(prefix: str, request: trioreq.Request) -> Any:
    return [prefix.encode(), work(request)]


def _decorator(function: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(function)
    def outer(request: trioreq.Request) -> Any:
        return function(request)

    return outer


@_decorator
def decorated(request: trioreq.Request) -> Any:
    return work(request)


# Initializers.


def load() -> None:
    loaded.append("model")


def be_impatient() -> None:
    worker_log.PATIENCE = 0.01  # type: ignore[misc]


def fail_to_load() -> None:
    raise LookupError("there is no model")


class UnreadableElsewhere(Exception):
    """It can be unpickled in the process that has pickled it, and in no other."""

    def __reduce__(self) -> tuple[Any, ...]:
        return _made_in, (os.getpid(),)


def _made_in(pid: int) -> UnreadableElsewhere:
    if pid != os.getpid():
        raise LookupError("made in another process")
    return UnreadableElsewhere()


def fail_unreadably() -> None:
    raise UnreadableElsewhere


def die_at_start() -> None:
    os._exit(7)


def load_once() -> None:
    """Fail in all processes but the first ones, before there is a file."""
    if os.path.exists(os.environ["TRIOREQ_TEST_BROKEN"]):  # noqa: PTH110
        report("failed to load")
        raise LookupError("the model is gone")
