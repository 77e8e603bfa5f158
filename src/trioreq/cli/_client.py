"""`trioreq-client`: arguments in, the API called, an exit code out."""

from __future__ import annotations

import math
from functools import partial
from pathlib import Path
from typing import Any

import click
from click.shell_completion import CompletionItem

import trioreq

from ._ask import Ask
from ._bench import Load, run_bench
from ._keys import curve_of, key_options
from ._program import Work
from ._streams import MAX_REQUEST

EXITS = """\b
Exit codes:
  0    a reply came
  1    the server answered with an error
  2    wrong usage, an address that is none, or a file or standard input that
       cannot be read; nothing was sent
  3    the time was up
  4    no connection
  5    the connection broke: whether the request was done is unknown
  6    the reply is not understood
  7    the server does not let this client in
  8    the output could not be written
  70   an unexpected error; standard error has a traceback
  130  Ctrl-C
  141  whoever read the output has gone
"""


class Seconds(click.FloatRange):
    """A time that a timer can have."""

    name = "seconds"

    def convert(
        self,
        value: Any,  # noqa: ANN401  # as click has it
        param: click.Parameter | None,
        ctx: click.Context | None,
    ) -> float:
        """Refuse nan too, which is in no range and outside of none."""
        seconds = float(super().convert(value, param, ctx))
        if math.isnan(seconds):
            self.fail(f"{value} is not a number of seconds", param, ctx)
        return seconds


TIME = Seconds(min=0, max=2_000_000, min_open=True)  # libzmq's times are ints, in milliseconds


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
    """Ask a ZeroMQ request/reply server: trioreq's, or any REP or ROUTER.

    \b
    trioreq-client tcp://127.0.0.1:5555 hello
    trioreq-client request --help      all options of a request
    trioreq-client bench --help        measure a server
    """  # noqa: D301  # click takes the character \b for: keep these lines


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
    help="Ask again if the connection breaks; the work may be done twice.",
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
    help="Ask N times, and show the times, as ping does; 0 is until Ctrl-C.",
)
@click.option(
    "--interval",
    type=Seconds(min=0),
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
) -> Work:
    """Send a request to ENDPOINT and print the reply.

    Each BODY is a frame. Without one, or with -, standard input is the request. A reply is
    written as it came; on a terminal it is made readable. Of several frames each is a line.
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
@click.option("-n", "--requests", type=click.IntRange(min=1), help="Stop after so many.")
@click.option(
    "-d",
    "--duration",
    type=TIME,
    help="Stop after so many seconds (5, if there is no -n).",
)
@click.option(
    "--size",
    type=click.IntRange(0, MAX_REQUEST),
    default=64,
    show_default=True,
    help="Bytes in a request.",
)
@click.option("--timeout", type=TIME, default=30.0, show_default=True, help="Seconds for a reply.")
@click.option(
    "--connect-timeout",
    type=TIME,
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
) -> Work:
    """Measure how fast ENDPOINT answers: throughput, latencies, and errors by kind."""
    load = Load(**options, curve=keys(server_key, key_file, allow_group=allow_group))
    return partial(run_bench, load, as_json=as_json)


def keys(
    server_key: str | None, key_file: Path | None, *, allow_group: bool
) -> trioreq.CurveClient | None:
    """What the options say.

    Raises:
        KeyFileError: A file cannot be used.
        click.UsageError: The options are wrong.
    """
    try:
        return curve_of(server_key, key_file, allow_group=allow_group)
    except ValueError as error:
        raise click.UsageError(str(error)) from error
