"""A ZeroMQ request/reply server in trio. When a client disconnects, its requests are cancelled."""

from ._client.client import Client
from ._client.open_client import open_client
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
    WorkersFailed,
)
from ._finishing import finishing
from ._gateway.open_gateway import open_gateway
from ._protocol.zap import Applicant
from ._request import Peer, Request, check_cancelled
from ._server.open_server import open_server
from ._server.serve import serve
from ._server.server import Server
from ._statistics import (
    ClientStatistics,
    ConnectedClient,
    Statistics,
    Timings,
    WorkerStatistics,
)
from ._transport import messages
from ._transport.allow_list import AllowList
from ._transport.curve import CurveClient, CurveServer
from ._transport.curve_keys import KeyPair, load_public_key
from ._workers import ProcessWorkers, RayWorkers, ThreadWorkers

__all__ = [
    "AllowList",
    "Applicant",
    "CancelReason",
    "Client",
    "ClientStatistics",
    "Code",
    "ConnectedClient",
    "ConnectionLost",
    "CurveClient",
    "CurveServer",
    "EndpointError",
    "KeyFileError",
    "KeyPair",
    "NotConnected",
    "Peer",
    "ProcessWorkers",
    "RayWorkers",
    "Refused",
    "ReplyError",
    "Request",
    "RequestCancelled",
    "RequestTimeout",
    "Server",
    "Statistics",
    "ThreadWorkers",
    "Timings",
    "TrioreqError",
    "UnexpectedReply",
    "WorkerStatistics",
    "WorkersFailed",
    "check_cancelled",
    "finishing",
    "load_public_key",
    "open_client",
    "open_gateway",
    "open_server",
    "serve",
]

__version__ = "0.1.0"
# Whether the message layer is the one in C; see hatch_build.py.
__compiled__: bool = messages.COMPILED

for _name in __all__:  # tracebacks and help() show the path that users import
    globals()[_name].__module__ = __name__
del _name
