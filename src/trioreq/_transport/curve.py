"""The CURVE options of a server and a client."""

from __future__ import annotations

from dataclasses import dataclass

from .._checks import check_instance
from .allow_list import AllowList, AllowSource, check_source
from .curve_keys import KeyPair, check_key


@dataclass(frozen=True, slots=True)
class CurveServer:
    """The CURVE options of a server, for encryption and authentication.

    Args:
        keys: The server's keys. Its clients need the public one.
        allow: The accepted clients: an `AllowList`, or the source of one. None if `serve`'s
            `admit` decides.

    Raises:
        TypeError: An argument is of the wrong type.
        KeyFileError, ValueError: As for an `AllowList`.

    Example:
        >>> keys = trioreq.KeyPair.generate()
        >>> alice = trioreq.KeyPair.generate()
        >>> curve = trioreq.CurveServer(keys, allow={alice.public: "alice"})
    """

    keys: KeyPair
    allow: AllowList | None

    def __init__(self, keys: KeyPair, allow: AllowList | AllowSource | None = None) -> None:
        check_instance("keys", keys, KeyPair, "a KeyPair", secret=True)
        if allow is not None:
            check_source("allow", allow)
        made = allow if allow is None or isinstance(allow, AllowList) else AllowList(allow)
        object.__setattr__(self, "keys", keys)
        object.__setattr__(self, "allow", made)


@dataclass(frozen=True, slots=True)
class CurveClient:
    """The CURVE options of a client.

    Args:
        server_key: The server's public key. The client sends nothing to a server that does not
            have the secret one.
        keys: The client's own keys. None makes a new pair, for a server that accepts any key.

    Raises:
        TypeError: An argument is of the wrong type.
        ValueError: The server's key is invalid.
    """

    server_key: str
    keys: KeyPair

    def __init__(self, server_key: str, keys: KeyPair | None = None) -> None:
        check_key("server_key", server_key)
        if keys is not None:
            check_instance("keys", keys, KeyPair, "a KeyPair or None", secret=True)
        object.__setattr__(self, "server_key", server_key)
        object.__setattr__(self, "keys", KeyPair.generate() if keys is None else keys)
