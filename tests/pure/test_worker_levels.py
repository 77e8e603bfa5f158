"""The levels of a server's loggers, in a worker."""

from __future__ import annotations

import logging
import pickle
from collections.abc import Iterator

import pytest

from trioreq._server.worker_log import Levels

NAMES = ["root", "tests.worker", "tests.worker.part"]


@pytest.fixture(autouse=True)
def _kept() -> Iterator[None]:
    levels = {name: logging.getLogger(name).level for name in NAMES}
    disabled = logging.root.manager.disable
    yield
    for name, level in levels.items():
        logging.getLogger(name).setLevel(level)
    logging.disable(disabled)


@pytest.mark.parametrize("root", [logging.NOTSET, logging.DEBUG, logging.WARNING])
@pytest.mark.parametrize("part", [logging.DEBUG, logging.ERROR])
def test_loggers_of_a_worker_log_what_those_of_the_server_do(root: int, part: int) -> None:
    logger, child = logging.getLogger(NAMES[1]), logging.getLogger(NAMES[2])
    logging.root.setLevel(root)
    child.setLevel(part)
    logging.disable(logging.DEBUG - 5)
    levels = pickle.loads(pickle.dumps(Levels()))

    logging.root.setLevel(logging.CRITICAL)
    child.setLevel(logging.CRITICAL)
    logging.disable(logging.CRITICAL)
    assert not child.isEnabledFor(logging.CRITICAL)
    for _ in range(2):  # the second time there is nothing to change
        levels.set()
        assert logging.root.level == root
        assert logger.getEffectiveLevel() == root
        assert child.getEffectiveLevel() == part
        assert logging.root.manager.disable == logging.DEBUG - 5
