"""CURVE keys, and the files of keys.

A key is 40 characters (Z85, ZeroMQ RFC 32). The files are those of CZMQ and pyzmq: ``NAME.key``
with the public key, which may be shared, and ``NAME.key_secret`` with both.
"""

from __future__ import annotations

import os
import stat
from dataclasses import dataclass, field
from pathlib import Path

import zmq
from zmq.utils import z85

from .._checks import check_instance, check_path
from .._errors import KeyFileError
from .._protocol.zap import KEY_SIZE

LARGEST_FILE = 64 * 1024  # bytes that a file of keys may have
PUBLIC, SECRET = ".key", ".key_secret"
OTHERS = stat.S_IRWXG | stat.S_IRWXO

KeyPath = str | os.PathLike[str]


def check_key(name: str, key: str) -> str:
    """Check a key; returns it. The errors do not show it: it may be a secret one.

    Raises:
        TypeError: It is not a str.
        ValueError: It is not a key.
    """
    expected = "a key of 40 characters (Z85), as trioreq-keygen prints it"
    hint = "decode it, as in key.decode()" if isinstance(key, bytes) else ""
    check_instance(name, key, str, expected, hint, secret=True)
    try:
        good = len(z85.decode(key.encode("ascii"))) == KEY_SIZE and len(key) == KEY_SIZE * 5 // 4
    except Exception:  # noqa: BLE001  # pyzmq's decoder may raise anything
        good = False
    if not good:
        raise ValueError(f"{name} must be {expected}, got another text of {len(key)}")
    return key


@dataclass(frozen=True, slots=True)
class KeyPair:
    """A public key and its secret one, of a server or a client.

    Args:
        public: The public key, which may be shared.
        secret: The secret key, which must not be shared; ``repr`` does not show it.

    Raises:
        TypeError: One is not a str.
        ValueError: One is not a key, or they are not a pair.
    """

    public: str
    secret: str = field(repr=False)

    def __post_init__(self) -> None:
        check_key("public", self.public)
        check_key("secret", self.secret)
        if zmq.curve_public(self.secret.encode()).decode() != self.public:
            raise ValueError("public must be the public key of secret, got another key")

    @classmethod
    def generate(cls) -> KeyPair:
        """Make a new pair."""
        public, secret = zmq.curve_keypair()
        return cls(public.decode(), secret.decode())

    @classmethod
    def load(cls, path: KeyPath, *, allow_group: bool = False) -> KeyPair:
        """Read a file with a secret key, as `save` makes it.

        Args:
            path: The file, normally ``NAME.key_secret``.
            allow_group: Whether its group may read it too, mode 0440 or 0640, as with a secret that
                Kubernetes mounts. Other users must not read it, and only its owner may write it.

        Raises:
            KeyFileError: It cannot be read, or has no secret key, or other users may read or write
                it.
            TypeError: An argument is of the wrong type.
        """
        check_path("path", path)
        check_instance("allow_group", allow_group, bool, "True or False")
        text, mode = _read(Path(path))
        public, secret = _value(text, "public-key"), _value(text, "secret-key")
        if secret is None or public is None:
            only = "" if public is None else ", only a public one"
            raise KeyFileError(
                f"{os.fspath(path)!r} has no secret key{only}: give the file that ends in {SECRET}"
            )
        _check_mode(path, mode, allow_group=allow_group)
        try:
            return cls(public, secret)
        except ValueError as error:
            raise KeyFileError(f"{os.fspath(path)!r}: {error}") from None

    def save(self, name: KeyPath) -> tuple[Path, Path]:
        """Write ``NAME.key`` and ``NAME.key_secret``, which its owner alone may read.

        Returns:
            The two paths.

        Raises:
            KeyFileError: One of them already exists, or cannot be written, or the name is empty.
            TypeError: The name is not a path.
        """
        check_path("name", name)
        if os.path.basename(name) in ("", os.curdir, os.pardir):  # noqa: PTH119  # 'a/' is empty
            raise KeyFileError(f"{os.fspath(name)!r} does not end in a name, such as 'alice'")
        public, secret = (Path(f"{os.fspath(name)}{suffix}") for suffix in (PUBLIC, SECRET))
        line = f'    public-key = "{self.public}"\n'
        if os.path.lexists(public):  # checked before the secret file is made
            raise KeyFileError(f"{str(public)!r} already exists, and is not overwritten")
        _write(
            secret,
            0o600,
            "# ZeroMQ CURVE secret key; keep it private. It identifies its owner to others.\n"
            f'metadata\ncurve\n{line}    secret-key = "{self.secret}"\n',
        )
        _write(
            public,
            0o644,
            f"# ZeroMQ CURVE public key; it may be shared.\nmetadata\ncurve\n{line}",
        )
        return public, secret


def load_public_key(path: KeyPath) -> str:
    """Read the public key in a file, normally ``NAME.key``.

    Raises:
        KeyFileError: It cannot be read, or has none.
        TypeError: It is not a path.
    """
    check_path("path", path)
    key = _value(_read(Path(path))[0], "public-key")
    if key is None:
        raise KeyFileError(f"{os.fspath(path)!r} has no public key")
    try:
        return check_key("the public key", key)
    except ValueError as error:
        raise KeyFileError(f"{os.fspath(path)!r}: {error}") from None


def _check_mode(path: KeyPath, mode: int, *, allow_group: bool) -> None:
    """Refuse a secret key that other users may read or write."""
    others = mode & OTHERS
    if not others or (allow_group and others == stat.S_IRGRP):
        return
    hint = ". If its group may read it, use allow_group" if others == stat.S_IRGRP else ""
    raise KeyFileError(
        f"{os.fspath(path)!r} is a secret key that others may read or write "
        f"(mode {stat.S_IMODE(mode):04o}): make a new one, or chmod 600 it if it was not read{hint}"
    )


def _read(path: Path) -> tuple[str, int]:
    """The text of a file of keys, and the file's mode."""
    try:
        with open(path, "rb", opener=_open_nonblocking) as file:
            status = os.fstat(file.fileno())
            data = file.read(LARGEST_FILE) if stat.S_ISREG(status.st_mode) else b""
    except OSError as error:
        raise KeyFileError(f"cannot read {str(path)!r}: {error.strerror}") from None
    except ValueError as error:  # a path with a zero byte
        raise KeyFileError(f"cannot read {str(path)!r}: {error}") from None
    return data.decode(errors="replace"), status.st_mode


def _open_nonblocking(path: str, flags: int) -> int:
    """Open a file for `open`, which closes it also if it is a directory. A pipe would block."""
    return os.open(path, flags | os.O_NONBLOCK)


def _value(text: str, name: str) -> str | None:
    """The value of a name, in a file of keys."""
    for line in text.splitlines():
        key, equals, value = line.partition("=")
        if equals and key.strip() == name:
            return value.strip().strip("\"'")
    return None


def _write(path: Path, mode: int, text: str) -> None:
    """Make a new file, which has its mode from the start."""
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
    except FileExistsError:
        raise KeyFileError(f"{str(path)!r} already exists, and is not overwritten") from None
    except OSError as error:
        raise KeyFileError(f"cannot write {str(path)!r}: {error.strerror}") from None
    except ValueError as error:  # a path with a zero byte
        raise KeyFileError(f"cannot write {str(path)!r}: {error}") from None
    with open(descriptor, "w", encoding="ascii") as file:  # noqa: PTH123
        file.write(text)
