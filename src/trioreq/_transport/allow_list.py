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

LOOK = 1.0  # seconds between two checks of a directory of keys

AllowSource = str | os.PathLike[str] | Mapping[str, str]


class AllowList(Mapping[str, str]):
    """The public keys of accepted clients: a mapping from public key to user id.

    Connections of a key that is removed are evicted at once: their requests are cancelled, and
    nothing is sent on them. The same holds for a key that gets another user id.

    Args:
        source: The mapping; or a directory with a file ``USER.key`` for each public key. A server
            checks its directory once a second.

    Raises:
        KeyFileError: The directory or a file in it cannot be read.
        TypeError: It is neither a mapping nor a path, or a key or a user id is not a str.
        ValueError: A key is invalid, or a user id has characters that are not printable.
    """

    def __init__(self, source: AllowSource) -> None:
        check_source("source", source)
        self._listeners: set[Callable[[], None]] = set()
        self._seen: object = None
        self._reading = trio.Lock()
        self._thread = trio.CapacityLimiter(1)  # its own: evictions must not wait for other threads
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
        """Replace the list. Call it in trio's thread.

        Raises:
            TypeError, ValueError: As above; then the list is unchanged.
            RuntimeError: The list is a directory: change that, and `reload`.
        """
        check_instance("users", users, Mapping, "a mapping of public keys to user ids")
        if self.directory is not None:
            raise RuntimeError("this list is a directory: change its files, and await reload()")
        self._change(_checked(users))

    async def reload(self) -> None:
        """Read the directory now, if the list is one and it has changed.

        A file that cannot be read is skipped, with a warning in the log. If the directory itself
        cannot be read, the list is unchanged, and the log has an error.
        """
        if self.directory is None:
            await trio.lowlevel.checkpoint()
            return
        async with self._reading:  # results take effect in the order of the reads
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
        """Call `changed` after each change, until cancelled (the server calls this)."""
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

    @trio.lowlevel.enable_ki_protection  # listeners evict connections, and read the monitor
    def _change(self, users: dict[str, str]) -> None:
        self._users = users
        for changed in tuple(self._listeners):
            changed()


def check_source(name: str, source: object) -> None:
    """Check that an allow-list can be made of an object.

    Raises:
        TypeError: It is neither a mapping nor a path.
    """
    if not isinstance(source, Mapping | str | os.PathLike):
        expected = "an AllowList, a mapping of public keys to user ids, or a directory"
        raise wrong(name, expected, source, "write {key: 'user id'}")
    if not isinstance(source, Mapping):
        check_path(name, source)


def check_user_id(user_id: str, name: str = "a user id") -> str:
    """Check that libzmq passes a user id on unchanged; returns it.

    Raises:
        TypeError: It is not a str.
        ValueError: It is too long, or not printable: a zero byte would end it.
    """
    check_instance(name, user_id, str, "a str")
    if not user_id.isprintable() or len(user_id.encode()) > 255:
        raise ValueError(f"{name} must have at most 255 bytes, all printable, got {shown(user_id)}")
    return user_id


def read_directory(
    directory: Path, seen: object, *, strict: bool = False
) -> tuple[object, dict[str, str]] | None:
    """Read all keys; returns None if nothing has changed since `seen`.

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
            log.warning("a key is skipped: %s", error)
    return found, users


def _state(entry: os.DirEntry[str]) -> tuple[str, int, int, int]:
    """The name of a file, and what changes when the file changes."""
    try:
        status = entry.stat()
    except OSError:  # it was just removed, or is a broken link
        return entry.name, 0, 0, 0
    return entry.name, status.st_ino, status.st_mtime_ns, status.st_size


def _checked(users: Mapping[str, str]) -> dict[str, str]:
    return {
        check_key("each key of the allow-list", key): check_user_id(user)
        for key, user in users.items()
    }
