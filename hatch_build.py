"""Compiles what is on a request's way, when a wheel is built: modules, with mypyc, and one in C.

The result does the same, faster: `docs/performance.md` says by how much. It needs a C compiler;
without one the wheel is built of the sources alone. `TRIOREQ_COMPILE=0` asks for that, and with
`TRIOREQ_COMPILE=1` a wheel that cannot be compiled is an error. An editable installation is never
compiled: its sources are there to be changed.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

EXTENSION = """
from setuptools import Extension, setup

source = Extension("trioreq._cmessages", ["trioreq/_cmessages.c"])
setup(packages=[], ext_modules=[source], script_args=["build_ext", "--inplace"])
"""


class Compile(BuildHookInterface[Any]):
    """Adds the compiled modules, which Python prefers, to the sources in the wheel."""

    def dependencies(self) -> list[str]:
        """What is to be installed for a build: mypyc, and what it looks up types in."""
        return [] if self._wanted() == "0" else list(self.config["dependencies"])

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Compile, and say what belongs into the wheel."""
        wanted = self._wanted()
        if version == "editable" or wanted == "0":
            return
        self._folder = tempfile.TemporaryDirectory()
        folder = Path(self._folder.name)
        shutil.copytree(
            Path(self.root, "src"),
            folder,
            dirs_exist_ok=True,
            ignore=shutil.ignore_patterns("*.so"),
        )
        modules = [f"trioreq/{name}.py" for name in self.config["modules"]]
        # Without a configuration: one that lies in a folder above would be taken.
        commands = [["-m", "mypyc", "--config-file=", *modules], ["-c", EXTENSION]]
        for command in commands:
            done = subprocess.run(  # noqa: S603  # our own words
                [sys.executable, *command],
                cwd=folder,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                check=False,
            )
            if done.returncode:
                if wanted == "1":
                    raise RuntimeError(
                        f"compiling failed, and TRIOREQ_COMPILE is 1:\n{done.stdout}"
                    )
                self.app.display_warning(f"trioreq is not compiled, and slower:\n{done.stdout}")
                return
        for library in [*folder.glob("*.so"), *folder.glob("trioreq/*.so")]:
            build_data["force_include"][str(library)] = str(library.relative_to(folder))
        build_data["pure_python"] = False
        build_data["infer_tag"] = True

    def finalize(self, version: str, build_data: dict[str, Any], artifact_path: str) -> None:
        """The wheel is written."""
        del version, build_data, artifact_path
        if hasattr(self, "_folder"):
            self._folder.cleanup()

    def _wanted(self) -> str:
        """What the environment says: "1", "0", or nothing."""
        wanted = os.environ.get("TRIOREQ_COMPILE", "")
        if wanted not in ("", "0", "1"):
            raise ValueError(f"TRIOREQ_COMPILE is 0 or 1, not {wanted!r}")
        return wanted
