"""A service on a host: `serve --config FILE`. It watches the process that serves.

llama.cpp ends its process at a CUDA error, so what tells systemd, people and the next start how it
ended is a process of its own, of the standard library alone.
"""

from __future__ import annotations

import argparse
import os
import resource
import signal
import socket
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from types import FrameType

from llamafleet.onhost import oom as on_host
from llamafleet.onhost.diagnose import diagnose
from llamafleet.onhost.serve import gate, memory, reduction, settings
from llamafleet.onhost.serve.child import BEAT_S, MISSED, Child, Said, Told, environment
from llamafleet.onhost.serve.notify import notify
from llamafleet.onhost.serve.notify import status as status_line
from llamafleet.onhost.verify import llama_log
from llamafleet.onhost.verify.child import fixed
from llamafleet.protocol import oom
from llamafleet.protocol.job import start_ticks, write_json
from llamafleet.protocol.serve import Placement, Reduction, ServeConfig, State, Status, status_file

EXIT_OK = 0
"""A signal ended it."""
EXIT_FAILED = 1
"""A restart may help."""
EXIT_USAGE = 2
"""None does: the settings, or what they name, must change."""
GRACE_S = 15.0
"""Beyond the drain, for a child that was asked to end."""
STAGES = ("import", "runtime", "detection")
"""Of the known failures that end a process which serves."""


@dataclass
class Service:
    """One start of a service."""

    config: ServeConfig
    fingerprint: str = ""
    placement: Placement | None = None
    load_s: float | None = None
    state: State = "loading"
    reason: str = ""
    stopping: bool = False
    killed: bool = False
    """By us: the drain took too long, or a second signal came."""
    child: Child | None = None
    gpus: tuple[str, ...] = ()
    _told: Status | None = None

    def run(self) -> int:
        """Serve until a signal or a failure ends it; the exit status."""
        for signum in (signal.SIGTERM, signal.SIGINT):
            signal.signal(signum, self._stop)
        try:
            key = settings.read_key(self.config)
            verification = settings.read_verify(self.config)
            listening = settings.listen(self.config)
        except settings.Refused as problem:
            self.turn("failed", str(problem))
            return EXIT_USAGE
        with listening:
            code = self._serve(listening, key, verification.environment)
        if code == EXIT_OK:
            self.turn("stopped")
        return code

    def _serve(self, listening: socket.socket, key: str | None, given: dict[str, str]) -> int:
        """Start the child, and once more where an out of memory brings a smaller placement."""
        config = self.config
        while not self.stopping:
            verdict = gate.judge(config)
            if not verdict.allowed or verdict.proof is None:
                self.turn("held", verdict.reason)
                return gate.EXIT_HELD
            proven = verdict.proof.inputs
            self.fingerprint, self.gpus = proven.fingerprint, verdict.gpus
            reduced = reduction.read(config)
            if reduced is None:
                reduction.forget(config)
            self.placement = reduced.now if reduced else config.placement
            self.turn("loading", _why(reduced) or verdict.reason)
            told = Told(
                config=config,
                placement=self.placement,
                reduced=reduced is not None,
                backend="cpu" if proven.driver is None else "cuda",
                fingerprint=self.fingerprint,
                socket=listening.fileno(),
                key=key,
            )
            made = fixed(Path(config.folder))
            code = self._watch(Child(told, environment(made, given, verdict.gpus)), reduced)
            if code is not None:
                return code
        return EXIT_OK

    def _watch(self, child: Child, reduced: Reduction | None) -> int | None:
        """Follow one child to its end; the exit status, None: start another one."""
        self.child = child
        if self.stopping:
            child.process.terminate()
        said, killed_before = Said("loading"), memory.killed()
        for said in child.said():
            if said.load_s is not None:
                self.load_s = said.load_s
            # A failure is told with its cause, once the child has ended.
            if said.state != "failed":
                self.turn(said.state, said.reason or _why(reduced))
        status = child.ended()
        self.child = None
        if self.stopping and (self.killed or status in (0, -signal.SIGTERM)):
            return EXIT_OK
        if status == -signal.SIGKILL and memory.killed() > killed_before:
            self.turn("failed", memory.TOLD)
            return EXIT_FAILED
        lines = list(child.lines)
        if self.config.on_oom == "reduce" and reduced is None:
            made = reduction.proposed(self.config, lines, self.gpus)
            if made:
                reduction.write(self.config, made)
                print(f"llamafleet: {_one_line(_why(made))}", file=sys.stderr, flush=True)
                return None
        return self._failed(said, status, child)

    def _failed(self, said: Said, status: int | None, child: Child) -> int:
        """Tell why; the exit status."""
        found = oom.read(child.lines)
        if found is None:
            self.turn("failed", _cause(said, status, child))
            return EXIT_FAILED
        assert self.placement is not None
        smaller = on_host.reduced(self.config, self.placement, found, self.gpus)
        fits = f"set {_placed(smaller)}" if smaller else "use a smaller model"
        self.turn("failed", f'{found}; next: {fits}, or on_oom = "reduce"')
        # While it loads, the same settings end the same way.
        return EXIT_FAILED if self.load_s is not None else EXIT_USAGE

    def _stop(self, signum: int, frame: FrameType | None) -> None:
        """End the child; a second signal, or the time that a drain has, kills it."""
        child = self.child
        if self.stopping and child:
            self._kill(signum, frame)
        elif child:
            child.process.terminate()
            signal.signal(signal.SIGALRM, self._kill)
            signal.setitimer(signal.ITIMER_REAL, self.config.limits.drain_s + GRACE_S)
        self.stopping = True
        notify("STOPPING=1")

    def _kill(self, signum: int, frame: FrameType | None) -> None:
        if self.child:
            self.killed = True
            self.child.process.kill()

    def turn(self, state: State, reason: str = "") -> None:
        """Tell a state to whoever asks: the file, systemd, the journal."""
        # The account's files and llama.cpp's log are quoted in it.
        reason = _one_line(reason)
        self.state, self.reason = state, reason
        told = Status(
            version=1,
            profile=self.config.profile,
            state=state,
            at=time.time(),
            pid=os.getpid(),
            reason=reason,
            fingerprint=self.fingerprint,
            placement=self.placement,
            load_s=self.load_s if state in ("ready", "draining") else None,
            start_ticks=start_ticks(os.getpid()),
        )
        if self._told and replace(told, at=self._told.at) == self._told:
            return
        self._told = told
        try:
            write_json(status_file(self.config), asdict(told))
        except OSError as error:
            print(f"llamafleet: can't write its state: {error}", file=sys.stderr, flush=True)
            # No word is better than one that is true no more; a full disk bears this.
            with suppress(OSError):
                status_file(self.config).unlink(missing_ok=True)
        text = f"{state}: {reason}" if reason else state
        notify(*(("READY=1",) if state == "ready" else ()), status_line(text))
        print(f"llamafleet: {text}", file=sys.stderr, flush=True)


