"""The extension in C loads only where it is safe, and makes no memory error there.

Each test starts Python, with the libraries and the sanitizer that it needs.
"""

from __future__ import annotations

import ctypes
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from errno import EAGAIN, EHOSTUNREACH
from pathlib import Path

import psutil
import pytest
import zmq
import zmq.backend.cython._zmq as backend
from support import cmessages

from harness.compiler import NoCompiler, compiled

ROOT = Path(__file__).parents[2]

LOAD = """
import ctypes, importlib.abc, importlib.machinery, importlib.util, logging, sys

library, before, after = sys.argv[1:]

class Compiled(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path, target=None):
        if name == "trioreq._transport._cmessages":
            loader = importlib.machinery.ExtensionFileLoader(name, library)
            return importlib.util.spec_from_loader(name, loader)

sys.meta_path.insert(0, Compiled())
logging.basicConfig(format="%(levelname)s %(message)s")
for path in before.split():
    ctypes.CDLL(path, ctypes.RTLD_GLOBAL)
import zmq
for path in after.split():
    ctypes.CDLL(path, ctypes.RTLD_GLOBAL)

from trioreq._transport.messages import COMPILED, messages_of

with zmq.Context() as context:
    with context.socket(zmq.ROUTER) as router, context.socket(zmq.DEALER) as dealer:
        port = router.bind_to_random_port("tcp://127.0.0.1")
        dealer.connect(f"tcp://127.0.0.1:{port}")
        dealer.send(b"x")
        assert router.poll(5000)
        messages = messages_of(router)
        routing_id, frames, _ = messages.receive_from({}, ())
        assert frames == [b"x"]
        assert messages.send_to(routing_id, [b"y"]) == 0
        assert dealer.recv() == b"y"
print("extension" if COMPILED else "twin")
"""


def libzmq() -> Path:
    """The library that pyzmq has loaded."""
    loaded = {line.split()[-1] for line in Path("/proc/self/maps").read_text().splitlines()}
    (path,) = [path for path in loaded if Path(path).name.startswith("libzmq")]
    return Path(path)


@pytest.fixture(scope="module")
def library() -> str:
    return cmessages.library()


@pytest.fixture
def second_libzmq(tmp_path: Path) -> str:
    """Another libzmq of the same version.

    It needs a name of its own, inside too: the linker knows a library by that.
    """
    name = re.compile(rb"libzmq[-\w]*\.so[.\d]*")
    content = libzmq().read_bytes()
    assert name.search(content)
    copy = tmp_path / "second.so"
    copy.write_bytes(name.sub(lambda found: b"second" + found[0][6:], content))
    return str(copy)


@pytest.fixture
def one_function(tmp_path: Path) -> str:
    """A library that has one of libzmq's functions."""
    source = tmp_path / "one_function.c"
    source.write_text("int zmq_msg_send(void) { return -1; }\n")
    return compiled(source, "-shared", "-fPIC")


def use(
    library: str, *, preload: str = "", before: str = "", after: str = ""
) -> subprocess.CompletedProcess[str]:
    """Use trioreq's messages in another process, with more libraries.

    Args:
        library: The extension.
        preload: Loaded before everything else.
        before: Opened for all to see, before pyzmq is loaded.
        after: The same, after that.
    """
    folder = libzmq().parent  # where libzmq's own libraries are
    libraries = {"LD_PRELOAD": preload, "LD_LIBRARY_PATH": str(folder)}
    return subprocess.run(
        [sys.executable, "-c", LOAD, library, before, after],
        env=os.environ | libraries,
        capture_output=True,
        text=True,
        check=True,
    )


def test_it_is_used_with_the_libzmq_of_pyzmq(library: str) -> None:
    done = use(library)
    assert (done.stdout, done.stderr) == ("extension\n", "")


def test_it_is_used_where_that_libzmq_is_loaded_for_all_to_see(library: str) -> None:
    for path in (str(libzmq()), backend.__file__):
        done = use(library, before=path)
        assert (done.stdout, done.stderr) == ("extension\n", "")


@pytest.mark.parametrize("how", ["preload", "before", "after"])
def test_it_is_not_used_beside_a_second_libzmq(library: str, second_libzmq: str, how: str) -> None:
    """Whichever pyzmq calls, its sockets must never get to the other.

    Where both have the same version, only their addresses distinguish them.
    """
    done = use(library, **{how: second_libzmq})
    assert done.stdout == "twin\n"
    assert done.stderr.startswith("WARNING trioreq is slower than it could be: pyzmq may call")
    assert done.stderr.endswith(f" and in {second_libzmq}\n")


def test_it_is_not_used_where_another_library_takes_the_place_of_a_function(
    library: str, one_function: str
) -> None:
    done = use(library, after=one_function)
    assert done.stdout == "twin\n"
    assert "zmq_msg_send is in" in done.stderr
    assert done.stderr.endswith(f" and in {one_function}\n")


@pytest.fixture
def copy(library: str, tmp_path: Path) -> str:
    """The extension under another path, so that it is loaded again."""
    return shutil.copy(library, str(tmp_path / "copy"))


