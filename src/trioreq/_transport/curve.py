"""CURVE: keys, the files they are in, and the list of those that may come in.

A key is 40 characters (Z85, ZeroMQ RFC 32). The files are those of CZMQ and pyzmq: ``NAME.key``
with the public key, which may go round, and ``NAME.key_secret`` with both.
"""

from __future__ import annotations

import logging
import os
import stat
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import trio
import zmq
from zmq.utils import z85

from .._errors import KeyFileError

log = logging.getLogger("trioreq")

KEY_SIZE = 32  # bytes
LOOK = 1.0  # seconds between two looks at a directory of keys
LARGEST_FILE = 64 * 1024  # bytes that a file of keys may have
PUBLIC, SECRET = ".key", ".key_secret"
OTHERS = stat.S_IRWXG | stat.S_IRWXO

KeyPath = str | os.PathLike[str]
AllowSource = str | os.PathLike[str] | Mapping[str, str]


def check_key(name: str, key: str) -> str:
    """Refuse what is no key; a mistake is told without the key, which may be a secret one.

    Raises:
        TypeError: It is no text.
        ValueError: It is no key.
    """
    if not isinstance(key, str):
        raise TypeError(f"{name} is a text of 40 characters, not {type(key).__name__}")
    try:
        good = len(z85.decode(key.encode("ascii"))) == KEY_SIZE and len(key) == KEY_SIZE * 5 // 4
    except Exception:  # noqa: BLE001  # pyzmq's decoder raises what happens to it
        good = False
    if not good:
        raise ValueError(f"{name} is a text of 40 characters (Z85), as trioreq-keygen prints it")
    return key


@dataclass(frozen=True, slots=True)
class KeyPair:
    """A public key and its secret one, of a server or a client.

    Args:
        public: What others may know.
        secret: What nobody else may; ``repr`` does not show it.

    Raises:
        ValueError: One is no key, or they do not belong together.
    """

    public: str
    secret: str = field(repr=False)

    def __post_init__(self) -> None:
        check_key("the public key", self.public)
        check_key("the secret key", self.secret)
        if zmq.curve_public(self.secret.encode()).decode() != self.public:
            raise ValueError("the public key does not belong to the secret one")

    @classmethod
    def generate(cls) -> KeyPair:
        """Make a new one."""
        public, secret = zmq.curve_keypair()
        return cls(public.decode(), secret.decode())

    @classmethod
    def load(cls, path: KeyPath) -> KeyPair:
        """Read a file with a secret key, as `save` makes it.

        Raises:
            KeyFileError: It cannot be read, has no secret key, or others than its owner may read
                or write it.
        """
        text = _read(Path(path), private=True)
        public, secret = _value(text, "public-key"), _value(text, "secret-key")
        if secret is None or public is None:
            raise KeyFileError(
                f"{os.fspath(path)!r} has no secret key: give the file that ends in {SECRET}"
            )
        try:
            return cls(public, secret)
        except ValueError as error:
            raise KeyFileError(f"{os.fspath(path)!r}: {error}") from None

    def save(self, name: KeyPath) -> tuple[Path, Path]:
        """Write ``NAME.key`` and ``NAME.key_secret``, which its owner alone may read.

        Returns:
            The two paths.

        Raises:
            KeyFileError: One of them is there already, or cannot be written.
        """
        public, secret = (Path(f"{os.fspath(name)}{suffix}") for suffix in (PUBLIC, SECRET))
        line = f'    public-key = "{self.public}"\n'
        if os.path.lexists(public):  # before the secret file is made, which would be in the way
            raise KeyFileError(f"{str(public)!r} is there already, and is not overwritten")
        _write(
            secret,
            0o600,
            "# A secret key of ZeroMQ CURVE. Whoever can read it is its owner to all others.\n"
            f'metadata\ncurve\n{line}    secret-key = "{self.secret}"\n',
        )
        _write(
            public,
            0o644,
            f"# A public key of ZeroMQ CURVE. Everybody may.\nmetadata\ncurve\n{line}",
        )
        return public, secret


