"""trioreq with two processes at one address, as `trioreq-server` runs them."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable

from harness.processes import ROOT, end_with_parent

PROCESSES = 2


def serve(handler: str, listening: Callable[[int], None]) -> None:
    """Serve until killed."""
    name = "benchmarks.peers.trioreq_server:" + handler.replace("-", "_")
    command = [sys.executable, "-m", "trioreq_cli", name, "--app-dir", str(ROOT)]
    command += ["--processes", str(PROCESSES), "--bind", "tcp://127.0.0.1:0"]
    command += ["--log-format", "text"]
    with subprocess.Popen(
        command, stderr=subprocess.PIPE, text=True, preexec_fn=end_with_parent
    ) as server:
        assert server.stderr is not None
        port = 0
        serving = 0
        for line in server.stderr:
            if "serving on " in line:
                port = int(line.rpartition(":")[2])
            serving += line.endswith(" serves\n")
            if serving == PROCESSES:
                listening(port)
                serving = 0
