"""The process that serves, as its parent starts it, and what the two tell each other."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections import deque
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from typing import IO, Any

from llamafleet.onhost.verify.child import OPENED, ROOT
from llamafleet.onhost.verify.hidden import VARIABLE
from llamafleet.protocol.decode import DecodeError, decode
from llamafleet.protocol.result import Backend
from llamafleet.protocol.serve import Placement, ServeConfig, State

LAST_LINES = 400
"""Of the child's log that are kept for whoever asks why it died."""
LONGEST = 2000
"""Bytes of a line that are kept."""
QUIET = b"<6>"
"""Before a line of the child's log that only the diagnosis reads: sd-daemon(3), SD_INFO."""
END_S = 10.0
"""For a killed process to be gone. In a call of a driver that hangs no signal ends it."""
_BOOTSTRAP = (
    "import sys; sys.path.insert(0, sys.argv[1]); "
    "from llamafleet.onhost.serve import server; sys.exit(server.main())"
)


@dataclass(frozen=True)
class Told:
    """What the child is told, in one line of its standard input: no other process reads that."""

    config: ServeConfig
    placement: Placement
    """The one in force."""
    reduced: bool
    """It is smaller than the settings ask for."""
    backend: Backend
    fingerprint: str
    """Of the build."""
    socket: int
    """The descriptor that it listens at."""
    key: str | None
    """None: everybody may ask."""


@dataclass(frozen=True)
class Said:
    """What the child says, a line of its standard output."""

    state: State
    reason: str = ""
    load_s: float | None = None


class Child:
    """One of these processes."""

    def __init__(self, told: Told, environment: Mapping[str, str]) -> None:
        """Start it. `environment`: all of its own."""
        self.process = subprocess.Popen(
            [sys.executable, "-I", "-c", _BOOTSTRAP, ROOT],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=dict(environment),
            pass_fds=(*OPENED, told.socket),
        )
        self.lines: deque[str] = deque(maxlen=LAST_LINES)
        self._following = threading.Thread(target=self._follow, daemon=True)
        self._following.start()
        with suppress(BrokenPipeError):
            stdin = _open(self.process.stdin)
            stdin.write(json.dumps(asdict(told)).encode() + b"\n")
            stdin.flush()

    def _follow(self) -> None:
        """Pass its log on, and keep the end of it."""
        errors = _open(self.process.stderr)
        while line := errors.readline(LONGEST):
            told = line[len(QUIET) :] if (quiet := line.startswith(QUIET)) else line
            self.lines.append(told.decode("utf-8", errors="replace").rstrip("\n"))
            if not quiet:
                with suppress(OSError):
                    os.write(2, line)

    def said(self) -> Iterator[Said]:
        """All that it says, until it ends."""
        for line in _open(self.process.stdout):
            with suppress(ValueError, DecodeError):
                yield decode(Said, json.loads(line))

    def ended(self) -> int | None:
        """Its exit status, below 0 by a signal; None where no signal ends it. Called when it has
        closed its output."""
        try:
            status = self.process.wait(END_S)
        except subprocess.TimeoutExpired:
            self.process.kill()
            try:
                status = self.process.wait(END_S)
            except subprocess.TimeoutExpired:
                return None
        # A grandchild may have the pipe still.
        self._following.join(END_S)
        return status


def _open(pipe: IO[bytes] | None) -> IO[bytes]:
    assert pipe is not None
    return pipe


def environment(
    fixed: Mapping[str, str], build: Mapping[str, str], gpus: tuple[str, ...]
) -> dict[str, str]:
    """`build`: what the verification gave to llama.cpp. By UUID: CUDA and NVML number the GPUs in
    different orders."""
    limit = {VARIABLE: ",".join(gpus)} if gpus else {}
    return {**fixed, **build, **limit}


def read_told(line: str) -> Told:
    """Raises DecodeError."""
    data: Any = json.loads(line)
    return decode(Told, data)