def load_public_key(path: KeyPath) -> str:
    """Read the public key in a file, ``NAME.key`` as a rule.

    Raises:
        KeyFileError: It cannot be read, or has none.
    """
    key = _value(_read(Path(path), private=False), "public-key")
    if key is None:
        raise KeyFileError(f"{os.fspath(path)!r} has no public key")
    try:
        return check_key("the public key", key)
    except ValueError as error:
        raise KeyFileError(f"{os.fspath(path)!r}: {error}") from None


class AllowList(Mapping[str, str]):
    """The public keys that may come in, and whose they are: public key -> user id.

    A key that is taken out is thrown out at once: what it has asked for is cancelled, and nothing
    is sent to it any more. So is one that is another user's now.

    Args:
        source: The mapping; or a directory, of whose files ``USER.key`` each has a public key.
            A server looks at its directory once a second.

    Raises:
        KeyFileError: The directory or a file in it cannot be read.
        ValueError: A key is none, or a user id has characters that cannot be shown.
    """

    def __init__(self, source: AllowSource) -> None:
        self._listeners: set[Callable[[], None]] = set()
        self._seen: object = None
        self._reading = trio.Lock()
        self._thread = trio.CapacityLimiter(1)  # its own: to throw out is not to wait for others
        self.directory: Path | None = None
        if isinstance(source, Mapping):
            self._users = _checked(source)
        else:
            self.directory = Path(source)
            self._seen, self._users = read_directory(self.directory, None, strict=True) or (
                None,
                {},
            )

    def __getitem__(self, key: str) -> str:
        return self._users[key]

    def __iter__(self) -> Iterator[str]:
        return iter(self._users)

    def __len__(self) -> int:
        return len(self._users)

    def replace(self, users: Mapping[str, str]) -> None:
        """Have another list from now on. Call it in trio's thread.

        Raises:
            ValueError: As above; then the list is what it was.
            RuntimeError: The list is a directory: change that, and `reload`.
        """
        if self.directory is not None:
            raise RuntimeError("this list is a directory: change its files, and await reload()")
        self._change(_checked(users))

    async def reload(self) -> None:
        """Look at the directory now. A list that is none is left as it is.

        A file that cannot be read lets nobody in, and is logged. If the whole directory cannot
        be read, the list stays what it was, and that is logged as an error.
        """
        if self.directory is None:
            await trio.lowlevel.checkpoint()
            return
        async with self._reading:  # what was read first takes effect first
            try:
                found = await trio.to_thread.run_sync(
                    read_directory, self.directory, self._seen, limiter=self._thread
                )
            except KeyFileError as error:
                log.error("the list of keys stays what it was: %s", error)  # noqa: TRY400
                return
            if found is not None:
                self._seen, users = found
                if users != self._users:
                    log.info("%d keys in %s", len(users), self.directory)
                    self._change(users)

    async def watch(self, changed: Callable[[], None]) -> None:
        """Call `changed` after each change, until cancelled (the server does this)."""
        self._listeners.add(changed)
        try:
            while self.directory is not None:
                await trio.sleep(LOOK)
                await self.reload()
            await trio.sleep_forever()
        finally:
            self._listeners.discard(changed)

    @trio.lowlevel.enable_ki_protection  # who listens ends connections: half an event read is none
    def _change(self, users: dict[str, str]) -> None:
        self._users = users
        for changed in tuple(self._listeners):
            changed()


@dataclass(frozen=True, slots=True)
class CurveServer:
    """What a server needs for CURVE: everything is encrypted, and clients prove who they are.

    Args:
        keys: The server's. Its clients need the public one.
        allow: Who may come in: an `AllowList`, or what one is made of. None to let `serve`'s
            `admit` decide.

    Example:
        >>> keys = trioreq.KeyPair.generate()
        >>> alice = trioreq.KeyPair.generate()
        >>> curve = trioreq.CurveServer(keys, allow={alice.public: "alice"})
    """

    keys: KeyPair
    allow: AllowList | None

    def __init__(self, keys: KeyPair, allow: AllowList | AllowSource | None = None) -> None:
        if not isinstance(keys, KeyPair):
            raise TypeError(f"keys is a KeyPair, not {type(keys).__name__}")
        made = allow if allow is None or isinstance(allow, AllowList) else AllowList(allow)
        object.__setattr__(self, "keys", keys)
        object.__setattr__(self, "allow", made)


