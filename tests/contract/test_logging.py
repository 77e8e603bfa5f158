"""A program's own logging handlers, filters and formatters may raise: the server goes on.

Everything waits for events.
"""

from __future__ import annotations

import asyncio
import io
import logging
import sys
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import trio
from support.ended import Ended
from support.nets import Net

import trioreq
from trioreq import _log

LIMIT = 5  # seconds: without an answer there is nothing to wait for
ERRORS: dict[str, Callable[[], BaseException]] = {
    "Exception": lambda: OSError("the disk is full"),
    "asyncio's Cancelled": asyncio.CancelledError,
    "GeneratorExit": GeneratorExit,
}


def raises(error: BaseException) -> Callable[[logging.LogRecord], Any]:
    def function(_: logging.LogRecord) -> Any:
        raise error

    return function


class Careless(logging.Handler):
    """Formats a record, and does not call `handleError`."""

    def emit(self, record: logging.LogRecord) -> None:
        self.format(record)


def in_handler(log: logging.Logger, error: BaseException) -> None:
    handler = Careless()
    handler.emit = raises(error)  # type: ignore[method-assign, assignment]
    log.handlers.insert(0, handler)


def in_formatter(log: logging.Logger, error: BaseException) -> None:
    handler = Careless()
    handler.formatter = logging.Formatter()
    handler.formatter.format = raises(error)  # type: ignore[method-assign, assignment]
    log.handlers.insert(0, handler)


def in_filter(log: logging.Logger, error: BaseException) -> None:
    log.addFilter(raises(error))


def in_filter_of_handler(log: logging.Logger, error: BaseException) -> None:
    handler = Careless()
    handler.addFilter(raises(error))
    log.handlers.insert(0, handler)


PLACES = [in_handler, in_formatter, in_filter, in_filter_of_handler]


@pytest.fixture
def log() -> Iterator[logging.Logger]:
    """The logger of trioreq, at level DEBUG; what a test adds to it is taken off."""
    log = logging.getLogger("trioreq")
    level = log.level
    handlers, filters = log.handlers[:], log.filters[:]
    log.setLevel(logging.DEBUG)
    yield log
    log.setLevel(level)
    log.handlers[:], log.filters[:] = handlers, filters


async def handler(request: trioreq.Request) -> bytes:
    if request.body == b"fail":
        raise LookupError("of the handler")
    return request.body


async def ask_all(net: Net) -> None:
    """Have a line logged at each level."""
    with trio.fail_after(LIMIT):
        client = await net.connect()
        for body in (b"x", b"fail", b"y"):
            await client.send(body)
            assert (await client.receive())[-1] != b"fail"
        dealer = await net.connect_dealer()
        await dealer.send_raw(b"malformed")
        assert (await dealer.receive_raw())[1:3] == [b"trioreq-error", b"malformed"]
        await client.send(b"z")
        assert await client.receive() == [b"z"]


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("name", ERRORS)
async def test_exceptions_of_logging_are_reported_on_stderr_and_end_nothing(
    net: Net,
    log: logging.Logger,
    capsys: pytest.CaptureFixture[str],
    place: Callable[[logging.Logger, BaseException], None],
    name: str,
) -> None:
    error = ERRORS[name]()
    place(log, error)
    ended = Ended()
    await ended.serve(net, handler)
    await ask_all(net)
    assert not ended.over.is_set()
    told = capsys.readouterr().err
    assert told.count("--- Logging error ---") >= 5
    assert type(error).__name__ in told
    assert "client 1: the handler failed" in told


async def test_a_kept_cancelled_in_a_handler_of_logging_ends_nothing(
    net: Net, log: logging.Logger, capsys: pytest.CaptureFixture[str]
) -> None:
    with trio.CancelScope() as scope:
        scope.cancel()
        try:
            await trio.lowlevel.checkpoint()
        except trio.Cancelled as error:
            in_handler(log, error)
            raise
    ended = Ended()
    await ended.serve(net, handler)
    await ask_all(net)
    assert not ended.over.is_set()
    assert "Cancelled" in capsys.readouterr().err


async def test_nothing_is_logged_if_logging_reports_no_errors(
    net: Net,
    log: logging.Logger,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(logging, "raiseExceptions", False)
    in_handler(log, LookupError())
    await net.serve(handler)
    await ask_all(net)
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("stderr", [None, io.StringIO()], ids=["none", "closed"])
async def test_there_may_be_no_stderr_to_report_it_on(
    net: Net, log: logging.Logger, monkeypatch: pytest.MonkeyPatch, stderr: io.StringIO | None
) -> None:
    if stderr is not None:
        stderr.close()
    monkeypatch.setattr(sys, "stderr", stderr)
    in_handler(log, LookupError())
    await net.serve(handler)
    await ask_all(net)


@pytest.mark.parametrize("kind", [KeyboardInterrupt, SystemExit])
async def test_exceptions_that_end_programs_still_do(
    net: Net, log: logging.Logger, kind: Any
) -> None:
    error = kind("the end")

    class Ends(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            if record.exc_info:
                raise error

    ended = Ended()
    await ended.serve(net, handler)
    log.addHandler(Ends())
    client = await net.connect()
    await client.send(b"fail")
    await ended.over.wait()
    assert ended.error is error
    assert (await client.receive())[1] == b"shutting-down"


@pytest.mark.parametrize("kind", [KeyboardInterrupt, SystemExit])
async def test_an_exception_that_ends_programs_at_the_first_line_ends_serve(
    net: Net, log: logging.Logger, kind: Any
) -> None:
    in_handler(log, kind("the end"))
    with trio.fail_after(LIMIT), pytest.raises(kind, match="the end"):
        await trioreq.serve(handler, net._address())


def test_a_line_has_the_place_that_logs_it(caplog: pytest.LogCaptureFixture) -> None:
    _log.log.warning("one")
    _log.log.error("two", exc_info=LookupError())
    here = test_a_line_has_the_place_that_logs_it.__name__
    assert [(r.filename, r.funcName) for r in caplog.records] == [("test_logging.py", here)] * 2
