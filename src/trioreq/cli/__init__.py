"""The command line: `trioreq-client`. It calls the public API and nothing else."""

from __future__ import annotations

import sys


def main() -> None:
    """Run `trioreq-client`."""
    try:
        import click  # noqa: F401
        import rich  # noqa: F401
    except ImportError:
        sys.exit("trioreq-client needs its extra: pip install 'trioreq[cli]'")
    from ._client import run

    run()
