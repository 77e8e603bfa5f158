"""`trioreq-keygen`: a pair of keys, in two files."""

from __future__ import annotations

from functools import partial

import click

import trioreq

from ._program import Work

EXITS = """\b
Exit codes:
  0    the keys are made
  2    wrong usage, or a file that cannot be written or already exists
  8    the public key could not be printed; the keys are made
  70   an unexpected error; standard error has a traceback
  130  Ctrl-C
  141  standard output is closed by its reader
"""


@click.command(epilog=EXITS)
@click.argument("name", type=click.Path())
@click.version_option(trioreq.__version__, prog_name="trioreq-keygen")
def make(name: str) -> Work:
    """Make a pair of CURVE keys: NAME.key and NAME.key_secret.

    The first may be shared; only its owner may read the second. Neither is overwritten. The
    public key is printed.

    \b
    trioreq-keygen server      for a server
    trioreq-keygen alice       for a client; give alice.key to the server
    """  # noqa: D301  # to click \b means: do not wrap
    return partial(make_keys, name)


def make_keys(name: str) -> int:
    """Make and save a pair, and print the public key."""
    keys = trioreq.KeyPair.generate()
    keys.save(name)
    click.echo(keys.public)
    return 0
