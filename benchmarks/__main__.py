"""All benchmarks, as commands: `python -m benchmarks COMMAND --help`."""

from __future__ import annotations

import argparse
import importlib
import signal
import sys
from collections.abc import Sequence
from types import ModuleType

from harness.compiler import NoCompiler
from harness.processes import ChildFailed

COMMANDS: tuple[str, ...] = (
    "throughput",
    "latency",
    "scale",
    "memory",
    "client",
    "costs",
    "cancel_latency",
    "client_cancel",
    "attribution",
    "soak",
    "pump",
    "slow",
    "crowd",
    "misbehaving",
    "line",
)


def summary(module: ModuleType) -> str:
    """The first line of a module's docstring."""
    return (module.__doc__ or "").partition("\n")[0]


def main(arguments: Sequence[str] | None = None) -> int:
    """Read the arguments (those of the process, unless given), and run a command."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    for name in COMMANDS:
        module = importlib.import_module(f".{name}", __package__)
        command = commands.add_parser(
            name,
            help=summary(module),
            description=module.__doc__,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        module.add_arguments(command)
        command.set_defaults(run=module.run)
    options = parser.parse_args(arguments)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that contexts end
    try:
        code: int = options.run(options)
    except (ChildFailed, NoCompiler) as error:
        print(f"benchmarks: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    except BaseExceptionGroup as group:
        if group.subgroup(KeyboardInterrupt) is None:
            raise
        return 130
    return code


if __name__ == "__main__":
    sys.exit(main())
