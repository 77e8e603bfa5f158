"""Seeds for trio's scheduling and for `random`."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import trio

from .._checks import check_instance

_before: list[tuple[Any, ...]] = []  # for each open network, the first one at the left


@contextmanager
def scheduled(seed: int) -> Iterator[None]:
    """Make each run with the same seed the same.

    trio has this for pytest-trio and hypothesis, without a public name. A client's pauses before
    its retries are from `random`. Networks may close in any order: the last one restores the state
    from before the first.
    """
    check_instance("seed", seed, int, "an int")
    run: Any = trio._core._run  # noqa: SLF001
    chance: random.Random = run._r  # noqa: SLF001
    _before.append((run._ALLOW_DETERMINISTIC_SCHEDULING, chance.getstate(), random.getstate()))  # noqa: SLF001
    run._ALLOW_DETERMINISTIC_SCHEDULING = True  # noqa: SLF001
    chance.seed(seed)
    random.seed(seed)
    try:
        yield
    finally:
        before = _before.pop()
        if not _before:
            run._ALLOW_DETERMINISTIC_SCHEDULING, state, other_state = before  # noqa: SLF001
            chance.setstate(state)
            random.setstate(other_state)
