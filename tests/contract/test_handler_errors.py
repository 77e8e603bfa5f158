"""What becomes of what a handler raises or returns, and which handlers are refused.

Everything waits for events.
"""

from __future__ import annotations

import asyncio
import functools
import logging
import mmap
import re
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from typing import Any

import pytest
import trio
from support.ended import Ended
from support.handlers import ThreadWorker, Worker
from support.nets import Net
from support.places import EACH_PLACE, open_asker
from support.serving import until

import trioreq

EACH_KIND = pytest.mark.parametrize("plain", [False, True], ids=["async", "plain"])


def logged(caplog: pytest.LogCaptureFixture) -> list[logging.LogRecord]:
    """What the server has logged as an error."""
    return [r for r in caplog.records if r.name == "trioreq" and r.levelno >= logging.ERROR]


def as_kind(handler: Callable[[trioreq.Request], Any], plain: bool) -> Any:
    """The function, or an async one that does the same."""

    async def async_handler(request: trioreq.Request) -> Any:
        return handler(request)

    return handler if plain else async_handler


async def code_of(net: Net, handler: Any) -> bytes:
    """Serve and ask, twice the same; returns the code of the error."""
    await net.serve(handler)
    client = await net.connect()
    replies = []
    for _ in range(2):
        await client.send(b"x")
        replies.append(await client.receive())
    assert replies[0] == replies[1]
    assert replies[0][0] == b"trioreq-error"
    return replies[0][1]


# What ends the server.


@pytest.mark.parametrize("kind", [SystemExit, KeyboardInterrupt])
@pytest.mark.parametrize("waits", [False, True], ids=["at once", "waits"])
@pytest.mark.parametrize("grouped", [False, True])
async def test_an_exception_that_ends_programs_ends_serve_after_clients_are_answered(
    net: Net, kind: Any, waits: bool, grouped: bool
) -> None:
    worker = Worker()
    error = kind("the end")

    async def handler(request: trioreq.Request) -> bytes:
        if request.body != b"end":
            return await worker(request)
        if waits:
            await trio.lowlevel.checkpoint()
        raise BaseExceptionGroup("of a nursery", [error]) if grouped else error

    ended = Ended()
    server = await ended.serve(net, handler)
    running, ends = [await net.connect() for _ in range(2)]
    await running.send(b"wait")
    await worker.log.wait("started wait")
    await ends.send(b"end")
    await ended.over.wait()
    assert ended.error is error
    for client in (running, ends):
        assert (await client.receive())[1] == b"shutting-down"
    assert "cancelled wait: shutdown" in worker.log.entries
    assert server.statistics().shut_down == 2


@pytest.mark.parametrize("kind", [SystemExit, KeyboardInterrupt])
async def test_an_exception_that_ends_programs_in_a_plain_function_ends_serve_too(
    net: Net, kind: Any
) -> None:
    worker = ThreadWorker()
    error = kind("the end")

    def handler(request: trioreq.Request) -> bytes:
        if request.body == b"end":
            raise error
        return worker(request)

    ended = Ended()
    await ended.serve(net, handler)
    running, ends = [await net.connect() for _ in range(2)]
    await running.send(b"wait")
    await worker.log.wait("started wait")
    await ends.send(b"end")
    await ended.over.wait()
    assert ended.error is error
    for client in (running, ends):
        assert (await client.receive())[1] == b"shutting-down"
    await worker.log.wait("cancelled wait: shutdown")


# What a handler raises.


class Unprintable(Exception):
    def __str__(self) -> str:
        raise RuntimeError("no text")

    __repr__ = __str__


class Bare(trioreq.ReplyError):
    def __init__(self) -> None:
        pass


class NotText(trioreq.ReplyError):
    def __init__(self) -> None:
        super().__init__("code")
        self.text = ValueError("an exception")  # type: ignore[assignment]


class Whole(ExceptionGroup[Exception]):
    def derive(self, excs: Any) -> Any:
        raise RuntimeError("cannot be split")


