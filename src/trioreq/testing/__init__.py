"""Test handlers, and the server itself, without a kernel, threads or waiting.

The server's own code runs on a network in memory, and on trio's clock: with pytest-trio's
``autojump_clock`` a test of a timeout of 30 seconds takes milliseconds.
"""

from ._client import MemoryClient
from ._inline import sleep
from ._network import MemoryNetwork, open_memory_network, open_memory_server
from ._request import make_request

__all__ = [
    "MemoryClient",
    "MemoryNetwork",
    "make_request",
    "open_memory_network",
    "open_memory_server",
    "sleep",
]

for _name in __all__:
    globals()[_name].__module__ = __name__
del _name
