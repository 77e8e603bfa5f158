"""The order in which trio runs tasks that are ready: chance by nature, and here a seed's."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import trio


@contextmanager
def scheduled(seed: int) -> Iterator[None]:
    """Let the seed decide the order, so that each run is the same.

    trio has this for pytest-trio and hypothesis, and no public name for it.
    """
    run: Any = trio._core._run  # noqa: SLF001
    allowed, state = run._ALLOW_DETERMINISTIC_SCHEDULING, run._r.getstate()  # noqa: SLF001
    run._ALLOW_DETERMINISTIC_SCHEDULING = True  # noqa: SLF001
    run._r.seed(seed)  # noqa: SLF001
    try:
        yield
    finally:
        run._ALLOW_DETERMINISTIC_SCHEDULING = allowed  # noqa: SLF001
        run._r.setstate(state)  # noqa: SLF001
