"""The pause before a request is sent again."""

from __future__ import annotations

import random

import trio

from .._backoff import backoff

BACKOFF = 0.05  # seconds before the first retry, twice that before the second, and so on
BACKOFF_MOST = 2.0


async def back_off(retry: int) -> None:
    """Pause before a request is sent again, for the first time if `retry` is 0."""
    pause = backoff(BACKOFF, BACKOFF_MOST, retry + 1)
    await trio.sleep(pause * random.uniform(0.5, 1))  # noqa: S311  # no secret