NO_MEMORY = """
#include <stddef.h>
void *no_memory(size_t size)
{
    (void)size;
    return NULL;
}
"""


class NotInC:
    """Stands for the socket of a backend that is not an extension."""


NotInC.__module__ = "zmq.error"


@pytest.mark.parametrize(
    ("target", "name", "value", "reason"),
    [
        ("zmq.backend", "zmq_version_info", lambda: (4, 3, 4), r"calls libzmq \(4, 3, 4\), and"),
        ("zmq.backend", "zmq_version_info", None, "not as expected"),
        ("zmq.backend", "Socket", NotInC, "zmq.error is not an extension in C"),
        ("zmq.backend", "Socket", None, "not as expected"),
        ("zmq", "ContextTerminated", None, "not as expected"),
        ("zmq.backend.cython._zmq", "__file__", "/\udcff.so", "is not an extension in C"),
        ("zmq.backend.cython._zmq", "__file__", psutil._psutil_linux.__file__, "not to be found"),
        ("zmq.backend.cython._zmq", "__file__", 1, "not as expected"),
        ("zmq.backend.cython._zmq", "__file__", None, "not as expected"),
    ],
)
def test_it_does_not_load_with_a_pyzmq_that_it_does_not_know(
    copy: str,
    monkeypatch: pytest.MonkeyPatch,
    target: str,
    name: str,
    value: object,
    reason: str,
) -> None:
    """It is an ImportError whatever is wrong, so that the twin is used."""
    if value is None:
        monkeypatch.delattr(sys.modules[target], name)
    else:
        monkeypatch.setattr(sys.modules[target], name, value)
    with pytest.raises(ImportError, match=reason) as caught:
        cmessages.load(copy)
    assert caught.type is ImportError
    monkeypatch.undo()
    assert cmessages.load(copy).Messages


def test_it_does_not_compile_without_the_gil() -> None:
    with pytest.raises(NoCompiler, match="this extension needs the GIL"):
        cmessages.build("-DPy_GIL_DISABLED=1")


def test_a_message_that_memory_is_too_short_for_is_dropped_as_a_whole(tmp_path: Path) -> None:
    """The extension allocates memory for messages of more than 16 frames alone."""
    source = tmp_path / "no_memory.c"
    source.write_text(NO_MEMORY)
    path = cmessages.build("-DPyMem_RawMalloc=no_memory", str(source))
    extension = cmessages.load(path)
    with zmq.Context() as context, context.socket(zmq.PAIR) as one, context.socket(zmq.PAIR) as two:
        one.bind("inproc://short")
        two.connect("inproc://short")
        sender, receiver = extension.Messages(one), extension.Messages(two)
        for _ in range(2):
            one.send_multipart([b"lost"] * 17)
            with pytest.raises(MemoryError):
                receiver.receive()
            assert sender.send([b"next"] * 16) == 0
            assert receiver.receive() == [b"next"] * 16
            with pytest.raises(MemoryError):
                sender.send([b"lost"] * 17)
        assert receiver.receive() is None


COUNTED = """
#include <stddef.h>
size_t copied = 0;
void *memcpy(void *to, const void *from, size_t size)
{
    for (size_t i = 0; i < size; i++) {
        ((char *)to)[i] = ((const char *)from)[i];
    }
    copied += size;
    return to;
}
"""


def test_of_a_message_that_a_router_refuses_only_the_routing_id_is_copied(tmp_path: Path) -> None:
    """It is tried again and again while the client is slow."""
    source = tmp_path / "counted.c"
    source.write_text(COUNTED)
    path = cmessages.build("-Dmemcpy=counted_memcpy", str(source))
    copied = ctypes.c_size_t.in_dll(ctypes.CDLL(path), "copied")
    extension = cmessages.load(path)
    frames = [b"x" * 40, b"x" * 1_000_000, b"x"]
    with zmq.Context() as context, context.socket(zmq.ROUTER) as router:
        router.router_mandatory = True
        router.sndhwm = 1
        router.bind("inproc://refused")
        with context.socket(zmq.DEALER) as dealer:
            dealer.rcvhwm = 1
            dealer.connect("inproc://refused")
            dealer.send(b"hello")
            routing_id = router.recv_multipart()[0]
            messages = extension.Messages(router)
            accepted = len(routing_id) + sum(map(len, frames))
            copied.value = 0
            while (error := messages.send_to(routing_id, frames)) == 0:
                assert copied.value == accepted
                copied.value = 0
            assert error == EAGAIN
            assert copied.value == len(routing_id)
            copied.value = 0
            assert messages.send_to(b"nobody", frames) == EHOSTUNREACH
            assert copied.value == len(b"nobody")
            assert dealer.recv_multipart() == frames


BROKEN = """
import importlib.abc, logging, sys

class Broken(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path, target=None):
        if name == "trioreq._transport._cmessages":
            raise {error}

sys.meta_path.insert(0, Broken())
logging.basicConfig()
import trioreq
assert not trioreq.__compiled__
"""


