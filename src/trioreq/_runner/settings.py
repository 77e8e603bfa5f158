"""The settings of `trioreq-server`: one row each, of which all ways to give them are made.

The rows are the fields of two dataclasses: the `Options` of `serve`, and the `RunnerOptions` here.
A field has a type, a default, a unit and a help text. Its name is the name in the configuration
file; the flag and the variable of the environment are made of it. Pure.
"""

from __future__ import annotations

import dataclasses
import os
import tomllib
import types
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from .._checks import shown
from .._options import Options, option
from .._workers import ProcessWorkers, RayWorkers, ThreadWorkers

PREFIX = "TRIOREQ_"
NONE = "none"  # for what has no limit, where a value is a text
PROCESSES = "processes:"
TRUE, FALSE = ("1", "true", "yes", "on"), ("0", "false", "no", "off")
MADE = {"curve": ("curve_keys", "allow", "allow_group")}  # options that others are made into


class WrongSetting(Exception):
    """A setting that cannot be used; the text is a sentence for humans."""


@dataclass(frozen=True, slots=True)
class Reference:
    """The name of an object in a module, ``module:name``, until it is imported."""

    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class RunnerOptions:
    """The options of `trioreq-server` that are not those of `serve`."""

    bind: tuple[str, ...] = option(
        (), "ENDPOINT", "Address to serve, such as tcp://127.0.0.1:5555. May be given repeatedly."
    )
    forward: tuple[str, ...] = option(
        (),
        "ENDPOINT",
        "Address of a REP or ROUTER server that requests are forwarded to, instead of a HANDLER. "
        "May be given repeatedly.",
    )
    forward_in_flight: int = option(1, "N", "Requests that such a server may have at once.")
    forward_timeout: float | None = option(
        10.0, "SECONDS", "Time without any such server after which requests fail."
    )
    retries: int = option(
        0, "N", "How often a request is forwarded again when the connection to its server was lost."
    )
    factory: bool = option(False, "", "HANDLER is a function that returns the handler.")
    app_dir: Path = option(Path(), "PATH", "Directory that HANDLER is imported from.")
    grace: float = option(10.0, "SECONDS", "Time for requests in flight when the server ends.")
    processes: int = option(1, "N", "Processes that serve.")
    start_timeout: float = option(
        60.0, "SECONDS", "Time until a process serves, with `processes` above 1."
    )
    hang_timeout: float = option(
        10.0,
        "SECONDS",
        "Time after which a process that hangs is killed, with `processes` above 1.",
    )
    reload: bool = option(False, "", "Restart when a file in the directory changes.")
    log_format: Literal["auto", "text", "json"] = option(
        "auto", "", "How the log is written; auto is text on a terminal, and JSON elsewhere."
    )
    log_level: Literal["debug", "info", "warning", "error"] = option(
        "info", "", "The least level that is logged."
    )
    access_log: bool = option(False, "", "Log a line for each request.")
    pid_file: Path | None = option(None, "PATH", "File for the number of the (first) process.")
    curve_keys: Path | None = option(
        None, "PATH", "File with the server's secret key, NAME.key_secret; encrypts with CURVE."
    )
    allow: Path | None = option(
        None, "PATH", "Directory with the public keys of clients, USER.key."
    )
    allow_group: bool = option(False, "", "The group of `curve_keys` may read it.")


@dataclass(frozen=True, slots=True)
class Setting:
    """One row.

    Attributes:
        name: Its name, in the configuration file and in Python.
        kinds: What a value may be, besides None.
        default: The value if none is given.
        unit: What a value is.
        text: What it means.
        optional: Whether a value may be None.
    """

    name: str
    kinds: tuple[Any, ...]
    default: Any
    unit: str
    text: str
    optional: bool

    @property
    def flag(self) -> str:
        """Its name on the command line."""
        return "--" + self.name.replace("_", "-")

    @property
    def variable(self) -> str:
        """Its name in the environment."""
        return PREFIX + self.name.upper()

    @property
    def is_flag(self) -> bool:
        """Whether it is either on or off."""
        return self.kinds == (bool,)

    @property
    def is_list(self) -> bool:
        """Whether it may be given repeatedly."""
        return get_origin(self.kinds[0]) is tuple

    @property
    def choices(self) -> tuple[str, ...]:
        """The values there are; empty if they cannot be listed."""
        kind = self.kinds[0]
        return get_args(kind) if get_origin(kind) is Literal else ()

    def parse(self, value: object) -> Any:  # noqa: ANN401  # of one of its kinds
        """Read a value, from a text or as a configuration file has it.

        Raises:
            WrongSetting: It is not one.
        """
        if self.is_list:
            many = [value] if isinstance(value, str) else value
            if isinstance(many, list | tuple) and all(map(_is_text, many)):
                return tuple(many)
            raise self._wrong(value, "a text, or a list of texts")
        if self.optional and value in (None, NONE):
            return None
        for kind in self.kinds:
            parser, expected = self._parser(kind)
            try:
                return parser(value)
            except (ValueError, TypeError, OverflowError):  # too large for a float
                continue
        raise self._wrong(value, expected)

    def _wrong(self, value: object, expected: str) -> WrongSetting:
        none = f", or {NONE!r}" if self.optional else ""
        return WrongSetting(f"{self.name} must be {expected}{none}, got {shown(value)}")

    def _parser(self, kind: Any) -> tuple[Callable[[object], object], str]:  # noqa: ANN401
        if self.choices:
            return _choice(self.choices), f"one of {', '.join(self.choices)}"
        if get_origin(kind) is not None:  # a Callable
            return _reference, "MODULE:NAME"
        return PARSERS[kind]


