"""`trioreq-client`: arguments in, the API called, an exit code out."""

from __future__ import annotations

import os
import signal
import stat
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, NoReturn

import click
import trio
from click.shell_completion import CompletionItem

import trioreq

from ._ask import Ask, describe, tell
from ._bench import Load, run_bench
from ._keys import curve_of, key_options

EXIT_CODES = {
    trioreq.ReplyError: 1,
    trioreq.EndpointError: 2,
    trioreq.KeyFileError: 2,
    trioreq.RequestTimeout: 3,
    trioreq.NotConnected: 4,
    trioreq.ConnectionLost: 5,
    trioreq.UnexpectedReply: 6,
    trioreq.Refused: 7,
}
INTERRUPTED = 128 + signal.SIGINT
BROKEN_PIPE = 128 + signal.SIGPIPE

EXITS = """\b
Exit codes:
  0    a reply came
  1    the server answered with an error
  2    wrong usage, an address that is none, or a key file that cannot be used
  3    the time was up
  4    no connection
  5    the connection broke: whether the request was done is unknown
  6    the reply is not understood
  7    the server does not let this client in
  130  Ctrl-C
  141  whoever read the output has gone
"""


class Commands(click.Group):
    """The commands, and what does not name one is a request."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Put in the word that may be left out."""
        if args and args[0] not in self.commands and args[0] not in ("--help", "--version"):
            args = ["request", *args]
        return super().parse_args(ctx, args)

    def shell_complete(self, ctx: click.Context, incomplete: str) -> list[CompletionItem]:
        """Complete what may come first: also the options of a request."""
        options = request.shell_complete(click.Context(request, parent=ctx), incomplete)
        return [*super().shell_complete(ctx, incomplete), *options]


@click.group(
    cls=Commands,
    epilog=EXITS,
    context_settings={"max_content_width": 100},
    subcommand_metavar="[request] ENDPOINT [BODY]... | bench ENDPOINT",
)
@click.version_option(trioreq.__version__, prog_name="trioreq-client")
def commands() -> None:
    r"""Ask a ZeroMQ request/reply server: trioreq's, or any REP or ROUTER.

    \b
    trioreq-client tcp://127.0.0.1:5555 hello
    trioreq-client request --help      all options of a request
    trioreq-client bench --help        measure a server
    """


@commands.command(epilog=EXITS)
@click.argument("endpoint")
@click.argument("body", nargs=-1)
@click.option(
    "--file",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="Read the request from a file.",
)
@click.option("--multipart", is_flag=True, help="End each frame of the reply with a newline.")
@click.option("--hex", "as_hex", is_flag=True, help="Show the reply as a hex dump.")
@click.option("--json", "as_json", is_flag=True, help="Show the reply indented, if it is JSON.")
@click.option("--timeout", type=float, default=30.0, show_default=True, help="Seconds for a reply.")
@click.option(
    "--connect-timeout",
    type=float,
    default=5.0,
    show_default=True,
    help="Seconds for a connection.",
)
@click.option(
    "--retries",
    type=int,
    default=0,
    show_default=True,
    help="Ask again if the connection breaks; the work may be done twice.",
)
@click.option(
    "--repeat",
    type=click.IntRange(min=0),
    metavar="N",
    help="Ask N times, and show the times, as ping does; 0 is until Ctrl-C.",
)
@click.option(
    "--interval",
    type=click.FloatRange(min=0),
    default=1.0,
    show_default=True,
    help="Seconds between repeated requests.",
)
@key_options
@click.option("-v", "--verbose", is_flag=True, help="Tell how long each step took.")
def request(
    *,
    server_key: str | None,
    key_file: Path | None,
    allow_group: bool,
    **options: Any,  # noqa: ANN401  # click gives them by name
) -> None:
    """Send a request to ENDPOINT and print the reply.

    Each BODY is a frame. Without one, or with -, standard input is the request. A reply is
    written as it came; on a terminal it is made readable. Of several frames each is a line.
    """
    ask = Ask(**options, curve=keys(server_key, key_file, allow_group=allow_group))
    ask.check()
    finish(ask.run, ask.summarize)