@dataclass(frozen=True, slots=True)
class CurveClient:
    """What a client needs for CURVE.

    Args:
        server_key: The server's public key. A server that cannot prove that it has the secret
            one is not talked to.
        keys: The client's own. None makes a new pair, for a server that lets everybody in.

    Raises:
        ValueError: The server's key is none.
    """

    server_key: str
    keys: KeyPair

    def __init__(self, server_key: str, keys: KeyPair | None = None) -> None:
        object.__setattr__(self, "server_key", check_key("the server's key", server_key))
        object.__setattr__(self, "keys", KeyPair.generate() if keys is None else keys)


def check_user_id(user_id: str) -> str:
    """A user id that comes out of libzmq as it went in: a zero byte would cut it short.

    Raises:
        ValueError: It is not that.
    """
    if not user_id.isprintable() or len(user_id.encode()) > 255:
        raise ValueError("a user id has at most 255 bytes, all of them printable")
    return user_id


def read_directory(
    directory: Path, seen: object, *, strict: bool = False
) -> tuple[object, dict[str, str]] | None:
    """Read all keys, unless nothing has changed since `seen`; then the answer is None.

    Raises:
        KeyFileError: The directory cannot be read; or, if it is `strict`, a file.
    """
    try:
        with os.scandir(directory) as entries:
            found = sorted(_state(entry) for entry in entries if entry.name.endswith(PUBLIC))
    except OSError as error:
        raise KeyFileError(f"cannot read {str(directory)!r}: {error.strerror}") from None
    if found == seen:
        return None
    users: dict[str, str] = {}
    for name, *_ in found:
        try:
            key = load_public_key(directory / name)
            users.setdefault(key, check_user_id(name.removesuffix(PUBLIC)))
        except (KeyFileError, ValueError) as error:
            if strict:
                raise KeyFileError(str(error)) from None
            log.warning("a key is left out: %s", error)
    return found, users


def _state(entry: os.DirEntry[str]) -> tuple[str, int, int, int]:
    """What is another when a file is another; its name first."""
    try:
        status = entry.stat()
    except OSError:  # it has just gone, or is a link to nothing
        return entry.name, 0, 0, 0
    return entry.name, status.st_ino, status.st_mtime_ns, status.st_size


def _checked(users: Mapping[str, str]) -> dict[str, str]:
    return {check_key("a key of the list", key): check_user_id(user) for key, user in users.items()}


def _read(path: Path, *, private: bool) -> str:
    """The text of a file of keys."""
    try:
        # Without blocking, so that a pipe in a directory of keys holds nobody up.
        with open(os.open(path, os.O_RDONLY | os.O_NONBLOCK), "rb") as file:  # noqa: PTH123
            status = os.fstat(file.fileno())
            data = file.read(LARGEST_FILE) if stat.S_ISREG(status.st_mode) else b""
    except OSError as error:
        raise KeyFileError(f"cannot read {str(path)!r}: {error.strerror}") from None
    if private and status.st_mode & OTHERS:
        raise KeyFileError(
            f"{str(path)!r} is a secret key that others may read or write "
            f"(mode {stat.S_IMODE(status.st_mode):04o}): "
            "make a new one, or chmod 600 it if nobody has"
        )
    return data.decode(errors="replace")


def _value(text: str, name: str) -> str | None:
    """What stands behind a name, in a file of keys."""
    for line in text.splitlines():
        key, equals, value = line.partition("=")
        if equals and key.strip() == name:
            return value.strip().strip("\"'")
    return None


def _write(path: Path, mode: int, text: str) -> None:
    """Make a file that was not there, with a mode from its first moment on."""
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
    except FileExistsError:
        raise KeyFileError(f"{str(path)!r} is there already, and is not overwritten") from None
    except OSError as error:
        raise KeyFileError(f"cannot write {str(path)!r}: {error.strerror}") from None
    with open(descriptor, "w", encoding="ascii") as file:  # noqa: PTH123
        file.write(text)
