"""What tests on real sockets share: clients here and in other processes, and Ctrl-C for those.

And what pytest-xdist needs to know.
"""

from __future__ import annotations

import signal
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest
from support.programs import VERSIONS

from harness.clients import ClientProcess, Clients, open_client_process, open_clients

HERE = Path(__file__).parent
DETERMINISTIC = {"pure", "memory", "machine"}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """With pytest-xdist, run one test at a time of those on real sockets or in real time.

    They have time limits, so they are not to compete with each other. The rest may run beside them.
    """
    for item in items:
        folder = item.path.relative_to(HERE).parts[0]
        in_memory = folder == "contract" and "[memory" in item.name
        if not in_memory and folder not in DETERMINISTIC:
            item.add_marker(pytest.mark.xdist_group("real"))


def pytest_sessionfinish(session: pytest.Session) -> None:
    """A worker process of pytest-xdist sends the versions of the programs that it ran."""
    if hasattr(session.config, "workeroutput"):
        session.config.workeroutput["versions"] = VERSIONS


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any) -> None:
    """They arrive at the process that prints the summary."""
    VERSIONS.update(node.workeroutput["versions"])


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    if VERSIONS:
        terminalreporter.section("interoperability")
        for versions in VERSIONS.values():
            terminalreporter.write_line(", ".join(versions))


@pytest.fixture
def clients() -> Iterator[Clients]:
    with open_clients() as opened:
        yield opened


@pytest.fixture
async def peer() -> AsyncIterator[ClientProcess]:
    async with open_client_process() as opened:
        yield opened


@pytest.fixture
def interruptible() -> Iterator[None]:
    """Let processes that a test starts receive Ctrl-C, even if a shell started pytest without."""
    before = signal.getsignal(signal.SIGINT)
    if before is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)
