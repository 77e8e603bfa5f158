"""All benchmarks, as commands: `python -m benchmarks COMMAND --help`."""

from __future__ import annotations

import argparse
import importlib
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

from harness.compiler import NoCompiler
from harness.processes import ChildFailed

# Each command is a module of the sub-package, and only the one that runs is imported: some need
# packages that the others do without.
COMMANDS = {
    "throughput": "speed",
    "latency": "speed",
    "client": "speed",
    "costs": "speed",
    "cancel_latency": "speed",
    "client_cancel": "speed",
    "streams": "speed",
    "scale": "experiments",
    "memory": "experiments",
    "attribution": "experiments",
    "soak": "experiments",
    "pump": "experiments",
    "slow": "experiments",
    "rolling": "experiments",
    "crowd": "experiments",
    "dying": "experiments",
    "computing": "experiments",
    "workers": "experiments",
    "misbehaving": "experiments",
    "line": "experiments",
    "fuzz": "experiments",
    "endless": "experiments",
    "restarts": "experiments",
    "rpc": "experiments",
}


def summary(name: str) -> str:
    """The first line of the docstring of a command's module, which is not imported."""
    with (Path(__file__).parent / COMMANDS[name] / f"{name}.py").open() as source:
        return source.readline().strip('"\n')


def main(arguments: Sequence[str] | None = None) -> int:
    """Read the arguments (those of the process, unless given), and run a command."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks",
        description=__doc__,
        epilog="\n".join(f"    {name:16} {summary(name)}" for name in COMMANDS),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("command", choices=COMMANDS, metavar="COMMAND", help="one of those below")
    parser.add_argument("options", nargs=argparse.REMAINDER, metavar="...", help="its options")
    chosen = parser.parse_args(arguments)
    module = importlib.import_module(f".{COMMANDS[chosen.command]}.{chosen.command}", __package__)
    command = argparse.ArgumentParser(
        prog=f"{parser.prog} {chosen.command}",
        description=module.__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    module.add_arguments(command)
    options = command.parse_args(chosen.options)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that contexts end
    try:
        code: int = module.run(options)
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
