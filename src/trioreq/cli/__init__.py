"""The command line: `trioreq-client` and `trioreq-keygen`. They use only the public API."""

from __future__ import annotations

from ._client import commands
from ._keygen import make
from ._program import run_program


def main() -> None:
    """Run `trioreq-client`."""
    run_program("trioreq-client", commands)


def keygen() -> None:
    """Run `trioreq-keygen`."""
    run_program("trioreq-keygen", make)
