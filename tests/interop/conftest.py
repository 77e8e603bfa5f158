"""What the tests of interoperability share: programs that others wrote, and where they are.

What a program needs is installed into a temporary folder. If it cannot be had, its tests are
skipped; but where ``CI`` is ``true`` they fail, so that nothing goes untested unseen there.
"""

from __future__ import annotations

import getpass
import platform
import re
import shutil
import subprocess
import zipfile
from pathlib import Path

import pytest
import zmq
from support.programs import NPM_PACKAGE, VERSIONS, cannot_be_had

HERE = Path(__file__).parent
PROGRAMS = HERE / "programs"
CLIENTS = HERE.parents[1] / "examples/clients"
JEROMQ = Path("/usr/share/java/jeromq.jar")
JNACL = Path("/usr/share/java/jnacl.jar")
KEYRING = Path("/usr/share/keyrings/debian-archive-keyring.gpg")
INSTALL_LIMIT = 120  # seconds


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if HERE in item.path.parents:
            item.add_marker(pytest.mark.interop)
            item.add_marker(pytest.mark.slow)


@pytest.fixture(autouse=True)
def versions() -> dict[str, list[str]]:
    """What was run so far; the summary at the end shows it."""
    VERSIONS["Python"] = [
        f"Python {platform.python_version()}",
        f"pyzmq {zmq.pyzmq_version()}",
        f"libzmq {zmq.zmq_version()}",
    ]
    return VERSIONS


