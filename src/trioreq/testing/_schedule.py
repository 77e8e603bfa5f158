"""What is chance by nature, and here a seed's: whom trio runs first, and what `random` gives."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import trio

from .._checks import check_instance

_before: list[tuple[Any, ...]] = []  # for each network that is open, the first one's at the left


@contextmanager
def scheduled(seed: int) -> Iterator[None]:
    """Let the seed decide, so that each run is the same.

    trio has this for pytest-trio and hypothesis, and no public name for it. A client's pauses
    before it tries again are from `random`. Networks may close in any order: the last one puts
    back what was there before the first.
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
