"""What a handler is, and what is done with what it raises."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import partial
from typing import Any

import trio

from .._errors import RequestCancelled
from .._request import Request

Handler = Callable[[Request], Any]

FATAL = (KeyboardInterrupt, SystemExit, GeneratorExit)


def check_handler(handler: Handler) -> None:
    """Refuse what cannot be a handler.

    Raises:
        TypeError: It is not a function of a request, or a generator function.
    """
    if not callable(handler):
        raise TypeError(f"handler must be a function of a request, got {type(handler).__name__}")
    function = _function(handler)
    if inspect.isasyncgenfunction(function) or inspect.isgeneratorfunction(function):
        raise TypeError(
            "handler must return its reply, got a generator function, which yields: streams of "
            "replies are not supported"
        )


def is_async(handler: Handler) -> bool:
    """Whether calling the handler gives a coroutine, also behind a plain decorator."""
    return inspect.iscoroutinefunction(_function(handler))


def name_of(handler: Handler) -> str:
    """What to call a handler in the names of tasks."""
    function = _function(handler)
    return getattr(function, "__qualname__", type(handler).__qualname__)


def _function(handler: Any) -> Any:  # noqa: ANN401  # whatever it is made of
    """The function that a handler calls in the end."""
    while True:
        if isinstance(handler, partial):
            handler = handler.func
        elif hasattr(handler, "__wrapped__"):
            handler = inspect.unwrap(handler)
        elif inspect.isroutine(handler) or isinstance(handler, type):
            return handler
        else:  # an object that can be called
            handler = type(handler).__call__


def ends_program(error: BaseException) -> bool:
    """Whether it is not a failure of the handler, but ends the server."""
    if isinstance(error, BaseExceptionGroup):
        return error.subgroup(FATAL) is not None
    return isinstance(error, FATAL)


def is_cancelled(error: BaseException) -> bool:
    """Whether it is, or has among others, a `trio.Cancelled`."""
    if isinstance(error, BaseExceptionGroup):
        return error.subgroup(trio.Cancelled) is not None
    return isinstance(error, trio.Cancelled)


def without_cancellations(error: BaseException) -> BaseException | None:
    """What a handler whose request has ended raised beside its cancellation."""
    cancellations = (trio.Cancelled, RequestCancelled)
    if isinstance(error, BaseExceptionGroup):
        return error.split(cancellations)[1]
    return None if isinstance(error, cancellations) else error


def only_error(error: BaseException) -> BaseException:
    """The exception in nested groups of one, as the nurseries of a handler make them."""
    while isinstance(error, BaseExceptionGroup) and len(error.exceptions) == 1:
        error = error.exceptions[0]
    return error
