"""`trioreq._transport._cmessages`, compiled for the tests."""

from __future__ import annotations

import importlib.machinery
import importlib.util
import os
import shutil
import sysconfig
from pathlib import Path
from typing import Any

import pytest

from harness.compiler import compiled
from trioreq._transport import messages

SOURCE = Path(messages.__file__).with_name("_cmessages.c")
GIVEN = "TRIOREQ_TESTED_CMESSAGES"
"""The variable with the path of a library to test instead of a newly built one."""
WARNINGS = ("-Wall", "-Wextra", "-Werror", "-Wshadow", "-Wconversion", "-std=c11")


def build(*options: str) -> str:
    """Compile it so that a warning is an error; returns the path."""
    if shutil.which(os.environ.get("CC", "cc")) is None and not os.environ.get("CI"):
        pytest.skip("there is no C compiler")
    include = sysconfig.get_path("include")
    # As a system's headers, whose warnings do not matter here.
    return compiled(SOURCE, "-shared", "-fPIC", *WARNINGS, "-isystem", include, *options)


def library() -> str:
    """The path of the library to test."""
    return os.environ.get(GIVEN) or build()


def load(path: str) -> Any:
    """Import a library; each path is a module of its own."""
    loader = importlib.machinery.ExtensionFileLoader("_cmessages", path)
    spec = importlib.util.spec_from_loader("_cmessages", loader)
    assert spec is not None
    module = importlib.util.module_from_spec(spec)
    loader.exec_module(module)
    return module
