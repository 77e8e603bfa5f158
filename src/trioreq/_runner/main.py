"""From settings to a server: what is loaded in which process, and which opens the sockets."""

from __future__ import annotations

import socket
import sys
from collections.abc import Mapping, Sequence
from dataclasses import fields
from importlib.util import find_spec
from typing import Any

import trio

from .._checks import check_count, check_duration, check_seconds
from .._log import log
from .._transport import endpoints
from .._transport.listeners import open_listeners
from .app import load_app
from .control import read_assignment
from .logs import set_up
from .pid_file import check_pid_file
from .process import HEARTBEAT, serve_alone, serve_supervised
from .settings import RunnerOptions, WrongSetting
from .signals import Signals
from .supervisor import StartFailed, Supervisor
from .systemd import Notifier, passed_sockets

LEAST_HANG = 2 * HEARTBEAT  # seconds; a healthy process may be a little late


def run(handler: str, values: Mapping[str, Any], arguments: Sequence[str], *, check: bool) -> int:
    """Run `trioreq-server`.

    Args:
        handler: ``module:name``.
        values: By the names of settings.
        arguments: Those of the command line, with which further processes are started.
        check: Whether to load everything, and not to serve.

    Returns:
        The exit code.

    Raises:
        WrongSetting: Something is not there, or cannot be used.
    """
    runner = RunnerOptions(**{field.name: values[field.name] for field in fields(RunnerOptions)})
    if not (handler or runner.forward):
        raise WrongSetting("there is no HANDLER: give MODULE:NAME, such as server:handler")
    check_runner(runner)
    signals = Signals()
    try:
        return _serve(handler, values, arguments, runner, signals, check=check)
    finally:
        signals.restore()


def _serve(
    handler: str,
    values: Mapping[str, Any],
    arguments: Sequence[str],
    runner: RunnerOptions,
    signals: Signals,
    *,
    check: bool,
) -> int:
    assignment = read_assignment()
    set_up(runner, None if assignment is None else assignment.place)
    if assignment is not None:
        app = load_app(handler, values, runner)
        return trio.run(serve_supervised, app, runner, assignment, signals)
    check_pid_file(runner.pid_file)
    notifier = Notifier()
    passed = passed_sockets()
    bound = {endpoints.bound(endpoints.of_socket(one)) for one in passed}
    addresses = [one for one in runner.bind if one not in bound]
    if not (addresses or passed):
        raise WrongSetting(
            "there is no address: give --bind ENDPOINT, such as tcp://127.0.0.1:5555"
        )
    if check:
        load_app(handler, values, runner)
        for address in addresses:
            if address != endpoints.ANY_IPC:
                endpoints.check(address)
        what = handler or ", ".join(runner.forward)
        print(f"{what} is configured for {', '.join([*bound, *addresses])}")  # noqa: T201
        return 0
    if runner.forward or (runner.processes == 1 and not runner.reload):
        app = load_app(handler, values, runner)
        served: list[str | socket.socket] = [*passed, *addresses]
        return trio.run(serve_alone, app, runner, served, notifier, signals)
    if runner.reload and find_spec("watchfiles") is None:
        raise WrongSetting("reload needs watchfiles: pip install 'trioreq[reload]'")
    if sys.platform != "linux":
        raise WrongSetting("processes above 1 and reload need Linux")
    signals.hold()  # files of sockets are to be removed
    with open_listeners(addresses, passed, runner.processes) as listeners:
        supervisor = Supervisor(runner, arguments, listeners, notifier, signals)
        try:
            return trio.run(supervisor.run)
        except StartFailed as error:
            if error.code > 0:  # the process has logged why
                return error.code
            log.error("the first process cannot be started: %s", error)  # noqa: TRY400
            return 1


def check_runner(runner: RunnerOptions) -> None:
    """Refuse values that are out of their range.

    Raises:
        WrongSetting: One is.
    """
    try:
        check_count("processes", runner.processes, 1)
        check_duration("grace", runner.grace)
        check_seconds("start_timeout", runner.start_timeout)
        check_seconds("hang_timeout", runner.hang_timeout)
    except (TypeError, ValueError) as error:
        raise WrongSetting(str(error)) from error
    if runner.hang_timeout < LEAST_HANG:
        raise WrongSetting(
            f"hang_timeout must be at least {LEAST_HANG:g} second, since processes give a sign of "
            f"life every {HEARTBEAT:g} seconds, got {runner.hang_timeout:g}"
        )
