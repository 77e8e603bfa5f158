"""The allow-list of CURVE keys: a mapping, or a directory that is read again when it changes."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import aclosing
from errno import EACCES, ELOOP, ENOENT, ENOTDIR, EPERM
from pathlib import Path
from typing import NamedTuple

import trio
from trio_util import periodic

from .._checks import check_instance, check_path, shown, wrong
from .._errors import KeyFileError
from .._functions import check_function
from .._log import log
from .curve_keys import PUBLIC, check_key, load_public_key

LOOK = 1.0  # seconds between two checks of a directory of keys

# Errors that last until a file changes: it is missing, or its mode denies it.
LASTING = {ENOENT, ENOTDIR, ELOOP, EACCES, EPERM}

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
        self._files: Mapping[str, KeyFile] = {}
        self._reading = trio.Lock()
        self._thread = trio.CapacityLimiter(1)  # its own: evictions must not wait for other threads
        self.directory: Path | None = None
        if isinstance(source, Mapping):
            self._users = _checked(source)
        else:
            self.directory = Path(source)
            self._files = read_directory(self.directory, {}, strict=True)
            self._users = users_of(self._files)

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

        A file that cannot be used is skipped, with a warning in the log. If it cannot be read for
        another reason than its mode, its former key is kept, and it is read again each time. If the
        directory itself cannot be read, the list is unchanged, and the log has an error.
        """
        if self.directory is None:
            await trio.lowlevel.checkpoint()
            return
        async with self._reading:  # results take effect in the order of the reads
            try:
                self._files = await trio.to_thread.run_sync(
                    read_directory, self.directory, self._files, limiter=self._thread
                )
            except (KeyFileError, RuntimeError) as error:  # RuntimeError: no thread can be started
                log.error("the allow-list is unchanged: %s", error)  # noqa: TRY400
                return
            users = users_of(self._files)
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


class KeyFile(NamedTuple):
    """What is known of a file in the directory.

    Attributes:
        state: Changes when the file changes; None if it is to be read again though it has not.
        key: Its public key; None if it has no usable one.
        problem: Why it could not be used, if so, as in the log.
    """

    state: tuple[int, ...] | None
    key: str | None
    problem: str = ""


def read_directory(
    directory: Path, before: Mapping[str, KeyFile], *, strict: bool = False
) -> dict[str, KeyFile]:
    """Read the files that have changed.

    Args:
        directory: The directory.
        before: What was returned the last time.
        strict: Whether it is an error that a file cannot be used.

    Returns:
        All files, by name, in the order of their names.

    Raises:
        KeyFileError: The directory cannot be read; or, if it is `strict`, a file.
    """
    try:
        with os.scandir(directory) as entries:
            found = sorted(
                (entry.name, _state(entry)) for entry in entries if entry.name.endswith(PUBLIC)
            )
    except OSError as error:
        raise KeyFileError(f"cannot read {str(directory)!r}: {error.strerror}") from None
    except ValueError as error:  # a path with a zero byte
        raise KeyFileError(f"cannot read {str(directory)!r}: {error}") from None
    files: dict[str, KeyFile] = {}
    for name, state in found:
        file = before.get(name)
        if file is None or file.state != state:
            file = _read_file(directory / name, state, file, strict=strict)
        files[name] = file
    return files


def _read_file(
    path: Path, state: tuple[int, ...], before: KeyFile | None, *, strict: bool
) -> KeyFile:
    try:
        key = load_public_key(path)
        check_user_id(_user(path.name))
    except (KeyFileError, ValueError) as error:
        if strict:
            raise KeyFileError(str(error)) from None
        problem, cause = str(error), error.__context__
        former = None if before is None else before.key
        lasting = not isinstance(cause, OSError) or cause.errno in LASTING
        if before is None or before.problem != problem:
            if lasting or former is None:
                log.warning("a key is skipped: %s", problem)
            else:
                log.warning("a key is unchanged: %s", problem)
        return KeyFile(state, None, problem) if lasting else KeyFile(None, former, problem)
    return KeyFile(state, key)


def users_of(files: Mapping[str, KeyFile]) -> dict[str, str]:
    """The user id of each key. Of files with the same key the first counts."""
    users: dict[str, str] = {}
    for name, file in files.items():
        if file.key is not None:
            users.setdefault(file.key, _user(name))
    return users


def _user(name: str) -> str:
    return name.removesuffix(PUBLIC)


def _state(entry: os.DirEntry[str]) -> tuple[int, ...]:
    """What changes when a file changes, or its mode."""
    try:
        status = entry.stat()
    except OSError:  # it was just removed, or is a broken link
        return ()
    return status.st_ino, status.st_mtime_ns, status.st_ctime_ns, status.st_size


def _checked(users: Mapping[str, str]) -> dict[str, str]:
    return {
        check_key("each key of the allow-list", key): check_user_id(user)
        for key, user in users.items()
    }
