"""The entry points of `trioreq-client`, `trioreq-keygen` and `trioreq-server`.

They are not in the package, because importing it takes most of the time before a program starts its
work. Ctrl-C during the import exits without a traceback.
"""

from __future__ import annotations

import os
import signal
from importlib import import_module


def client() -> None:
    """Run `trioreq-client`."""
    _run("main")


def keygen() -> None:
    """Run `trioreq-keygen`."""
    _run("keygen")


def server() -> None:
    """Run `trioreq-server`. SIGHUP and SIGUSR1 during the import have no effect."""
    for number in (signal.SIGHUP, signal.SIGUSR1):
        signal.signal(number, signal.SIG_IGN)
    _run("server")


def _run(program: str) -> None:
    before = signal.getsignal(signal.SIGINT)
    if before is signal.default_int_handler:  # it is ignored in a background job
        # A KeyboardInterrupt can be lost in an import, and there is nothing to clean up yet.
        signal.signal(signal.SIGINT, lambda *_: os._exit(128 + signal.SIGINT))
    cli = import_module("trioreq.cli")
    signal.signal(signal.SIGINT, before)
    getattr(cli, program)()


if __name__ == "__main__":  # a further process of a server
    server()
