"""A ZeroMQ request/reply server in trio: a client that is gone stops its work."""

from . import _messages, _wire
from ._admission import Applicant
from ._client import Client
from ._curve import AllowList, CurveClient, CurveServer, KeyPair, load_public_key
from ._errors import (
    CancelReason,
    Code,
    ConnectionLost,
    EndpointError,
    KeyFileError,
    NotConnected,
    Refused,
    ReplyError,
    RequestCancelled,
    RequestTimeout,
    TrioreqError,
    UnexpectedReply,
)
from ._open_client import open_client
from ._request import Request, check_cancelled
from ._server import Server, serve
from ._statistics import ClientStatistics, RepliesDropped, Statistics, Timings
from ._transport import Peer

__all__ = [
    "AllowList",
    "Applicant",
    "CancelReason",
    "Client",
    "ClientStatistics",
    "Code",
    "ConnectionLost",
    "CurveClient",
    "CurveServer",
    "EndpointError",
    "KeyFileError",
    "KeyPair",
    "NotConnected",
    "Peer",
    "Refused",
    "RepliesDropped",
    "ReplyError",
    "Request",
    "RequestCancelled",
    "RequestTimeout",
    "Server",
    "Statistics",
    "Timings",
    "TrioreqError",
    "UnexpectedReply",
    "check_cancelled",
    "load_public_key",
    "open_client",
    "serve",
]

__version__ = "0.1.0"
# See hatch_build.py.
__compiled__: bool = _messages.COMPILED and not _wire.__file__.endswith((".py", ".pyc"))

for _name in __all__:  # tracebacks and help() show the path that users import
    globals()[_name].__module__ = __name__
del _name
