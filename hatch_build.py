"""Builds the C extension of a wheel: the message layer, `trioreq._transport._cmessages`.

It needs a C compiler and a Python that has the GIL. Without them the wheel has only the same in
Python, which is slower: `docs/performance.md` says by how much. `TRIOREQ_COMPILE=0` leaves the
extension out. With `TRIOREQ_COMPILE=1`, a wheel that cannot be compiled is an error. An editable
installation is never compiled, since its sources are there to be changed.
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

SOURCE = "trioreq/_transport/_cmessages.c"
BUILD = f"""
from setuptools import Extension, setup

extension = Extension("trioreq._transport._cmessages", ["{SOURCE}"])
setup(packages=[], ext_modules=[extension], script_args=["build_ext", "--inplace"])
"""


class Compile(BuildHookInterface[Any]):
    """Adds the extension to the wheel."""

    def dependencies(self) -> list[str]:
        """Return the packages that a build needs."""
        return [] if self._wanted() == "0" else list(self.config["dependencies"])

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Compile the extension and add it to the wheel."""
        wanted = self._wanted()
        if version == "editable" or wanted == "0":
            return
        self._folder = tempfile.TemporaryDirectory()
        folder = Path(self._folder.name)
        (folder / SOURCE).parent.mkdir(parents=True)
        shutil.copy(Path(self.root, "src", SOURCE), folder / SOURCE)
        built = subprocess.run(  # noqa: S603 - nothing in the command is from outside
            [sys.executable, "-c", BUILD],
            cwd=folder,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
        )
        if built.returncode:
            if wanted == "1":
                raise RuntimeError(f"compiling failed, and TRIOREQ_COMPILE is 1:\n{built.stdout}")
            self.app.display_warning(f"trioreq is not compiled, and slower:\n{built.stdout}")
            return
        for library in folder.glob("trioreq/**/*.so"):
            build_data["force_include"][str(library)] = str(library.relative_to(folder))
        build_data["pure_python"] = False
        build_data["infer_tag"] = True

    def finalize(self, version: str, build_data: dict[str, Any], artifact_path: str) -> None:
        """Remove the build's temporary folder."""
        del version, build_data, artifact_path
        if hasattr(self, "_folder"):
            self._folder.cleanup()

    def _wanted(self) -> str:
        """Return the value of TRIOREQ_COMPILE: "1", "0", or empty."""
        wanted = os.environ.get("TRIOREQ_COMPILE", "")
        if wanted not in ("", "0", "1"):
            raise ValueError(f"TRIOREQ_COMPILE must be 0 or 1, got {wanted!r}")
        return wanted
