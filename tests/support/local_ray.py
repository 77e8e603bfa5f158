"""A local Ray for tests, where it is installed: two processors and little memory."""

from __future__ import annotations

import importlib.util
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from support.jobs import PATH

HAS_RAY = importlib.util.find_spec("ray") is not None


@contextmanager
def open_local_ray(path: str) -> Iterator[None]:
    """Run Ray, whose workers report to a path (`support.jobs`)."""
    import ray

    with pytest.MonkeyPatch.context() as patch:  # the workers have the environment of this moment
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        patch.setenv("PYTHONPATH", os.pathsep.join(filter(None, sys.path)))
        patch.setenv(PATH, path)
        ray.init(num_cpus=2, object_store_memory=80 * 1024 * 1024, include_dashboard=False)
    try:
        yield
    finally:
        ray.shutdown()