ERRORS: dict[str, Callable[[], BaseException]] = {
    "asyncio's Cancelled": asyncio.CancelledError,
    "BaseException": lambda: BaseException("odd"),
    "GeneratorExit": GeneratorExit,
    "StopIteration": lambda: StopIteration(b"a value"),
    "StopAsyncIteration": StopAsyncIteration,
    "RequestCancelled": lambda: trioreq.RequestCancelled(trioreq.CancelReason.DISCONNECTED),
    "unprintable": Unprintable,
    "group": lambda: BaseExceptionGroup("two", [asyncio.CancelledError(), LookupError()]),
    "group that cannot be split": lambda: Whole("two", [LookupError(), ValueError()]),
}


@EACH_KIND
@pytest.mark.parametrize("name", ERRORS)
async def test_any_other_exception_is_handler_failed(
    net: Net, plain: bool, name: str, caplog: pytest.LogCaptureFixture
) -> None:
    def handler(request: trioreq.Request) -> bytes:
        raise ERRORS[name]()

    assert await code_of(net, as_kind(handler, plain)) == b"handler-failed"
    assert len(logged(caplog)) == 2


@EACH_KIND
async def test_an_exception_group_may_be_nested_as_deep_as_tasks_are(
    net: Net, plain: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its traceback is more than Python's own `logging` can write, which is not the server's."""
    log = logging.getLogger("trioreq")
    monkeypatch.setattr(log, "propagate", False)
    monkeypatch.setattr(log, "handlers", [logging.NullHandler()])

    def handler(request: trioreq.Request) -> bytes:
        error: Exception = LookupError("innermost")
        for _ in range(5000):
            error = ExceptionGroup("of a nursery", [error])
        raise ExceptionGroup("of two", [error, ValueError()])

    ended = Ended()  # pytest cannot write it either
    await ended.serve(net, as_kind(handler, plain))
    client = await net.connect()
    for _ in range(2):
        await client.send(b"x")
        assert (await client.receive())[1] == b"handler-failed"


@EACH_KIND
@pytest.mark.parametrize(
    ("error", "advice"),
    [
        (lambda: trioreq.ReplyError("code", ValueError("x")), "use str() for an exception"),  # type: ignore[arg-type]
        (Bare, "call super().__init__(code, text)"),
        (NotText, "call super().__init__(code, text)"),
    ],
    ids=["an exception as text", "without super", "text set later"],
)
async def test_a_reply_error_without_a_text_is_handler_failed_and_the_log_says_what_to_do(
    net: Net, plain: bool, error: Any, advice: str, caplog: pytest.LogCaptureFixture
) -> None:
    def handler(request: trioreq.Request) -> bytes:
        raise error()

    assert await code_of(net, as_kind(handler, plain)) == b"handler-failed"
    assert advice in caplog.text


@EACH_KIND
@pytest.mark.parametrize("depth", [0, 1, 2])
async def test_a_reply_error_alone_in_groups_is_the_reply(
    net: Net, plain: bool, depth: int, caplog: pytest.LogCaptureFixture
) -> None:
    def handler(request: trioreq.Request) -> bytes:
        error: Exception = trioreq.ReplyError("not-found", "no image 17")
        for _ in range(depth):
            error = ExceptionGroup("of a nursery", [error])
        raise error

    assert await code_of(net, as_kind(handler, plain)) == b"not-found"
    assert not logged(caplog)


async def test_a_reply_error_of_a_handlers_nursery_is_the_reply(net: Net) -> None:
    async def child() -> None:
        raise trioreq.ReplyError("not-found")

    async def handler(request: trioreq.Request) -> bytes:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(trio.sleep_forever)
            nursery.start_soon(child)
        raise AssertionError

    assert await code_of(net, handler) == b"not-found"


async def cancelled() -> trio.Cancelled:
    """A Cancelled that was raised elsewhere."""
    with trio.CancelScope() as scope:
        scope.cancel()
        try:
            await trio.lowlevel.checkpoint()
        except trio.Cancelled as error:
            kept = error
            raise
    return kept


@EACH_KIND
@pytest.mark.parametrize("grouped", [False, True])
async def test_the_cancelled_of_another_scope_is_handler_failed_and_the_log_says_so(
    net: Net, plain: bool, grouped: bool, caplog: pytest.LogCaptureFixture
) -> None:
    kept = await cancelled()

    def handler(request: trioreq.Request) -> bytes:
        raise BaseExceptionGroup("of a nursery", [kept]) if grouped else kept

    assert await code_of(net, as_kind(handler, plain)) == b"handler-failed"
    assert "does not belong to the handler that raised it" in caplog.text


@EACH_PLACE
async def test_the_cancelled_of_another_request_may_be_raised_by_one_that_has_waited(
    net: Net, place: str, caplog: pytest.LogCaptureFixture
) -> None:
    kept: list[BaseException] = []

    async def handler(request: trioreq.Request) -> bytes:
        if not kept:
            kept.append(await cancelled())
            return b"kept"
        await trio.lowlevel.checkpoint()
        raise kept[0]

    asker = await open_asker(net, handler, place)
    assert await asker.ask(b"x") == b"kept"
    assert await asker.ask(b"x") == b"handler-failed"
    assert "does not belong to the handler that raised it" in caplog.text


@EACH_KIND
async def test_request_cancelled_in_a_group_is_not_an_error(
    net: Net, plain: bool, caplog: pytest.LogCaptureFixture
) -> None:
    worker: Any = ThreadWorker() if plain else Worker()

    def plain_handler(request: trioreq.Request) -> Any:
        try:
            return worker(request)
        except trioreq.RequestCancelled as error:
            raise BaseExceptionGroup("of threads", [error]) from None

    async def handler(request: trioreq.Request) -> Any:
        try:
            return await worker(request)
        except trio.Cancelled as error:
            group = [error, trioreq.RequestCancelled(trioreq.CancelReason.DISCONNECTED)]
            raise BaseExceptionGroup("of a nursery", group) from None

    server = await net.serve(plain_handler if plain else handler)
    client = await net.connect()
    await client.send(b"wait")
    await worker.log.wait("started wait")
    await client.close()
    await worker.log.wait("cancelled wait: disconnected")
    await until(lambda: server.statistics().running == 0)
    assert not logged(caplog)


# What a handler returns.


class Raises(list[bytes]):
    def __init__(self, error: BaseException) -> None:
        super().__init__([b""])
        self.error = error

    def __iter__(self) -> Iterator[bytes]:
        raise self.error


class WithoutLength(bytes):
    def __len__(self) -> int:
        raise LookupError("no length")


def released() -> memoryview:
    view = memoryview(b"x")
    view.release()
    return view


def closed() -> mmap.mmap:
    memory = mmap.mmap(-1, 1)
    memory.close()
    return memory


class Never:
    def __await__(self) -> Any:
        raise AssertionError


RESULTS: dict[str, Callable[[], object]] = {
    "released memoryview": released,
    "closed mmap": closed,
    "released memoryview in a list": lambda: [b"", released()],
    "iter raises": lambda: Raises(LookupError("not today")),
    "iter raises a BaseException": lambda: Raises(asyncio.CancelledError()),
    "generator": lambda: (part for part in [b""]),
    "awaitable": Never,
}


@EACH_KIND
@pytest.mark.parametrize("name", RESULTS)
async def test_a_result_that_is_not_a_reply_is_handler_failed(
    net: Net, plain: bool, name: str, caplog: pytest.LogCaptureFixture
) -> None:
    def handler(request: trioreq.Request) -> object:
        return RESULTS[name]()

    assert await code_of(net, as_kind(handler, plain)) == b"handler-failed"
    assert len(logged(caplog)) == 2


HINTS: dict[str, tuple[object, str]] = {
    "dict": ({"a": 1}, "its result must be bytes or a list of bytes, got dict: .*json.dumps(x)"),
    "None": (None, "got NoneType: use b'' for an empty frame"),
    "str": ("text", "got str: encode it first, as in text.encode()"),
    "int": (17, "json.dumps(x).encode()"),
    "set": ({b"x"}, "make a list of its frames"),
    "str in a list": ([b"", "text"], "its result[1] must be bytes, got str: encode it first"),
    "None in a list": ((b"", b"", None), "its result[2] must be bytes, got NoneType"),
    "no frames": ([], "its result must have at least one frame, as in [b'']"),
}


@EACH_KIND
@pytest.mark.parametrize("name", HINTS)
async def test_one_line_of_the_log_says_what_to_return(
    net: Net, plain: bool, name: str, caplog: pytest.LogCaptureFixture
) -> None:
    result, hint = HINTS[name]

    def handler(request: trioreq.Request) -> object:
        return result

    assert await code_of(net, as_kind(handler, plain)) == b"handler-failed"
    for record in logged(caplog):
        assert re.search(re.escape(hint).replace(r"\.\*", ".*"), record.getMessage())
        assert record.exc_info is None  # its traceback would have nothing of the handler
        assert "text" not in record.getMessage().replace("text.encode()", "")


@EACH_KIND
async def test_a_coroutine_among_frames_is_closed_and_named(
    net: Net, plain: bool, caplog: pytest.LogCaptureFixture
) -> None:
    """Warnings are errors here, as that it was never awaited."""

    def handler(request: trioreq.Request) -> object:
        return [b"", echo(request)]

    assert await code_of(net, as_kind(handler, plain)) == b"handler-failed"
    for record in logged(caplog):
        assert "result[1] must be bytes, got coroutine: an await is missing" in record.getMessage()


@EACH_KIND
async def test_a_subclass_of_bytes_is_sent_as_the_bytes_that_it_is(net: Net, plain: bool) -> None:
    def handler(request: trioreq.Request) -> object:
        return WithoutLength(b"reply")

    await net.serve(as_kind(handler, plain), max_queued_per_client=100)
    async with net.open_client() as client:
        assert await client.request(b"x") == b"reply"
        assert await client.request_many([b"x"] * 20) == [b"reply"] * 20  # in packs


# What a handler may be.


async def echo(request: trioreq.Request) -> bytes:
    await trio.lowlevel.checkpoint()
    return request.body


async def echo_at_once(request: trioreq.Request) -> bytes:
    return request.body


def plain_echo(request: trioreq.Request) -> bytes:
    return request.body


async def with_argument(number: int, request: trioreq.Request) -> bytes:
    return await echo(request)


def generator(request: trioreq.Request) -> Iterator[bytes]:
    yield request.body


async def async_generator(request: trioreq.Request) -> AsyncIterator[bytes]:
    yield request.body


class Echo:
    async def __call__(self, request: trioreq.Request) -> bytes:
        return await echo(request)

    async def method(self, request: trioreq.Request) -> bytes:
        return await echo(request)


class Yields:
    def __call__(self, request: trioreq.Request) -> Iterator[bytes]:
        yield request.body


class AsyncYields:
    async def __call__(self, request: trioreq.Request) -> AsyncIterator[bytes]:
        yield request.body


def noted(function: Any) -> Any:
    """A plain decorator, as for a log."""

    @functools.wraps(function)
    def wrapper(request: trioreq.Request) -> Any:
        return function(request)

    return wrapper


def made_async(function: Any) -> Any:
    """A decorator that makes an async function of a plain one, as with `trio.to_thread`."""

    @functools.wraps(function)
    async def wrapper(request: trioreq.Request) -> Any:
        await trio.lowlevel.checkpoint()
        return function(request)

    return wrapper


def joined(function: Any) -> Any:
    """A decorator that makes a function of a generator function."""

    @functools.wraps(function)
    def wrapper(request: trioreq.Request) -> bytes:
        return b"".join(function(request))

    return wrapper


def joined_async(function: Any) -> Any:
    """The same for an async one."""

    @functools.wraps(function)
    async def wrapper(request: trioreq.Request) -> bytes:
        return b"".join([part async for part in function(request)])

    return wrapper


class Later:
    def __await__(self) -> Any:
        yield from trio.lowlevel.checkpoint().__await__()  # noqa: ASYNC105
        return b"x"


@functools.wraps(echo)
def later(request: trioreq.Request) -> Awaitable[bytes]:
    return Later()


HANDLERS: dict[str, Any] = {
    "async call": Echo(),
    "method": Echo().method,
    "partial": functools.partial(with_argument, 1),
    "partial of partial": functools.partial(functools.partial(with_argument), 1),
    "decorated, waits": noted(echo),
    "decorated, at once": noted(echo_at_once),
    "decorated twice": noted(noted(echo)),
    "decorated async call": noted(Echo().__call__),
    "plain": plain_echo,
    "decorated plain": noted(plain_echo),
    "made async": made_async(plain_echo),
    "made async and decorated": noted(made_async(plain_echo)),
    "partial of made async": functools.partial(made_async(plain_echo)),
    "joined generator": joined(generator),
    "joined async generator": joined_async(async_generator),
    "an awaitable that is not a coroutine": later,
}


@pytest.mark.parametrize("name", HANDLERS)
async def test_valid_handlers_are_accepted(net: Net, name: str) -> None:
    await net.serve(HANDLERS[name])
    client = await net.connect()
    await client.send(b"x")
    assert await client.receive() == [b"x"]


@pytest.mark.parametrize(
    "handler",
    [
        async_generator,
        generator,
        functools.partial(async_generator),
        functools.partial(generator),
        Yields(),
        AsyncYields(),
    ],
)
async def test_generator_functions_send_streams(net: Net, handler: Any) -> None:
    await net.serve(handler)
    client = await net.connect("DEALER")
    await client.send(b"x")
    assert await client.receive() == [b"x"]
    assert await client.receive() == [b"trioreq-end"]


@pytest.mark.parametrize("handler", [None, b"reply", 17])
async def test_objects_that_are_not_callable_are_refused(net: Net, handler: Any) -> None:
    with pytest.raises(TypeError, match="handler must be a function of a request, got"):
        await trioreq.serve(handler, net._address())


@pytest.mark.parametrize("late", [False, True])
async def test_a_plain_function_that_returns_a_coroutine_gets_advice_in_the_log(
    net: Net, late: bool, caplog: pytest.LogCaptureFixture
) -> None:
    """Warnings are errors here: so the coroutine is closed, also if its client does not wait."""
    worker = ThreadWorker()

    def handler(request: trioreq.Request) -> Any:
        worker(request)
        return echo(request)

    server = await net.serve(handler)
    client = await net.connect()
    await client.send(b"deaf" if late else b"x")
    if late:
        await worker.log.wait("started deaf")
        await client.close()
        await until(lambda: server.statistics().connections == 0)
        worker.release.set()
        await until(lambda: server.statistics().running == 0)
    else:
        assert (await client.receive())[1] == b"handler-failed"
        assert "await it in an async handler" in caplog.text


async def test_a_plain_decorator_that_raises_stop_iteration_has_failed(
    net: Net, caplog: pytest.LogCaptureFixture
) -> None:
    @functools.wraps(echo)
    def handler(request: trioreq.Request) -> Any:
        return next(iter(()))

    assert await code_of(net, handler) == b"handler-failed"
    assert "StopIteration" in caplog.text


async def test_an_await_of_another_library_fails_the_handler(net: Net) -> None:
    async def handler(request: trioreq.Request) -> bytes:
        await asyncio.sleep(0)
        return b""

    assert await code_of(net, handler) == b"handler-failed"