@pytest.mark.parametrize("error", ["ImportError", "ModuleNotFoundError"])
def test_the_log_has_the_reason_why_it_is_not_used(error: str) -> None:
    script = BROKEN.format(error=f"{error}('libzmq is nowhere', name='zmq')")
    command = [sys.executable, "-c", script]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stderr == "WARNING:trioreq:trioreq is slower than it could be: libzmq is nowhere\n"


def test_the_log_is_silent_where_it_was_not_compiled() -> None:
    script = BROKEN.format(error="ModuleNotFoundError(name=name)")
    command = [sys.executable, "-c", script]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stderr == ""


SANITIZE = ("-fsanitize=address,undefined", "-fno-sanitize-recover=undefined", "-g")

OVERFLOW = """
#include <stdlib.h>
int overflow(size_t size)
{
    char *memory = malloc(size);
    memory[size] = 1;
    return memory[0];
}
"""

SHORT = """
import mmap, sys
import zmq
from support import cmessages

Messages = cmessages.load(cmessages.library()).Messages
LIMIT = int(sys.argv[1]) << 20

def raises(call, *arguments):
    try:
        call(*arguments)
    except MemoryError:
        return True
    return False

with zmq.Context() as context:
    with context.socket(zmq.PAIR) as one, context.socket(zmq.PAIR) as other:
        one.bind("inproc://short")
        other.connect("inproc://short")
        sender, receiver = Messages(one), Messages(other)
        large = mmap.mmap(-1, 2 * LIMIT)  # not from malloc; libzmq does not copy it
        for frames in ([large, b"x"], [b"x", large, b"y"], [*[b"x"] * 40, large, b"y"]):
            one.send_multipart(frames, copy=False)
            one.send(b"next")
            assert raises(receiver.receive)
            assert receiver.receive() == [b"next"]
            one.send_multipart(frames, copy=False)
            assert raises(receiver.receive_from, {}, ())
            assert receiver.receive() is None

        # libzmq adds a few bytes more to a frame than Python adds to bytes.
        frames = [[b"x", bytes(size), b"y"] for size in range(LIMIT - 80, LIMIT - 32, 4)]
        failed = [raises(sender.send, message) for message in frames]
        assert 0 < sum(failed) < len(failed)
        for message, has_failed in zip(frames, failed):
            assert has_failed or receiver.receive() == message
        assert receiver.receive() is None
print("sound")
"""


def sanitized(*arguments: str, limit: int = 4096) -> subprocess.CompletedProcess[str]:
    """Run Python with the sanitizer's library; each object of Python's is then from malloc.

    Args:
        arguments: Those of Python.
        limit: MiB, of the largest allocation that does not fail.
    """
    compiler = os.environ.get("CC", "cc")
    command = [compiler, "-print-file-name=libasan.so"]
    found = subprocess.run(command, capture_output=True, text=True, check=True)
    preload = found.stdout.strip()
    assert Path(preload).is_absolute(), f"{compiler} has no AddressSanitizer"
    environment = os.environ | {
        "LD_PRELOAD": preload,
        "ASAN_OPTIONS": "detect_leaks=0:quarantine_size_mb=16:allocator_may_return_null=1"
        f":max_allocation_size_mb={limit}",
        "PYTHONMALLOC": "malloc",
        "PYTHONPATH": os.pathsep.join(["tests", ".", os.environ.get("PYTHONPATH", "")]),
    }
    environment.pop("COVERAGE_PROCESS_START", None)
    return subprocess.run(
        [sys.executable, *arguments],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.fixture(scope="module")
def sanitized_library() -> Iterator[None]:
    """The extension that is tested in other processes has the sanitizer's checks."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(cmessages.GIVEN, cmessages.build(*SANITIZE))
        yield


@pytest.mark.slow
@pytest.mark.usefixtures("sanitized_library")
def test_the_sanitizer_finds_no_error() -> None:
    """In all that the tests of messages do with it.

    Except for one that measures memory, and those that are a matter of speed, which it takes away.
    """
    words = "in_c and not no_memory_is_kept and not many_frames"
    options = ["-q", "-p", "no:cacheprovider", "-k", words]
    done = sanitized("-m", "pytest", *options, "tests/wire/test_messages.py")
    assert done.returncode == 0, done.stdout + done.stderr
    passed = re.search(r"^(\d+) passed, \d+ deselected in", done.stdout, re.MULTILINE)
    assert passed is not None, done.stdout
    assert int(passed[1]) > 20


@pytest.mark.slow
@pytest.mark.usefixtures("sanitized_library")
def test_the_sanitizer_finds_no_error_where_memory_is_short() -> None:
    limit = 8
    done = sanitized("-c", SHORT, str(limit), limit=limit)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout == "sound\n"


@pytest.mark.slow
def test_the_sanitizer_finds_an_error(tmp_path: Path) -> None:
    """So it is worth something that it finds none."""
    source = tmp_path / "overflow.c"
    source.write_text(OVERFLOW)
    library = compiled(source, "-shared", "-fPIC", "-fsanitize=address")
    call = "import ctypes, sys; ctypes.CDLL(sys.argv[1]).overflow(ctypes.c_size_t(100))"
    done = sanitized("-c", call, library)
    assert done.returncode != 0
    assert "heap-buffer-overflow" in done.stderr
