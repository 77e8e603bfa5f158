"""Keys and their files. No sockets; files in a directory of the test's own."""

from __future__ import annotations

import os
import stat
from errno import EACCES, EMFILE
from pathlib import Path

import psutil
import pytest
import zmq.auth

import trioreq
from trioreq._transport import curve_keys
from trioreq._transport.allow_list import check_user_id, read_directory, users_of


@pytest.fixture
def keys() -> trioreq.KeyPair:
    return trioreq.KeyPair.generate()


def test_saved_keys_can_be_loaded_here_and_by_pyzmq(keys: trioreq.KeyPair, tmp_path: Path) -> None:
    public, secret = keys.save(tmp_path / "alice")
    assert (public.name, secret.name) == ("alice.key", "alice.key_secret")
    assert trioreq.KeyPair.load(secret) == keys
    assert trioreq.load_public_key(public) == trioreq.load_public_key(secret) == keys.public
    assert zmq.auth.load_certificate(secret) == (keys.public.encode(), keys.secret.encode())
    assert zmq.auth.load_certificate(public) == (keys.public.encode(), None)


def test_keys_saved_by_pyzmq_can_be_loaded(tmp_path: Path) -> None:
    public, secret = zmq.auth.create_certificates(tmp_path, "bob", {"name": "Bob"})
    Path(secret).chmod(0o600)
    assert trioreq.KeyPair.load(secret).public == trioreq.load_public_key(public)


def test_a_secret_key_is_its_owners_from_the_first_moment(
    keys: trioreq.KeyPair, tmp_path: Path
) -> None:
    before = os.umask(0)
    try:
        public, secret = keys.save(tmp_path / "alice")
    finally:
        os.umask(before)
    assert stat.S_IMODE(secret.stat().st_mode) == 0o600
    assert stat.S_IMODE(public.stat().st_mode) == 0o644
    assert keys.secret not in public.read_text()


@pytest.mark.parametrize("there", ["alice.key", "alice.key_secret"])
def test_nothing_is_overwritten(keys: trioreq.KeyPair, tmp_path: Path, there: str) -> None:
    (tmp_path / there).write_text("precious")
    with pytest.raises(trioreq.KeyFileError, match="already exists"):
        keys.save(tmp_path / "alice")
    assert (tmp_path / there).read_text() == "precious"
    assert [path.name for path in tmp_path.iterdir()] == [there]


@pytest.mark.parametrize("name", ["", ".", "..", "alice/", "alice/.", "a\0b", "nowhere/alice"])
def test_a_name_for_no_file_is_refused(
    keys: trioreq.KeyPair, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "alice").mkdir()
    with pytest.raises(trioreq.KeyFileError) as refused:
        keys.save(name)
    assert repr(name)[:-1] in str(refused.value)
    assert [path.name for path in tmp_path.rglob("*")] == ["alice"]


def test_a_link_is_not_followed(keys: trioreq.KeyPair, tmp_path: Path) -> None:
    (tmp_path / "alice.key_secret").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(trioreq.KeyFileError, match="already exists"):
        keys.save(tmp_path / "alice")
    assert not (tmp_path / "elsewhere").exists()


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o620, 0o660])
def test_a_secret_key_that_others_have_is_refused(
    keys: trioreq.KeyPair, tmp_path: Path, mode: int
) -> None:
    _, secret = keys.save(tmp_path / "alice")
    secret.chmod(mode)
    with pytest.raises(trioreq.KeyFileError, match="others may read") as refused:
        trioreq.KeyPair.load(secret)
    assert f"{mode:04o}" in str(refused.value)
    assert keys.secret not in str(refused.value)


@pytest.mark.parametrize("mode", [0o400, 0o440, 0o600, 0o640])
def test_its_group_may_read_a_secret_key_if_that_is_said(
    keys: trioreq.KeyPair, tmp_path: Path, mode: int
) -> None:
    """Kubernetes mounts a secret with mode 0440, by way of symbolic links."""
    _, secret = keys.save(tmp_path / "alice")
    secret.chmod(mode)
    link = tmp_path / "link"
    link.symlink_to(secret)
    assert trioreq.KeyPair.load(link, allow_group=True) == keys
    if mode & 0o040:
        with pytest.raises(trioreq.KeyFileError, match=r"others may read .*use allow_group$"):
            trioreq.KeyPair.load(link)


