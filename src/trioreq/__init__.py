"""A ZeroMQ request/reply server in trio: a client that is gone stops its work."""

from ._errors import (
    CancelReason,
    Code,
    EndpointError,
    ReplyError,
    RequestCancelled,
    TrioreqError,
)
from ._request import Request, check_cancelled
from ._server import Server, serve
from ._statistics import RepliesDropped, Statistics
from ._transport import Client

__all__ = [
    "CancelReason",
    "Client",
    "Code",
    "EndpointError",
    "RepliesDropped",
    "ReplyError",
    "Request",
    "RequestCancelled",
    "Server",
    "Statistics",
    "TrioreqError",
    "check_cancelled",
    "serve",
]

__version__ = "0.1.0"

for _name in __all__:  # tracebacks and help() show the path that users import
    globals()[_name].__module__ = __name__
del _name
