"""What is served, made of the settings: the handler, the options of `serve`, and addresses."""

from __future__ import annotations

import importlib
import inspect
import sys
import traceback
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from .._errors import KeyFileError
from .._gateway.open_gateway import check_workers, open_gateway
from .._options import Options
from .._server.handlers import Handler, check_handler, close_unawaited
from .._transport.curve import CurveServer
from .._transport.curve_keys import KeyPair
from .._workers import KillableWorkers, check_plain
from .settings import MADE, Reference, RunnerOptions, WrongSetting


@dataclass(frozen=True, slots=True)
class App:
    """What a process serves.

    Attributes:
        handler: None if requests are forwarded.
        options: The options of `serve`.
    """

    handler: Handler | None
    options: Options

    @asynccontextmanager
    async def opened(self, runner: RunnerOptions) -> AsyncIterator[Handler]:
        """The handler, for as long as it is served."""
        if self.handler is not None:
            yield self.handler
            return
        async with open_gateway(
            runner.forward,
            in_flight=runner.forward_in_flight,
            retries=runner.retries,
            connect_timeout=runner.forward_timeout,
            heartbeat=self.options.heartbeat,
            max_message_size=self.options.max_message_size,
        ) as gateway:
            yield gateway


def load_app(handler: str, values: Mapping[str, Any], runner: RunnerOptions) -> App:
    """Import the handler, and read the keys.

    Args:
        handler: ``module:name``; empty if requests are forwarded.
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
        if runner.forward:
            check_forward(handler, runner)
            return App(None, options)
        loaded = load_handler(handler, factory=runner.factory)
        if isinstance(options.workers, KillableWorkers):
            check_plain(loaded, options.workers)
    except (TypeError, ValueError, KeyFileError) as error:
        raise WrongSetting(str(error)) from error
    return App(loaded, options)


def check_forward(handler: str, runner: RunnerOptions) -> None:
    """Check the settings of a server that forwards requests.

    Raises:
        EndpointError: An address cannot be connected to.
        ValueError: A setting is out of its range.
        WrongSetting: A setting cannot be combined with `forward`.
    """
    for name, given in (
        ("HANDLER", handler),
        ("processes above 1", runner.processes > 1),
        ("reload", runner.reload),
    ):
        if given:
            raise WrongSetting(f"{name} and forward cannot be combined: choose one")
    check_workers(
        runner.forward,
        runner.forward_in_flight,
        runner.retries,
        runner.forward_timeout,
        ("forward", "forward_in_flight", "retries", "forward_timeout"),
    )


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
