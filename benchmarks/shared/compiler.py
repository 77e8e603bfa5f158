"""The parts of the benchmarks that are in C, compiled when they are first needed."""

from __future__ import annotations

import atexit
import functools
import os
import shutil
import subprocess
import tempfile
from pathlib import Path


class NoCompiler(Exception):
    """Something in C cannot be compiled here."""


@functools.cache
def compiled(source: Path, *options: str) -> str:
    """Compile a file with `$CC` or `cc`; returns the path of the result.

    It is in a temporary folder, and lasts as long as this process.

    Raises:
        NoCompiler: There is no C compiler, or not all that it needs.
    """
    compiler = shutil.which(os.environ.get("CC", "cc"))
    if compiler is None:
        raise NoCompiler(f"{source.name} needs a C compiler: install one, or name it in $CC")
    folder = tempfile.mkdtemp(prefix="trioreq-benchmarks-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    result = f"{folder}/{source.stem}"
    command = [compiler, "-O2", "-o", result, str(source), *options]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise NoCompiler(f"{compiler} failed: {done.stderr}")
    return result
