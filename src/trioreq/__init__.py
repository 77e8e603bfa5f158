"""A ZeroMQ request/reply server in trio: a client that is gone stops its work."""

from ._errors import CancelReason as CancelReason
from ._errors import Code as Code
from ._errors import EndpointError as EndpointError
from ._errors import ReplyError as ReplyError
from ._errors import RequestCancelled as RequestCancelled
from ._errors import TrioreqError as TrioreqError
from ._request import Request as Request
from ._request import check_cancelled as check_cancelled
from ._server import Server as Server
from ._server import serve as serve
from ._statistics import RepliesDropped as RepliesDropped
from ._statistics import Statistics as Statistics
from ._transport import Client as Client

__version__ = "0.1.0"