@pytest.fixture(scope="session")
def npm(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the packages that the Node programs need: node looks for them next to these."""
    if not shutil.which("node") or not shutil.which("npm"):
        cannot_be_had("there is no node or no npm", "install Node.js 18 or later, with npm")
    folder = tmp_path_factory.mktemp("npm")
    install = ["npm", "install", "--prefix", str(folder), "--ignore-scripts", "--no-audit"]
    run([*install, "--no-fund", "--fetch-retries=1", NPM_PACKAGE], folder)
    return folder


@pytest.fixture(scope="session")
def node(npm: Path) -> list[str]:
    """The command that runs the Node program."""
    return ["node", str(shutil.copy(PROGRAMS / "client.js", npm))]


@pytest.fixture(scope="session")
def old_java(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """The command that runs the Java program on JeroMQ 0.3, which Debian 12 and 13 have."""
    needs_java()
    remedy = "install libjeromq-java of Debian 12 or 13"
    if not JEROMQ.exists():
        cannot_be_had(f"there is no {JEROMQ}", remedy)
    if not bundle_version(JEROMQ).startswith("0.3."):
        cannot_be_had(f"{JEROMQ} is {bundle_version(JEROMQ)}, not 0.3", remedy)
    program = PROGRAMS / "Client.java"
    return compiled(program, [JEROMQ], tmp_path_factory.mktemp("old_java"))


@pytest.fixture(scope="session")
def jars(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """A JeroMQ that speaks ZMTP 3.

    Debian's next release has one. Its package is unpacked, not installed.
    """
    needs_java()
    folder = tmp_path_factory.mktemp("java")
    jars = [JEROMQ, JNACL]
    if not all(jar.exists() for jar in jars) or bundle_version(JEROMQ).startswith("0.3."):
        if not shutil.which("apt-get") or not KEYRING.exists():
            cannot_be_had("there is no JeroMQ from 0.6 on", f"install it as {JEROMQ}, and {JNACL}")
        unpack_from_testing(["libjeromq-java", "libjnacl-java"], folder)
        jars = [folder / jar.relative_to("/") for jar in jars]
    return jars


@pytest.fixture(scope="session")
def java(jars: list[Path], tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """The command that runs the Java program on it."""
    return compiled(PROGRAMS / "Client.java", jars, tmp_path_factory.mktemp("program"))


@pytest.fixture(scope="session")
def ask_c(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """The command that runs the client in C."""
    return built(["cc", "-Wall", "-Wextra", "-Werror"], "ask.c", tmp_path_factory.mktemp("c"))


@pytest.fixture(scope="session")
def ask_cpp(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """The command that runs the client in C++."""
    words = ["c++", "-std=c++17", "-Wall", "-Wextra", "-Werror"]
    return built(words, "ask.cpp", tmp_path_factory.mktemp("cpp"))


@pytest.fixture(scope="session")
def ask_node(npm: Path) -> list[str]:
    """The command that runs the client in Node."""
    return ["node", str(shutil.copy(CLIENTS / "ask.js", npm))]


@pytest.fixture(scope="session")
def ask_java(jars: list[Path], tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """The command that runs the client in Java."""
    return compiled(CLIENTS / "Ask.java", jars, tmp_path_factory.mktemp("java_client"))


def needs_java() -> None:
    if not shutil.which("java") or not shutil.which("javac"):
        cannot_be_had("there is no java or no javac", "install a JDK (default-jdk-headless)")


def bundle_version(jar: Path) -> str:
    """The version in a jar's manifest."""
    with zipfile.ZipFile(jar) as archive:
        manifest = archive.read("META-INF/MANIFEST.MF").decode()
    found = re.search(r"^Bundle-Version: (.*)$", manifest, re.MULTILINE)
    return found[1].strip() if found else "of unknown version"


def unpack_from_testing(packages: list[str], folder: Path) -> None:
    """Unpack packages of Debian's next release, from the mirror that this machine uses."""
    settings = {
        "Dir::Etc::sourcelist": folder / "sources.list",
        "Dir::Etc::sourceparts": "/dev/null",
        "Dir::State::lists": folder / "lists",
        "Dir::Cache": folder / "cache",
        "APT::Sandbox::User": getpass.getuser(),
    }
    apt = ["apt-get", "-q"] + [f"-o{name}={value}" for name, value in settings.items()]
    known = run(["apt-get", "indextargets", "--format", "$(ORIGIN) $(LABEL) $(REPO_URI)"], folder)
    mirrors = re.findall(r"^Debian Debian (\S+)$", known, re.MULTILINE)
    if not mirrors:
        cannot_be_had("apt-get knows no mirror of Debian's", "run apt-get update")
    for name in ("lists/partial", "cache/archives/partial"):
        (folder / name).mkdir(parents=True)
    (folder / "sources.list").write_text(f"deb [signed-by={KEYRING}] {mirrors[0]} testing main\n")
    run([*apt, "update"], folder)
    run([*apt, "download", *packages], folder)
    for package in folder.glob("*.deb"):
        run(["dpkg-deb", "-x", str(package), str(folder)], folder)


def compiled(program: Path, jars: list[Path], folder: Path) -> list[str]:
    """Compile a Java program; returns the command that runs it."""
    path = ":".join(map(str, jars))
    run(["javac", "-nowarn", "-cp", path, "-d", str(folder), str(program)], folder)
    return ["java", "-cp", f"{path}:{folder}", program.stem]


def built(compiler: list[str], source: str, folder: Path) -> list[str]:
    """Compile a client in C or C++ with the system's libzmq; returns the command that runs it."""
    headers = [Path("/usr/include/zmq.h"), Path("/usr/include/zmq.hpp")]
    if not shutil.which(compiler[0]) or not all(header.exists() for header in headers):
        cannot_be_had(
            f"there is no {compiler[0]}, or no zmq.h and zmq.hpp",
            "install g++, libzmq3-dev and cppzmq-dev",
        )
    program = str(folder / "ask")
    run([*compiler, "-o", program, str(CLIENTS / source), "-lzmq"], folder)
    return [program]


def run(command: list[str], folder: Path) -> str:
    """Run a command that has to succeed, or what it makes cannot be had; returns its output."""
    try:
        done = subprocess.run(
            command,
            check=False,
            cwd=folder,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=INSTALL_LIMIT,
        )
    except subprocess.TimeoutExpired:
        cannot_be_had(" ".join(command), f"has not ended within {INSTALL_LIMIT} s")
    if done.returncode:
        cannot_be_had(" ".join(command), f"has failed (no network, perhaps):\n{done.stdout}")
    return done.stdout
