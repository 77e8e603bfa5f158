"""Inspects functions before they are called."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from functools import partial
from typing import Any

from ._checks import wrong


def check_function(name: str, function: object, *parameters: str, may_yield: bool = False) -> None:
    """Check that an object is a function of these parameters.

    Args:
        name: The argument's name.
        function: The object.
        parameters: What it is called with, in words.
        may_yield: Whether it may be a generator function.

    Raises:
        TypeError: It is not.
    """
    expected = f"a function of {' and '.join(parameters) or 'no arguments'}"
    if not callable(function):
        raise wrong(name, expected, function)
    if not may_yield and yields(function):
        raise wrong(name, expected, function, "it yields, and must return")
    try:
        signature = inspect.signature(function, follow_wrapped=False)
    except (TypeError, ValueError):  # some functions in C have no signature
        return
    try:
        signature.bind(*parameters)
    except TypeError:
        raise wrong(name, expected, function, f"it takes {signature}") from None


def check_async_call(name: str, function: object, args: tuple[object, ...]) -> None:
    """Check that an object is an async function that can be called with these arguments.

    Raises:
        TypeError: It is not.
    """
    expected = "an async function"
    if inspect.iscoroutine(function):
        raise wrong(name, expected, function, "write start_soon(f, x), not start_soon(f(x))")
    if yields(function):
        raise wrong(name, expected, function, "it yields: pass one that iterates over it")
    if not callable(function) or not is_async(function):
        raise wrong(name, expected, function)
    try:
        inspect.signature(function, follow_wrapped=False).bind(*args)
    except TypeError as error:
        raise wrong(name, f"{expected} of its arguments", function, str(error)) from None


def is_async(function: object) -> bool:
    """Whether a function is called in the event loop.

    It is async, also behind a plain decorator, or it is an async generator function.
    """
    return any(inspect.iscoroutinefunction(layer) for layer in layers(function)) or (
        yields(function) and any(inspect.isasyncgenfunction(layer) for layer in layers(function))
    )


def yields(function: object) -> bool:
    """Whether it is a generator function, async or not, that no decorator joins."""
    for layer in layers(function):
        if inspect.isasyncgenfunction(layer) or inspect.isgeneratorfunction(layer):
            return True
        if hasattr(layer, "__wrapped__"):  # it may join the results of the wrapped function
            return False
    return False


def layers(function: Any) -> Iterator[Any]:  # noqa: ANN401  # any callable
    """The layers of a function, the outermost first: partials, decorators, functions."""
    while True:
        yield function
        if isinstance(function, partial):
            function = function.func
        elif hasattr(function, "__wrapped__"):
            function = function.__wrapped__
        elif inspect.isroutine(function) or isinstance(function, type):
            return
        else:  # a callable object
            function = type(function).__call__
