"""`open_server`: `serve` as a context manager, in a nursery of its own."""

from __future__ import annotations

import inspect
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from functools import partial, wraps
from typing import Any, ParamSpec, TypeVar

from .._nursery import open_own_nursery
from .serve import serve
from .server import Server

P = ParamSpec("P")
T = TypeVar("T")


def _takes_the_options_of(
    function: Callable[P, object],
) -> Callable[[Callable[..., T]], Callable[P, T]]:
    """Give a function the signature of `serve`, without `task_status`.

    So the options are listed once. A call with wrong arguments raises TypeError at once, as in
    Python, and not when the block is entered.
    """
    signature = inspect.signature(function, eval_str=True)
    parameters = dict(signature.parameters)
    del parameters["task_status"]

    def decorate(inner: Callable[..., T]) -> Callable[P, T]:
        own = signature.replace(
            parameters=[*parameters.values()],
            return_annotation=inspect.signature(inner, eval_str=True).return_annotation,
        )

        @wraps(inner)
        def outer(*args: P.args, **options: P.kwargs) -> T:
            try:
                own.bind(*args, **options)
            except TypeError as error:
                raise TypeError(f"{inner.__name__}() {error}") from None
            return inner(*args, **options)

        outer.__signature__ = own  # type: ignore[attr-defined]  # what `inspect` and help() show
        return outer

    return decorate


@_takes_the_options_of(serve)
@asynccontextmanager
async def open_server(*args: Any, **options: Any) -> AsyncIterator[Server]:  # noqa: ANN401
    """Serve requests while a block runs. Leaving the block stops the server.

    It is the counterpart of `open_client`, and takes the arguments of `serve`. The block begins
    when the addresses are bound.

    Leaving the block stops the server at once, as cancelling `serve` does: clients with a request
    in flight are answered ``shutting-down``, and handlers are cancelled. To let them finish, await
    `Server.drain` at the end of the block. A server that was drained does not end the block.

    If the server fails, the block is cancelled, and ends with the server's exception.

    Raises:
        EndpointError: As `serve` does.
        TypeError: As `serve` does.
        ValueError: As `serve` does.

    Example:
        >>> async def main():
        ...     async with trioreq.open_server(handler, "tcp://127.0.0.1:0") as server:
        ...         async with trioreq.open_client(server.endpoints[0]) as client:
        ...             print(await client.request(b"hello"))
    """
    async with open_own_nursery() as nursery:
        yield await nursery.start(partial(serve, *args, **options))
