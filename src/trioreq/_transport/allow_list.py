"""The allow-list of CURVE keys: a mapping, or a directory that is read again when it changes."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import aclosing
from pathlib import Path

import trio
from trio_util import periodic

from .._checks import check_instance, check_path, shown, wrong
from .._errors import KeyFileError
from .._functions import check_function
from .._log import log
from .curve_keys import PUBLIC, check_key, load_public_key

LOOK = 1.0  # seconds between two looks at a directory of keys

AllowSource = str | os.PathLike[str] | Mapping[str, str]


class AllowList(Mapping[str, str]):
    """The public keys that may come in, and whose they are: public key -> user id.

    A key that is taken out is thrown out at once: what it has asked for is cancelled, and nothing
    is sent to it any more. So is one that is another user's now.

    Args:
        source: The mapping; or a directory, of whose files ``USER.key`` each has a public key.
            A server looks at its directory once a second.

    Raises:
        KeyFileError: The directory or a file in it cannot be read.
        TypeError: It is neither a mapping nor a path, or a key or a user id is not a str.
        ValueError: A key is not one, or a user id has characters that cannot be shown.
    """

    def __init__(self, source: AllowSource) -> None:
        check_source("source", source)
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
            TypeError, ValueError: As above; then the list is what it was.
            RuntimeError: The list is a directory: change that, and `reload`.
        """
        check_instance("users", users, Mapping, "a mapping of public keys to user ids")
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
            except (KeyFileError, RuntimeError) as error:  # RuntimeError: no thread can be started
                log.error("the allow-list is unchanged: %s", error)  # noqa: TRY400
                return
            if found is not None:
                self._seen, users = found
                if users != self._users:
                    log.info("%d keys in %s", len(users), self.directory)
                    self._change(users)

    async def watch(self, changed: Callable[[], None]) -> None:
        """Call `changed` after each change, until cancelled (the server does this)."""
        check_function("changed", changed)
        self._listeners.add(changed)
        try:
            if self.directory is None:
                await trio.sleep_forever()
            async with aclosing(periodic(LOOK)) as times:
                async for _ in times:
                    await self.reload()
        finally:
            self._listeners.discard(changed)

    @trio.lowlevel.enable_ki_protection  # who listens ends connections: half an event read is none
    def _change(self, users: dict[str, str]) -> None:
        self._users = users
        for changed in tuple(self._listeners):
            changed()


def check_source(name: str, source: object) -> None:
    """Refuse what an allow-list cannot be made of.

    Raises:
        TypeError: It is neither a mapping nor a path.
    """
    if not isinstance(source, Mapping | str | os.PathLike):
        expected = "an AllowList, a mapping of public keys to user ids, or a directory"
        raise wrong(name, expected, source, "write {key: 'user id'}")
    if not isinstance(source, Mapping):
        check_path(name, source)


def check_user_id(user_id: str, name: str = "a user id") -> str:
    """A user id that comes out of libzmq as it went in: a zero byte would cut it short.

    Raises:
        TypeError: It is not a str.
        ValueError: It is not that.
    """
    check_instance(name, user_id, str, "a str")
    if not user_id.isprintable() or len(user_id.encode()) > 255:
        raise ValueError(f"{name} must have at most 255 bytes, all printable, got {shown(user_id)}")
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
    except ValueError as error:  # a path with a zero byte
        raise KeyFileError(f"cannot read {str(directory)!r}: {error}") from None
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
    return {
        check_key("each key of the allow-list", key): check_user_id(user)
        for key, user in users.items()
    }
