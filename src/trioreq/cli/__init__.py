"""The command line: `trioreq-client`, `trioreq-keygen` and `trioreq-server`.

The first two use only the public API. What the third runs is in `_runner`.
"""

from __future__ import annotations

from ._client import commands
from ._keygen import make
from ._program import run_program
from ._server import serve


def main() -> None:
    """Run `trioreq-client`."""
    run_program("trioreq-client", commands)


def keygen() -> None:
    """Run `trioreq-keygen`."""
    run_program("trioreq-keygen", make)


def server() -> None:
    """Run `trioreq-server`."""
    run_program("trioreq-server", serve)
