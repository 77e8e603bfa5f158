"""The command line: `trioreq-client` and `trioreq-keygen`. They call the public API alone."""

from __future__ import annotations

import sys


def main() -> None:
    """Run `trioreq-client`."""
    _need_extra("trioreq-client")
    from ._client import run

    run()


def keygen() -> None:
    """Run `trioreq-keygen`."""
    _need_extra("trioreq-keygen")
    from ._keygen import run

    run()


def _need_extra(program: str) -> None:
    try:
        import click  # noqa: F401
        import rich  # noqa: F401
    except ImportError:
        sys.exit(f"{program} needs its extra: pip install 'trioreq[cli]'")