def _why(reduced: Reduction | None) -> str:
    """What a reduction changed, and why."""
    if reduced is None:
        return ""
    return f"reduced from {_placed(reduced.was)} to {_placed(reduced.now)}: {reduced.reason}"


def _one_line(text: str) -> str:
    """Without what a terminal would obey."""
    return " ".join(llama_log.printable(text).split())


def _placed(placement: Placement) -> str:
    return ", ".join(f"{name} = {value}" for name, value in asdict(placement).items())


def _cause(said: Said, status: int | None, child: Child) -> str:
    """Its own word, how it ended, what is known of it."""
    known = diagnose("\n".join(child.lines), stages=STAGES)
    if child.hung:
        ended = (
            f"the server: found no word of it for {MISSED * BEAT_S:.0f} s; expected one every "
            f"{BEAT_S:.0f} s; next: sudo dmesg"
        )
    elif said.state == "failed":
        ended = said.reason
    elif status is None:
        ended = "the server: found a process that no signal ends; next: reboot"
    elif status < 0:
        ended = f"the server: found it ended by {_named(-status)}"
    else:
        ended = f"the server: found it ended with status {status}"
    words = llama_log.last_words("\n".join(child.loud))
    last = "" if said.state == "failed" else f"; log: {words}"
    return f"{ended}{last}" + (f"; {known}; next: {known.fix}" if known else "")


def _named(signum: int) -> str:
    """Those of real time have no name but for the first and the last."""
    with suppress(ValueError):
        return signal.Signals(signum).name
    return f"signal {signum}"


def main(argv: Sequence[str]) -> int:
    """0: a signal ended it; 1: it failed, a restart may help; 2: none does; 69: it is held."""
    parser = argparse.ArgumentParser(prog="llamafleet-host.pyz serve", description=__doc__)
    parser.add_argument("--config", type=Path, required=True, help="what it serves, as JSON")
    options = parser.parse_args(argv)
    # The key and what clients ask are in the memory of both processes.
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    try:
        config = settings.load(options.config)
    except settings.Refused as problem:
        print(f"llamafleet: {problem}", file=sys.stderr)
        return EXIT_USAGE
    return Service(config).run()
