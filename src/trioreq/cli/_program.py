"""The common part of all programs: run a command, and exit with a code for its result."""

from __future__ import annotations

import signal
import sys
import traceback
from collections.abc import Callable
from typing import NoReturn

import click

import trioreq

from ._output import printable
from ._streams import CannotRead, CannotWrite, open_streams

EXIT_CODES = {
    trioreq.ReplyError: 1,
    trioreq.EndpointError: 2,
    trioreq.KeyFileError: 2,
    trioreq.WorkersFailed: 1,
    CannotRead: 2,
    trioreq.RequestTimeout: 3,
    trioreq.NotConnected: 4,
    trioreq.ConnectionLost: 5,
    trioreq.UnexpectedReply: 6,
    trioreq.Refused: 7,
    CannotWrite: 8,
}
WRONG_USAGE = 2
UNEXPECTED = 70  # EX_SOFTWARE in sysexits.h; Python's own code, 1, means an error of the server
INTERRUPTED = 128 + signal.SIGINT
BROKEN_PIPE = 128 + signal.SIGPIPE

Work = Callable[[], int]
"""The work of a command after its arguments are parsed; returns the exit code."""


def run_program(name: str, command: click.Command) -> NoReturn:
    """Run a command, which returns its `Work`, and exit.

    The work runs outside of click, which has its own exit codes and messages for Ctrl-C and broken
    pipes.
    """
    open_streams()
    try:
        code = run(name, command)
    except KeyboardInterrupt:  # a second one, during the clean-up after the first
        code = INTERRUPTED
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # a third must not interrupt the exit
    sys.exit(code)


def run(name: str, command: click.Command) -> int:
    """Run a command, and report an error; returns the exit code."""
    try:
        work: Work | int = command.main(prog_name=name, standalone_mode=False)
        return work if isinstance(work, int) else work()
    except BaseException as error:  # noqa: BLE001  # unknown errors are printed or raised
        return code_of(first_cause(error), name)


def first_cause(error: BaseException) -> BaseException:
    """The first exception in nested groups of nurseries."""
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error


def code_of(error: BaseException, name: str) -> int:
    """Report an error; returns its exit code."""
    match error:
        case KeyboardInterrupt() | click.Abort():
            return INTERRUPTED
        case CannotWrite(reader_closed=True):
            return BROKEN_PIPE
        case CannotWrite() | CannotRead() | trioreq.TrioreqError():
            tell(name, describe(error))
            return EXIT_CODES[type(error)]
        case click.ClickException():
            error.show()
            return WRONG_USAGE
        case Exception():
            traceback.print_exception(error)
            return UNEXPECTED
        case _:
            raise error


def tell(name: str, text: str) -> None:
    """Write a line to standard error."""
    click.echo(f"{name}: {text}", err=True)


def describe(error: Exception) -> str:
    """The text of an error. The server's text is escaped, so it cannot control the terminal."""
    text = f"error: {error}" if isinstance(error, trioreq.ReplyError) else str(error)
    return printable(text)