def _choice(choices: tuple[str, ...]) -> Callable[[object], object]:
    """A parser of one of some texts."""

    def parse(value: object) -> object:
        if value not in choices:
            raise ValueError
        return value

    return parse


def _is_text(value: object) -> bool:
    """Whether it is a text without a zero, which would end it for the system."""
    return isinstance(value, str) and "\0" not in value


def _int(value: object) -> int:
    if isinstance(value, bool) or not isinstance(value, int | str):
        raise TypeError
    return int(value)


def _float(value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        raise TypeError
    return float(value)


def _bool(value: object) -> bool:
    if isinstance(value, bool):
        return value
    if isinstance(value, str) and value.lower() in TRUE + FALSE:
        return value.lower() in TRUE
    raise ValueError


def _path(value: object) -> Path:
    if not isinstance(value, str | os.PathLike):
        raise TypeError
    if not _is_text(os.fspath(value)):
        raise ValueError
    return Path(value)


def _reference(value: object) -> Reference:
    if isinstance(value, Reference):
        return value
    if not isinstance(value, str):
        raise TypeError
    module, colon, name = value.partition(":")
    if not (module and colon and name):
        raise ValueError
    return Reference(value)


def _workers(value: object) -> ProcessWorkers | Reference:
    if isinstance(value, str) and value.startswith(PROCESSES):
        return ProcessWorkers(int(value.removeprefix(PROCESSES)))
    return _reference(value)


WORKERS = _workers, f"a number, {PROCESSES}N, or MODULE:NAME"
PARSERS: dict[Any, tuple[Callable[[object], object], str]] = {
    bool: (_bool, "true or false"),
    int: (_int, "a whole number"),
    float: (_float, "a number"),
    Path: (_path, "a path"),
    ThreadWorkers: WORKERS,
    ProcessWorkers: WORKERS,
    RayWorkers: WORKERS,
}


def settings_of(options: type) -> list[Setting]:
    """The rows of a dataclass, but those that are made of others.

    Raises:
        TypeError: A row has no help text, or a type of which no value can be written.
    """
    hints = get_type_hints(options)
    rows = []
    for field in dataclasses.fields(options):
        if field.name in MADE:
            continue
        hint = hints[field.name]
        parts = get_args(hint) if get_origin(hint) in (Union, types.UnionType) else (hint,)
        kinds = tuple(part for part in parts if part is not types.NoneType)
        known = all(kind in PARSERS or get_origin(kind) is not None for kind in kinds)
        if "help" not in field.metadata or not known:
            raise TypeError(
                f"{options.__name__}.{field.name} must be made with option(default, unit, text), "
                f"and of a known type, got {hint}"
            )
        unit, text = field.metadata["unit"], field.metadata["help"]
        optional = types.NoneType in parts
        rows.append(Setting(field.name, kinds, field.default, unit, text, optional))
    return rows


SETTINGS = {one.name: one for one in [*settings_of(RunnerOptions), *settings_of(Options)]}


def read_config(path: Path, names: Iterable[str]) -> Mapping[str, object]:
    """Read a configuration file, which is TOML.

    Args:
        path: The file.
        names: What there may be in it.

    Raises:
        WrongSetting: It cannot be read, or has another name.
    """
    try:
        found = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise WrongSetting(f"cannot read {str(path)!r}: {error.strerror}") from None
    except ValueError as error:  # of TOML, or of UTF-8
        raise WrongSetting(f"{str(path)!r} is not TOML: {error}") from None
    for name in found:
        if name not in names:
            raise WrongSetting(f"{str(path)!r}: there is no option {name!r}")
    return found
