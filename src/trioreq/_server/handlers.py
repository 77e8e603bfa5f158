"""Checks handlers, and interprets their results and exceptions."""

from __future__ import annotations

import inspect
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from typing import Any

import trio

from .._errors import RequestCancelled
from .._functions import check_function, layers
from .._protocol.envelope import Frames
from .._protocol.envelope import body as body_of
from .._request import Request

Handler = Callable[[Request], Any]

FATAL = (KeyboardInterrupt, SystemExit)
CANCELLATIONS = (trio.Cancelled, RequestCancelled)


class Forwarder(ABC):
    """An async handler that other programs do the work of.

    Attributes:
        slots: How many requests they process at once; the server takes this for `max_in_flight`
            if that is larger.
    """

    slots: int

    @abstractmethod
    async def __call__(self, request: Request) -> object:
        """Have a request processed. Its client's disconnect need not end this."""

    @abstractmethod
    def stop(self) -> None:
        """Wait for no more replies: the server is shutting down."""


def check_handler(handler: Handler) -> None:
    """Check that a handler can be called with a request.

    Raises:
        TypeError: It is not a function of one argument.
    """
    check_function("handler", handler, "a request", may_yield=True)


def name_of(handler: Handler) -> str:
    """The name of a handler, for the names of tasks."""
    names = (getattr(layer, "__qualname__", None) for layer in layers(handler))
    return next(filter(None, names), type(handler).__qualname__)


class ResultError(TypeError):
    """A handler's result is not a reply; the text says what to do."""


def close_unawaited(result: object) -> None:
    """Close coroutines that were not started: Python would warn that they were never awaited."""
    for part in result if type(result) in (list, tuple) else (result,):  # type: ignore[attr-defined]
        if inspect.iscoroutine(part) and inspect.getcoroutinestate(part) == inspect.CORO_CREATED:
            part.close()


AWAIT_IT = (
    "await it in an async handler; a decorator around an async handler must be async too, or use "
    "functools.wraps"
)


def reply_body(result: object, awaitable: str = AWAIT_IT) -> Frames:
    """The body of the reply for a handler's result.

    Args:
        result: The result, or what it has yielded.
        awaitable: The advice in the error if it is an awaitable.

    Raises:
        ResultError: It is not a reply.
    """
    if inspect.isawaitable(result):
        close_unawaited(result)
        raise ResultError(
            f"its result must be bytes or a list of bytes, got {type(result).__name__}: "
            f"an await is missing: {awaitable}"
        )
    try:
        return body_of("its result", result, secret=True)  # the log must not show a reply's content
    except TypeError as error:
        close_unawaited(result)
        raise ResultError(str(error)) from None


def ends_program(error: BaseException) -> bool:
    """Whether an exception ends the program, and is not a failure of the handler."""
    return any(isinstance(one, FATAL) for one in _ungrouped(error))


def is_cancelled(error: BaseException) -> bool:
    """Whether an exception is or contains a `trio.Cancelled`."""
    return any(isinstance(one, trio.Cancelled) for one in _ungrouped(error))


def is_cancellation(error: BaseException) -> bool:
    """Whether an exception contains nothing but the cancellation of a request."""
    return all(isinstance(one, CANCELLATIONS) for one in _ungrouped(error))


def _ungrouped(error: BaseException) -> Iterator[BaseException]:
    """The exceptions in nested groups.

    `BaseExceptionGroup.split` is recursive, and groups may be nested as deep as tasks are.
    """
    errors = [error]
    while errors:
        one = errors.pop()
        if isinstance(one, BaseExceptionGroup):
            errors.extend(one.exceptions)
        else:
            yield one


def only_error(error: BaseException) -> BaseException:
    """The exception in nested groups of one, as the nurseries of a handler make them."""
    while isinstance(error, BaseExceptionGroup) and len(error.exceptions) == 1:
        error = error.exceptions[0]
    return error