@pytest.mark.parametrize("mode", [0o444, 0o460, 0o620, 0o441, 0o450])
def test_others_may_not_also_if_its_group_may(
    keys: trioreq.KeyPair, tmp_path: Path, mode: int
) -> None:
    _, secret = keys.save(tmp_path / "alice")
    secret.chmod(mode)
    for allow_group in (False, True):
        with pytest.raises(trioreq.KeyFileError, match="others may read") as refused:
            trioreq.KeyPair.load(secret, allow_group=allow_group)
        assert "allow_group" not in str(refused.value)


def test_a_public_key_is_not_called_a_secret_one(keys: trioreq.KeyPair, tmp_path: Path) -> None:
    public, _ = keys.save(tmp_path / "alice")
    assert public.stat().st_mode & 0o044
    with pytest.raises(trioreq.KeyFileError, match=r"only a public one: .*\.key_secret$"):
        trioreq.KeyPair.load(public)


def test_an_invalid_key_file_is_refused(keys: trioreq.KeyPair, tmp_path: Path) -> None:
    public, secret = keys.save(tmp_path / "alice")
    with pytest.raises(trioreq.KeyFileError, match="No such file"):
        trioreq.load_public_key(tmp_path / "nobody.key")
    with pytest.raises(trioreq.KeyFileError, match="has no public key"):
        trioreq.load_public_key(__file__)
    public.chmod(0o600)
    with pytest.raises(trioreq.KeyFileError, match="has no secret key"):
        trioreq.KeyPair.load(public)
    other = trioreq.KeyPair.generate()
    secret.write_text(secret.read_text().replace(keys.secret, other.secret))
    with pytest.raises(trioreq.KeyFileError, match="got another key") as refused:
        trioreq.KeyPair.load(secret)
    assert other.secret not in str(refused.value)


def test_a_secret_is_not_shown(keys: trioreq.KeyPair) -> None:
    for thing in (
        keys,
        trioreq.CurveServer(keys, {keys.public: "alice"}),
        trioreq.CurveClient(keys.public, keys),
    ):
        assert keys.secret not in repr(thing)


@pytest.mark.parametrize("bad", ["", "x" * 39, "x" * 41, "~" * 40, "ä" * 40, "#" * 40])
def test_an_invalid_key_is_refused_without_being_shown(bad: str) -> None:
    good = trioreq.KeyPair.generate()
    with pytest.raises(ValueError, match="40 characters") as refused:
        trioreq.CurveClient(bad)
    assert not bad or bad not in str(refused.value)
    with pytest.raises(ValueError, match="40 characters"):
        trioreq.KeyPair(good.public, bad)
    with pytest.raises(ValueError, match="40 characters"):
        trioreq.AllowList({bad: "alice"})


@pytest.mark.parametrize("bad", ["a\0b", "a\nb", "x" * 256, "\x1b[31m"])
def test_a_user_id_comes_out_of_libzmq_as_it_went_in(bad: str) -> None:
    with pytest.raises(ValueError, match="printable"):
        check_user_id(bad)
    with pytest.raises(ValueError, match="printable"):
        trioreq.AllowList({trioreq.KeyPair.generate().public: bad})


def test_a_directory_is_a_list(keys: trioreq.KeyPair, tmp_path: Path) -> None:
    keys.save(tmp_path / "alice")
    (tmp_path / "README").write_text("no key")
    allow = trioreq.AllowList(tmp_path)
    assert dict(allow) == {keys.public: "alice"}
    (tmp_path / "broken.key").write_text("no key")
    with pytest.raises(trioreq.KeyFileError, match=r"broken.key.*has no public key"):
        trioreq.AllowList(tmp_path)
    with pytest.raises(trioreq.KeyFileError, match="No such file"):
        trioreq.AllowList(tmp_path / "nowhere")
    with pytest.raises(RuntimeError, match="reload"):
        allow.replace({})


def test_a_directory_that_has_not_changed_is_not_read_again(
    keys: trioreq.KeyPair, tmp_path: Path
) -> None:
    keys.save(tmp_path / "alice")
    found = read_directory(tmp_path, {})
    again = read_directory(tmp_path, found)
    assert again["alice.key"] is found["alice.key"]
    (tmp_path / "alice.key").rename(tmp_path / "bob.key")
    assert users_of(read_directory(tmp_path, found)) == {keys.public: "bob"}


