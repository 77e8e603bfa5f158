"""`trioreq-client`: parses the arguments and calls the API."""

from __future__ import annotations

import math
from functools import partial
from pathlib import Path
from typing import Any

import click
from click.shell_completion import CompletionItem

import trioreq

from ._ask import Ask, read_file
from ._bench import Load, run_bench
from ._keys import curve_of, key_options
from ._program import Work
from ._streams import MAX_REQUEST

EXITS = """\b
Exit codes:
  0    the server replied
  1    the server answered with an error
  2    wrong usage, an invalid address, or a file or standard input that
       cannot be read; nothing was sent
  3    the request timed out
  4    no connection
  5    the connection was lost: whether the request was done is unknown
  6    the reply is malformed
  7    the server refuses this client
  8    the output could not be written
  70   an unexpected error; standard error has a traceback
  130  Ctrl-C
  141  standard output is closed by its reader
"""


class Seconds(click.FloatRange):
    """A time that a timer can have."""

    name = "seconds"

    def convert(
        self,
        value: Any,  # noqa: ANN401  # as in click
        param: click.Parameter | None,
        ctx: click.Context | None,
    ) -> float:
        """Refuse nan too, which click's range accepts."""
        seconds = float(super().convert(value, param, ctx))
        if math.isnan(seconds):
            self.fail(f"{value} is not a number of seconds", param, ctx)
        return seconds


TIME = Seconds(min=0, max=2_000_000, min_open=True)  # libzmq's times are ints, in milliseconds


class Commands(click.Group):
    """The commands. The name of `request` may be omitted."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Insert the omitted name."""
        if args and args[0] not in self.commands and args[0] not in ("--help", "--version"):
            args = ["request", *args]
        return super().parse_args(ctx, args)

    def shell_complete(self, ctx: click.Context, incomplete: str) -> list[CompletionItem]:
        """Complete commands, and the options of a request."""
        options = request.shell_complete(click.Context(request, parent=ctx), incomplete)
        return [*super().shell_complete(ctx, incomplete), *options]


file_option = click.option(
    "--file",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="Read the request from a file.",
)


@click.group(
    cls=Commands,
    epilog=EXITS,
    context_settings={"max_content_width": 100},
    options_metavar="",
    subcommand_metavar="[request] [OPTIONS] ENDPOINT [BODY]... | bench [OPTIONS] ENDPOINT",
)
@click.version_option(trioreq.__version__, prog_name="trioreq-client")
def commands() -> None:
    """Send requests to a ZeroMQ server: trioreq, or any REP or ROUTER.

    \b
    trioreq-client tcp://127.0.0.1:5555 hello
    trioreq-client request --help      all options of a request
    trioreq-client bench --help        measure a server
    """  # noqa: D301  # to click \b means: do not wrap


@commands.command(epilog=EXITS)
@click.argument("endpoint")
@click.argument("body", nargs=-1)
@file_option
@click.option("--multipart", is_flag=True, help="End each frame of the reply with a newline.")
@click.option("--hex", "as_hex", is_flag=True, help="Show the reply as a hex dump.")
@click.option("--json", "as_json", is_flag=True, help="Show the reply indented, if it is JSON.")
@click.option("--timeout", type=TIME, default=30.0, show_default=True, help="Seconds for a reply.")
@click.option(
    "--connect-timeout",
    type=TIME,
    default=5.0,
    show_default=True,
    help="Seconds for a connection.",
)
@click.option(
    "--retries",
    type=click.IntRange(min=0, max=2**31 - 1),
    default=0,
    show_default=True,
    help="Retries after a lost connection; the work may be done twice.",
)
@click.option(
    "--stream",
    is_flag=True,
    help="Print each reply of a stream as it comes; --timeout is for each.",
)
@click.option(
    "--repeat",
    type=click.IntRange(min=0),
    metavar="N",
    help="Send N requests, and show the times, as ping does; 0 is until Ctrl-C.",
)
@click.option(
    "--interval",
    type=Seconds(min=0),
    default=1.0,
    show_default=True,
    help="Seconds between repeated requests.",
)
@key_options
@click.option("-v", "--verbose", is_flag=True, help="Show how long each step took.")
def request(
    *,
    server_key: str | None,
    key_file: Path | None,
    allow_group: bool,
    **options: Any,  # noqa: ANN401  # those of `Ask`
) -> Work:
    """Send a request to ENDPOINT and print the reply.

    Each BODY is a frame. Without one, or with -, standard input is the request. The reply is
    written unchanged; on a terminal it is made readable. Each of several frames is a line.
    """
    ask = Ask(**options, curve=keys(server_key, key_file, allow_group=allow_group))
    ask.check()
    return ask.run


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
@click.option(
    "-n", "--requests", type=click.IntRange(min=1), help="Stop after this number of requests."
)
@click.option(
    "-d",
    "--duration",
    type=TIME,
    help="Stop after this many seconds (5, without -n).",
)
@click.option(
    "--size",
    type=click.IntRange(0, MAX_REQUEST),
    default=64,
    show_default=True,
    help="Bytes in a request, without --file.",
)
@file_option
@click.option("--timeout", type=TIME, default=30.0, show_default=True, help="Seconds for a reply.")
@click.option(
    "--connect-timeout",
    type=TIME,
    default=5.0,
    show_default=True,
    help="Seconds for a connection.",
)
@key_options
@click.option("--json", "as_json", is_flag=True, help="Print the figures as JSON.")
def bench(
    *,
    size: int,
    file: Path | None,
    as_json: bool,
    server_key: str | None,
    key_file: Path | None,
    allow_group: bool,
    **options: Any,  # noqa: ANN401  # those of `Load`
) -> Work:
    """Measure how fast ENDPOINT answers: throughput, latencies, and errors by kind."""
    body = b"x" * size if file is None else read_file(file)
    load = Load(**options, body=body, curve=keys(server_key, key_file, allow_group=allow_group))
    return partial(run_bench, load, as_json=as_json)


def keys(
    server_key: str | None, key_file: Path | None, *, allow_group: bool
) -> trioreq.CurveClient | None:
    """The keys that the options name.

    Raises:
        KeyFileError: A file cannot be used.
        click.UsageError: The options are wrong.
    """
    try:
        return curve_of(server_key, key_file, allow_group=allow_group)
    except ValueError as error:
        raise click.UsageError(str(error)) from error
