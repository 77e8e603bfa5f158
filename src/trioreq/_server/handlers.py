"""What a handler is, and what its results and exceptions mean."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import trio

from .._errors import RequestCancelled
from .._protocol.envelope import Frames
from .._protocol.envelope import body as body_of
from .._request import Request

Handler = Callable[[Request], Any]

FATAL = (KeyboardInterrupt, SystemExit)
CANCELLATIONS = (trio.Cancelled, RequestCancelled)


def check_handler(handler: Handler) -> None:
    """Refuse what cannot be a handler.

    Raises:
        TypeError: It is not a function of a request, or a generator function.
    """
    if not callable(handler):
        raise TypeError(f"handler must be a function of a request, got {type(handler).__name__}")
    for layer in _layers(handler):
        if inspect.isasyncgenfunction(layer) or inspect.isgeneratorfunction(layer):
            raise TypeError(
                "handler must return its reply, got a generator function, which yields: streams of "
                "replies are not supported"
            )
        if hasattr(layer, "__wrapped__"):  # it may well join what the wrapped function yields
            break


def is_async(handler: Handler) -> bool:
    """Whether calling the handler gives a coroutine, also behind a plain decorator."""
    return any(inspect.iscoroutinefunction(layer) for layer in _layers(handler))


def name_of(handler: Handler) -> str:
    """What to call a handler in the names of tasks."""
    names = (getattr(layer, "__qualname__", None) for layer in _layers(handler))
    return next(filter(None, names), type(handler).__qualname__)


def _layers(handler: Any) -> Iterator[Any]:  # noqa: ANN401  # whatever it is made of
    """What a handler is made of, the outermost first: partials, decorators, functions."""
    while True:
        yield handler
        if isinstance(handler, partial):
            handler = handler.func
        elif hasattr(handler, "__wrapped__"):
            handler = handler.__wrapped__
        elif inspect.isroutine(handler) or isinstance(handler, type):
            return
        else:  # an object that can be called
            handler = type(handler).__call__


def close_unawaited(result: object) -> None:
    """Close a coroutine that does not run: else Python warns that it was never awaited."""
    if inspect.iscoroutine(result) and inspect.getcoroutinestate(result) == inspect.CORO_CREATED:
        result.close()


def reply_body(result: object) -> Frames:
    """The body that a handler's result makes.

    Raises:
        TypeError: It is not a reply.
    """
    if inspect.isawaitable(result):
        close_unawaited(result)
        raise TypeError(
            "the handler returned an awaitable, not bytes: await it in an async handler; a "
            "decorator around an async handler must be async too, or use functools.wraps"
        )
    return body_of("the handler returned", result)


def ends_program(error: BaseException) -> bool:
    """Whether it is not a failure of the handler, but ends the server."""
    return any(isinstance(one, FATAL) for one in _ungrouped(error))


def is_cancelled(error: BaseException) -> bool:
    """Whether it is, or has among others, a `trio.Cancelled`."""
    return any(isinstance(one, trio.Cancelled) for one in _ungrouped(error))


def is_cancellation(error: BaseException) -> bool:
    """Whether it is nothing but what a handler whose request has ended is to raise."""
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
