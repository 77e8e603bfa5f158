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
from support.programs import NPM_PACKAGE, cannot_be_had

HERE = Path(__file__).parent
PROGRAMS = HERE / "programs"
JEROMQ = Path("/usr/share/java/jeromq.jar")
JNACL = Path("/usr/share/java/jnacl.jar")
KEYRING = Path("/usr/share/keyrings/debian-archive-keyring.gpg")
INSTALL_LIMIT = 120  # seconds

VERSIONS: dict[str, list[str]] = {}
"""What was run, by program, as each said itself."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if HERE in item.path.parents:
            item.add_marker(pytest.mark.interop)
            item.add_marker(pytest.mark.slow)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    if VERSIONS:
        terminalreporter.section("interoperability")
        for told in VERSIONS.values():
            terminalreporter.write_line(", ".join(told))


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
def node(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """The command that runs the Node program."""
    if not shutil.which("node") or not shutil.which("npm"):
        cannot_be_had("there is no node or no npm", "install Node.js 18 or later, with npm")
    folder = tmp_path_factory.mktemp("npm")
    install = ["npm", "install", "--prefix", str(folder), "--ignore-scripts", "--no-audit"]
    run([*install, "--no-fund", "--fetch-retries=1", NPM_PACKAGE], folder)
    program = shutil.copy(PROGRAMS / "client.js", folder)  # node looks for packages next to it
    return ["node", str(program)]


@pytest.fixture(scope="session")
def old_java(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """The command that runs the Java program on JeroMQ 0.3, which Debian 12 and 13 have."""
    needs_java()
    remedy = "install libjeromq-java of Debian 12 or 13"
    if not JEROMQ.exists():
        cannot_be_had(f"there is no {JEROMQ}", remedy)
    if not bundle_version(JEROMQ).startswith("0.3."):
        cannot_be_had(f"{JEROMQ} is {bundle_version(JEROMQ)}, not 0.3", remedy)
    return compiled([JEROMQ], tmp_path_factory.mktemp("old_java"))


@pytest.fixture(scope="session")
def java(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """The command that runs the Java program on a JeroMQ that speaks ZMTP 3.

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
    return compiled(jars, folder)


def needs_java() -> None:
    if not shutil.which("java") or not shutil.which("javac"):
        cannot_be_had("there is no java or no javac", "install a JDK (default-jdk-headless)")


def bundle_version(jar: Path) -> str:
    """The version that a jar's manifest tells."""
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


def compiled(jars: list[Path], folder: Path) -> list[str]:
    """Compile the Java program; returns the command that runs it."""
    path = ":".join(map(str, jars))
    program = str(PROGRAMS / "Client.java")
    run(["javac", "-nowarn", "-cp", path, "-d", str(folder), program], folder)
    return ["java", "-cp", f"{path}:{folder}", "Client"]


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