def test_an_unreadable_key_file_affects_no_other_client(
    keys: trioreq.KeyPair, tmp_path: Path
) -> None:
    keys.save(tmp_path / "alice")
    os.mkfifo(tmp_path / "pipe.key")
    (tmp_path / "link.key").symlink_to(tmp_path / "nothing")
    (tmp_path / "folder.key").mkdir()
    (tmp_path / "bytes.key").write_bytes(b"\xff\0" * 100)
    before = psutil.Process().num_fds()
    found = read_directory(tmp_path, {})
    assert psutil.Process().num_fds() == before
    assert users_of(found) == {keys.public: "alice"}


async def test_reloading_applies_changes(
    keys: trioreq.KeyPair, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    keys.save(tmp_path / "alice")
    allow = trioreq.AllowList(tmp_path)
    bob = trioreq.KeyPair.generate()
    bob.save(tmp_path / "bob")
    (tmp_path / "broken.key").write_text("no key")
    await allow.reload()
    assert dict(allow) == {keys.public: "alice", bob.public: "bob"}
    assert "a key is skipped" in caplog.text
    (tmp_path / "alice.key").unlink()
    await allow.reload()
    assert dict(allow) == {bob.public: "bob"}
    os.rename(tmp_path, f"{tmp_path}-moved")  # noqa: PTH104
    await allow.reload()
    assert dict(allow) == {bob.public: "bob"}
    assert "the allow-list is unchanged" in caplog.text


@pytest.fixture
def failing(monkeypatch: pytest.MonkeyPatch) -> dict[str, int]:
    """The errno with which each file cannot be opened; root is denied nothing by modes."""
    failing: dict[str, int] = {}
    really_open = curve_keys._open_nonblocking

    def opener(path: str, flags: int) -> int:
        error = failing.get(Path(path).name)
        if error is not None:
            raise OSError(error, os.strerror(error))
        return really_open(path, flags)

    monkeypatch.setattr(curve_keys, "_open_nonblocking", opener)
    return failing


async def test_a_file_that_cannot_be_read_for_a_while_keeps_its_user(
    keys: trioreq.KeyPair,
    tmp_path: Path,
    failing: dict[str, int],
    caplog: pytest.LogCaptureFixture,
) -> None:
    keys.save(tmp_path / "alice")
    allow = trioreq.AllowList(tmp_path)
    bob = trioreq.KeyPair.generate()
    bob.save(tmp_path / "bob")
    os.utime(tmp_path / "alice.key")
    failing.update({"alice.key": EMFILE, "bob.key": EMFILE})
    for _ in range(3):
        await allow.reload()
        assert dict(allow) == {keys.public: "alice"}
    lines = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert [line.partition(":")[0] for line in lines] == [
        "a key is unchanged",
        "a key is skipped",
    ]
    failing.clear()
    await allow.reload()
    assert dict(allow) == {keys.public: "alice", bob.public: "bob"}
    os.utime(tmp_path / "alice.key")
    failing["alice.key"] = EMFILE
    await allow.reload()
    (tmp_path / "alice.key").unlink()
    await allow.reload()
    assert dict(allow) == {bob.public: "bob"}


async def test_a_file_whose_mode_denies_it_allows_no_key_until_its_mode_changes(
    keys: trioreq.KeyPair, tmp_path: Path, failing: dict[str, int]
) -> None:
    keys.save(tmp_path / "alice")
    allow = trioreq.AllowList(tmp_path)
    for mode, users in ((0, {}), (0o644, {keys.public: "alice"})):
        (tmp_path / "alice.key").chmod(mode)
        failing.clear()
        if not mode:
            failing["alice.key"] = EACCES
        await allow.reload()
        assert dict(allow) == users


def test_the_example_of_the_class_runs() -> None:
    keys, alice = trioreq.KeyPair.generate(), trioreq.KeyPair.generate()
    curve = trioreq.CurveServer(keys, allow={alice.public: "alice"})
    assert curve.allow is not None
    assert curve.allow[alice.public] == "alice"
