"""The options for keys, and the keys that they name."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

import trioreq

SIZE = 40  # characters of a key


def key_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options."""
    command = click.option(
        "--key-file",
        type=click.Path(dir_okay=False, path_type=Path),
        help="The file with your own secret key, NAME.key_secret; by default a new pair is used.",
    )(command)
    command = click.option(
        "--allow-group",
        is_flag=True,
        help="Accept a --key-file that its group may read, as Kubernetes mounts it.",
    )(command)
    return click.option(
        "--server-key",
        metavar="KEY",
        help="The server's public key, or a file that has it, NAME.key: encrypt with CURVE.",
    )(command)


def curve_of(
    server_key: str | None, key_file: Path | None, *, allow_group: bool
) -> trioreq.CurveClient | None:
    """The CURVE options of a client, if keys are given.

    Raises:
        KeyFileError: A file cannot be used.
        click.UsageError: The options cannot be combined.
    """
    if server_key is None:
        if key_file is not None:
            raise click.UsageError("--key-file needs --server-key")
        return None
    if len(server_key) != SIZE or os.path.exists(server_key):  # noqa: PTH110  # or an invalid path
        server_key = trioreq.load_public_key(server_key)
    keys = None
    if key_file is not None:
        keys = trioreq.KeyPair.load(key_file, allow_group=allow_group)
    return trioreq.CurveClient(server_key, keys)