@commands.command(epilog=EXITS)
@click.argument("endpoint")
@click.option(
    "-c", "--clients", type=click.IntRange(min=1), default=1, show_default=True, help="Connections."
)
@click.option(
    "-p",
    "--pipeline",
    type=click.IntRange(min=1),
    default=1,
    show_default=True,
    help="Requests in flight on each.",
)
@click.option("-n", "--requests", type=click.IntRange(min=1), help="Stop after so many.")
@click.option(
    "-d",
    "--duration",
    type=click.FloatRange(min=0, min_open=True),
    help="Stop after so many seconds (5, if there is no -n).",
)
@click.option(
    "--size", type=click.IntRange(min=0), default=64, show_default=True, help="Bytes in a request."
)
@click.option("--timeout", type=float, default=30.0, show_default=True, help="Seconds for a reply.")
@click.option(
    "--connect-timeout",
    type=float,
    default=5.0,
    show_default=True,
    help="Seconds for a connection.",
)
@key_options
@click.option("--json", "as_json", is_flag=True, help="Print the figures for machines.")
def bench(
    *,
    as_json: bool,
    server_key: str | None,
    key_file: Path | None,
    allow_group: bool,
    **options: Any,  # noqa: ANN401  # as above
) -> None:
    """Measure how fast ENDPOINT answers: throughput, latencies, and errors by kind."""
    load = Load(**options, curve=keys(server_key, key_file, allow_group=allow_group))
    finish(lambda: run_bench(load, as_json=as_json))


def keys(
    server_key: str | None, key_file: Path | None, *, allow_group: bool
) -> trioreq.CurveClient | None:
    """What the options say, or the program's end if they are wrong."""
    try:
        return curve_of(server_key, key_file, allow_group=allow_group)
    except trioreq.KeyFileError as error:
        tell(str(error))
        sys.exit(EXIT_CODES[trioreq.KeyFileError])
    except ValueError as error:
        raise click.UsageError(str(error)) from error


async def until_unread(main: Callable[[], Awaitable[int]]) -> int:
    """Run, but no longer than somebody reads the output, if it is a pipe."""
    result = BROKEN_PIPE
    async with trio.open_nursery() as nursery:

        async def watch() -> None:
            await trio.lowlevel.wait_readable(1)  # of a pipe's writing end: its reader has gone
            nursery.cancel_scope.cancel()

        if stat.S_ISFIFO(os.fstat(1).st_mode):
            nursery.start_soon(watch)
        result = await main()
        nursery.cancel_scope.cancel()
    return result


def finish(
    main: Callable[[], Awaitable[int]], interrupted: Callable[[], None] = lambda: None
) -> NoReturn:
    """Run, and leave with the right code; Ctrl-C and a broken pipe are no errors."""
    try:
        code = trio.run(until_unread, main)
    except BaseException as error:  # noqa: BLE001  # what is not known goes on
        code = code_of(first_cause(error), interrupted)
    if code == BROKEN_PIPE:  # the interpreter flushes once more at its end: into nothing
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    sys.exit(code)


def first_cause(error: BaseException) -> BaseException:
    """What is in the groups that nurseries make."""
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error


def code_of(error: BaseException, interrupted: Callable[[], None]) -> int:
    """Say what has happened; returns the exit code."""
    match error:
        case KeyboardInterrupt():
            interrupted()
            return INTERRUPTED
        case BrokenPipeError():
            return BROKEN_PIPE
        case trioreq.TrioreqError():
            tell(describe(error))
            return EXIT_CODES[type(error)]
        case ValueError():
            raise click.UsageError(str(error)) from error
        case _:
            raise error


def run() -> None:
    """The entry point."""
    commands(prog_name="trioreq-client")
