"""The process that serves, as its parent starts it, and what the two tell each other."""

from __future__ import annotations

import json
import os
import select
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
BEAT_S = 5.0
"""Between two words of the child, which repeats its last one."""
MISSED = 24
"""Words after which it hangs. Counted and not timed: a host that is suspended, or a frozen group of
processes, misses one."""
QUIET = b"<6>"
"""Before a line of the child's log that only the diagnosis reads: sd-daemon(3), SD_INFO."""
MUTE, UNMUTE = b"<6>mute\n", b"<6>unmute\n"
"""Lines between which all are quiet."""
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
        self.loud: deque[str] = deque(maxlen=LAST_LINES)
        """Those of them that people read."""
        self.hung = False
        """It said nothing for too long."""
        self._following = threading.Thread(target=self._follow, daemon=True)
        self._following.start()
        with suppress(BrokenPipeError):
            stdin = _open(self.process.stdin)
            stdin.write(json.dumps(asdict(told)).encode() + b"\n")
            stdin.flush()

    def _follow(self) -> None:
        """Pass its log on, and keep the end of it."""
        errors = _open(self.process.stderr)
        begins, quiet, muted = True, False, False
        while part := errors.readline(LONGEST):
            if begins and part in (MUTE, UNMUTE):
                muted = part == MUTE
                continue
            if begins:
                quiet = muted or part.startswith(QUIET)
                self._keep(part.removeprefix(QUIET), quiet)
            if not quiet:
                with suppress(OSError):
                    os.write(2, part)
            begins = part.endswith(b"\n")
        if muted:
            # It ended there: these are its last words.
            self.loud.extend(self.lines)

    def _keep(self, line: bytes, quiet: bool) -> None:
        text = line.decode("utf-8", errors="replace").rstrip("\n")
        self.lines.append(text)
        if not quiet:
            self.loud.append(text)

    def said(self) -> Iterator[Said]:
        """All that it says, until it ends; where it hangs it is killed."""
        output, begun, missed = _open(self.process.stdout).fileno(), b"", 0
        while missed < MISSED:
            if not select.select([output], [], [], BEAT_S)[0]:
                missed += 1
                continue
            if not (part := os.read(output, 1 << 16)):
                return
            missed = 0
            *lines, begun = (begun + part).split(b"\n")
            for line in lines:
                with suppress(ValueError, DecodeError, RecursionError):
                    yield decode(Said, json.loads(line))
        self.hung = True
        self.process.kill()

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
