"""`trioreq-server`: settings in, of which each has a flag, a variable and a name in a file."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import click

import trioreq

from .._runner import main as runner
from .._runner.settings import SETTINGS, Setting, WrongSetting, read_config
from ._program import Work

EXITS = """\b
Exit codes:
  0    the server was drained, or --check has found nothing wrong
  1    it could not serve any more
  2    wrong usage, or an address, a module or a file that cannot be used
  70   an unexpected error; standard error has a traceback
  130  a second Ctrl-C stopped it before it was drained
  143  a second SIGTERM did
"""
ARGUMENT = "handler"


class Value(click.ParamType[Any]):
    """A value of a setting."""

    def __init__(self, setting: Setting) -> None:
        self.name = setting.unit.lower() or "|".join(setting.choices)
        self._setting = setting

    def convert(
        self,
        value: Any,  # noqa: ANN401  # as click has it
        param: click.Parameter | None,
        ctx: click.Context | None,
    ) -> Any:  # noqa: ANN401
        """Read it."""
        try:
            parsed = self._setting.parse(value)
        except WrongSetting as error:
            self.fail(str(error), param, ctx)
        return parsed[0] if self._setting.is_list and isinstance(value, str) else parsed


def option_of(setting: Setting) -> click.Option:
    """The option of a setting."""
    flag = setting.flag
    if setting.is_flag:
        return click.Option(
            [f"{flag}/--no-{flag[2:]}"],
            default=setting.default,
            envvar=setting.variable,
            help=setting.text,
        )
    shown: Any = setting.default
    if setting.is_list or setting.default is None:
        shown = False
    return click.Option(
        [flag],
        type=Value(setting),
        metavar=setting.unit or "|".join(setting.choices),
        default=None if setting.is_list else setting.default,
        multiple=setting.is_list,
        envvar=setting.variable,
        help=setting.text,
        show_default=bool(shown),
    )


def read_file(ctx: click.Context, _: click.Parameter, path: Path | None) -> None:
    """Let a configuration file give what neither a flag nor the environment does."""
    if path is None:
        return
    try:
        found = read_config(path, {*SETTINGS, ARGUMENT})
        for name, value in found.items():
            if name in SETTINGS:
                SETTINGS[name].parse(value)  # as a file has it: click makes texts of some
    except WrongSetting as error:
        raise click.UsageError(str(error)) from error
    ctx.default_map = {name: _as_click_has_it(name, value) for name, value in found.items()}


def _as_click_has_it(name: str, value: object) -> object:
    is_list = name in SETTINGS and SETTINGS[name].is_list
    return [value] if is_list and isinstance(value, str) else value


def work(handler: str | None, check: bool, **values: Any) -> Work:  # noqa: ANN401
    """What is done when all settings are known."""
    return partial(run, handler, values, check=check)


def run(handler: str | None, values: Mapping[str, Any], *, check: bool) -> int:
    """Serve, or check only; returns the exit code."""
    try:
        return runner.run(handler or "", values, sys.argv[1:], check=check)
    except WrongSetting as error:
        raise click.ClickException(str(error)) from error


serve = click.Command(
    "trioreq-server",
    callback=work,
    epilog=EXITS,
    help="""Serve HANDLER, which is MODULE:NAME, over ZeroMQ.

    \b
    trioreq-server server:handler --bind tcp://127.0.0.1:5555
    trioreq-server --forward tcp://127.0.0.1:5556 --bind tcp://127.0.0.1:5555

    SIGTERM and Ctrl-C let the requests in flight end, and a second one stops the server at once.
    SIGHUP reads the keys again, and replaces the processes one after the other. SIGUSR1 logs the
    statistics.

    Each option can be in the environment too, as TRIOREQ_MAX_IN_FLIGHT is for --max-in-flight, and
    in the file of --config, as max_in_flight. A flag comes before the environment, and that before
    the file.
    """,
    params=[
        click.Argument([ARGUMENT], required=False, envvar="TRIOREQ_HANDLER"),
        click.Option(
            ["--config"],
            type=click.Path(dir_okay=False, path_type=Path),
            envvar="TRIOREQ_CONFIG",
            is_eager=True,
            expose_value=False,
            callback=read_file,
            help="File with options, in TOML.",
        ),
        click.Option(["--check"], is_flag=True, help="Load everything, and end without serving."),
        *map(option_of, SETTINGS.values()),
    ],
)
serve = click.version_option(trioreq.__version__, prog_name="trioreq-server")(serve)
