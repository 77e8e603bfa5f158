"""What can be said of a function before it is called."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from functools import partial
from typing import Any

from ._checks import wrong


def check_function(name: str, function: object, *parameters: str, may_yield: bool = False) -> None:
    """Refuse what cannot be called with these parameters.

    Args:
        name: What to call it.
        function: What it is.
        parameters: What it is called with, in words.
        may_yield: Whether it may be a generator function, and need not return.

    Raises:
        TypeError: It is that.
    """
    expected = f"a function of {' and '.join(parameters) or 'no arguments'}"
    if not callable(function):
        raise wrong(name, expected, function)
    if not may_yield and yields(function):
        raise wrong(name, expected, function, "it yields, and must return")
    try:
        signature = inspect.signature(function, follow_wrapped=False)
    except (TypeError, ValueError):  # of some functions in C nothing is known
        return
    try:
        signature.bind(*parameters)
    except TypeError:
        raise wrong(name, expected, function, f"it takes {signature}") from None


def is_async(function: object) -> bool:
    """Whether it is to be called in trio's loop.

    Calling it gives a coroutine, also behind a plain decorator; or it is an async generator
    function.
    """
    return any(inspect.iscoroutinefunction(layer) for layer in layers(function)) or (
        yields(function) and any(inspect.isasyncgenfunction(layer) for layer in layers(function))
    )


def yields(function: object) -> bool:
    """Whether it is a generator function, async or not, which nothing joins."""
    for layer in layers(function):
        if inspect.isasyncgenfunction(layer) or inspect.isgeneratorfunction(layer):
            return True
        if hasattr(layer, "__wrapped__"):  # it may well join what the wrapped function yields
            return False
    return False


def layers(function: Any) -> Iterator[Any]:  # noqa: ANN401  # whatever it is made of
    """What a function is made of, the outermost first: partials, decorators, functions."""
    while True:
        yield function
        if isinstance(function, partial):
            function = function.func
        elif hasattr(function, "__wrapped__"):
            function = function.__wrapped__
        elif inspect.isroutine(function) or isinstance(function, type):
            return
        else:  # an object that can be called
            function = type(function).__call__
