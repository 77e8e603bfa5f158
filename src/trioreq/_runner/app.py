"""What is served, made of the settings: the handler, the options of `serve`, and addresses."""

from __future__ import annotations

import importlib
import inspect
import sys
import traceback
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from .._errors import KeyFileError
from .._options import Options
from .._server.handlers import Handler, check_handler, close_unawaited
from .._transport.curve import CurveServer
from .._transport.curve_keys import KeyPair
from .._workers import KillableWorkers, check_plain
from .settings import MADE, Reference, RunnerOptions, WrongSetting


@dataclass(frozen=True, slots=True)
class App:
    """What a process serves."""

    handler: Handler
    options: Options


def load_app(handler: str, values: Mapping[str, Any], runner: RunnerOptions) -> App:
    """Import the handler, and read the keys.

    Args:
        handler: ``module:name``.
        values: By the names of settings.
        runner: The settings that are not options of `serve`.

    Raises:
        WrongSetting: Something is not there, or cannot be used.
    """
    directory = str(runner.app_dir.absolute())
    if directory not in sys.path:
        sys.path.insert(0, directory)
    made: dict[str, Any] = {
        field.name: _imported(field.name, values[field.name])
        for field in fields(Options)
        if field.name not in MADE
    }
    try:
        options = Options(**made, curve=load_curve(runner))
        app = App(load_handler(handler, factory=runner.factory), options)
        if isinstance(options.workers, KillableWorkers):
            check_plain(app.handler, options.workers)
    except (TypeError, ValueError, KeyFileError) as error:
        raise WrongSetting(str(error)) from error
    return app


def load_handler(text: str, *, factory: bool) -> Handler:
    """Import the handler.

    Raises:
        WrongSetting: It is not there.
        TypeError: It is not a handler.
    """
    found = load(text, "HANDLER")
    if factory:
        if not callable(found):
            raise WrongSetting(f"{text} must be a function that returns the handler, got {found!r}")
        try:
            found = found()
        except Exception as error:
            raise WrongSetting(f"{text}() raised {_describe(error)}") from error
        if inspect.isawaitable(found):
            close_unawaited(found)
            raise WrongSetting(f"{text} must be a plain function with --factory: write def")
    check_handler(found)
    handler: Handler = found
    return handler


def load_curve(runner: RunnerOptions) -> CurveServer | None:
    """Read the server's keys, and the allow-list.

    Raises:
        KeyFileError: A file cannot be used.
    """
    if runner.curve_keys is None:
        for name in ("allow", "allow_group"):
            if getattr(runner, name):
                raise WrongSetting(
                    f"{name} needs curve_keys: the file with the server's secret key"
                )
        return None
    return CurveServer(load_keys(runner), runner.allow)


def load_keys(runner: RunnerOptions) -> KeyPair:
    """Read the server's keys, of which there must be a file.

    Raises:
        KeyFileError: It cannot be used.
    """
    assert runner.curve_keys is not None  # noqa: S101  # for mypy
    return KeyPair.load(runner.curve_keys, allow_group=runner.allow_group)


def _imported(name: str, value: object) -> object:
    return load(value.text, name) if isinstance(value, Reference) else value


def load(text: str, what: str) -> Any:  # noqa: ANN401  # whatever it is
    """Import ``module:name``, where the name may have dots.

    Raises:
        WrongSetting: There is no such thing, or importing it fails.
    """
    module, colon, name = text.partition(":")
    if not (module and colon and name):
        raise WrongSetting(f"{what} must be MODULE:NAME, such as server:handler, got {text!r}")
    try:
        found: Any = importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name is not None and (module + ".").startswith(error.name + "."):
            raise WrongSetting(
                f"there is no module {error.name!r} in {sys.path[0]} or on Python's path: see "
                "--app-dir"
            ) from None
        raise WrongSetting(f"importing {module} raised {_describe(error)}") from error
    except Exception as error:
        raise WrongSetting(f"importing {module} raised {_describe(error)}") from error
    for part in name.split("."):
        try:
            found = getattr(found, part)
        except AttributeError:
            raise WrongSetting(f"module {module!r} has no {name!r}") from None
    return found


def _describe(error: Exception) -> str:
    """An exception in one line, with the place that has raised it."""
    if isinstance(error, SyntaxError):
        return f"SyntaxError: {error}"
    frames = traceback.extract_tb(error.__traceback__)
    inner = [frame for frame in frames if "importlib" not in frame.filename]
    where = f" ({Path(inner[-1].filename).name}, line {inner[-1].lineno})" if inner else ""
    return f"{type(error).__name__}: {error}{where}"
