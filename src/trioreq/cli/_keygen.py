"""`trioreq-keygen`: a pair of keys, in two files."""

from __future__ import annotations

import sys
from pathlib import Path

import click

import trioreq


@click.command()
@click.argument("name", type=click.Path(path_type=Path))
@click.version_option(trioreq.__version__, prog_name="trioreq-keygen")
def make(name: Path) -> None:
    r"""Make a pair of CURVE keys: NAME.key and NAME.key_secret.

    The first may go round; the second only its owner may read. Neither is overwritten. The
    public key is printed.

    \b
    trioreq-keygen server                for a server
    trioreq-keygen alice                 for a client; then alice.key goes to the server
    """
    keys = trioreq.KeyPair.generate()
    try:
        keys.save(name)
    except trioreq.KeyFileError as error:
        click.echo(f"trioreq-keygen: {error}", err=True)
        sys.exit(2)
    click.echo(keys.public)


def run() -> None:
    """The entry point."""
    make(prog_name="trioreq-keygen")
