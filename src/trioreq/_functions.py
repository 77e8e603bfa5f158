"""Inspects functions before they are called."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from functools import partial
from typing import Any

from ._checks import wrong


def check_function(name: str, function: object, *parameters: str) -> None:
    """Check that an object is a function of these parameters, and not a generator function.

    Raises:
        TypeError: It is not.
    """
    expected = f"a function of {' and '.join(parameters) or 'no arguments'}"
    if not callable(function):
        raise wrong(name, expected, function)
    if yields(function):
        raise wrong(name, expected, function, "it yields, and must return")
    try:
        signature = inspect.signature(function, follow_wrapped=False)
    except (TypeError, ValueError):  # some functions in C have no signature
        return
    try:
        signature.bind(*parameters)
    except TypeError:
        raise wrong(name, expected, function, f"it takes {signature}") from None


def is_async(function: object) -> bool:
    """Whether a function is async, also behind a plain decorator."""
    return any(inspect.iscoroutinefunction(layer) for layer in layers(function))


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
