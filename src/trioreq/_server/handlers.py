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
    functions = _functions(handler)
    if inspect.isgeneratorfunction(functions[0]) or (
        any(map(inspect.isasyncgenfunction, functions)) and not is_async(handler)
    ):
        raise TypeError(
            "handler must return its reply, got a generator function, which yields: streams of "
            "replies are not supported"
        )


def is_async(handler: Handler) -> bool:
    """Whether calling the handler gives a coroutine, also behind a plain decorator."""
    return any(map(inspect.iscoroutinefunction, _functions(handler)))


def name_of(handler: Handler) -> str:
    """What to call a handler in the names of tasks."""
    return getattr(_functions(handler)[0], "__qualname__", type(handler).__qualname__)


def _functions(handler: Any) -> list[Any]:  # noqa: ANN401  # whatever it is made of
    """The function that is called first, and those that it wraps, the innermost last."""
    while isinstance(handler, partial):
        handler = handler.func
    if not (inspect.isroutine(handler) or isinstance(handler, type)):
        # An object that can be called, which may itself be what a decorator has made.
        return [type(handler).__call__, *_wrapped(handler)]
    return [handler, *_wrapped(handler)]


def _wrapped(function: Any) -> list[Any]:  # noqa: ANN401
    wrapped = getattr(function, "__wrapped__", None)
    return [] if wrapped is None else _functions(wrapped)


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
