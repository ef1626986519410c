"""The protocol of a long job: one folder with config.json, progress.json, <kind>.log, stamp.json.

A job outlives the connection that started it. Whoever asks later reads the folder: progress.json
while it runs, stamp.json once it has ended, well or badly. stamp.json is removed when a run begins,
so a stamp always belongs to the last run.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import FrameType
from typing import Any

from llamafleet.onhost.diagnose import OF_JOBS, diagnose
from llamafleet.protocol.diagnose import error_lines

VERSION = 1
EXIT_FAILED = 1
EXIT_BUSY = 75
"""EX_TEMPFAIL of sysexits.h: another runner holds the job's lock."""
PROCESS_NAME = "llamafleet-host"
"""Part of the command line of every process of the zipapp; tells a job from a reused pid."""
NICE = 10
SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
LOG_LIMIT = 64 * 2**20
GRACE_S = 5.0
"""Time between SIGTERM and SIGKILL for a job's children."""

Data = dict[str, Any]


class JobFailed(Exception):
    """The job can't go on; the text is the first line of the error that people read."""


class Stopped(BaseException):
    """A signal asked the job to end."""

    def __init__(self, signum: int) -> None:
        super().__init__(f"stopped by {signal.Signals(signum).name}")
        self.signum = signum


class Stopper:
    """Turns the first of SIGNALS into Stopped, raised wherever the job is just then."""

    def __init__(self) -> None:
        self._held = False
        self._pending: int | None = None

    def install(self) -> None:
        for signum in SIGNALS:
            signal.signal(signum, self._stop)

    def _stop(self, signum: int, frame: FrameType | None) -> None:
        if self._held:
            self._pending = signum
            return
        self.ignore()
        raise Stopped(signum)

    def ignore(self) -> None:
        """From here on nothing interrupts the writing of the stamp."""
        for signum in SIGNALS:
            signal.signal(signum, signal.SIG_IGN)

    @contextlib.contextmanager
    def hold(self) -> Iterator[None]:
        """Put a signal off: one that came while a child was being started would lose the child.

        May be nested. Raises Stopped for what came, once the outermost has ended.
        """
        before, self._held = self._held, True
        try:
            yield
        finally:
            self._held = before
        if self._pending is not None:
            self._stop(self._pending, None)


STOPPER = Stopper()


def write_json(path: Path, data: Data) -> None:
    """Write `data` with "version" so that a reader sees the old file or the new one, whole."""
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    partial.write_text(json.dumps({"version": VERSION} | data, indent=1) + "\n", encoding="utf-8")
    partial.replace(path)


def read_json(path: Path) -> Data | None:
    """The object in `path`; None where there is no file or no JSON object in it."""
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return data if isinstance(data, dict) else None


def start_ticks(pid: object) -> int | None:
    """When a process started, in clock ticks since boot (field 22 of its stat, proc(5)).

    Tells a process from a later one of the same pid, also after a reboot. The boot id would not:
    in a container it can read differently inside a sandboxed unit (measured, systemd-nspawn).
    """
    try:
        # The second field may hold blanks and brackets.
        fields = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(") ")[2].split()
        return int(fields[19])
    except (OSError, ValueError, IndexError):
        return None


def alive(progress: Data | None) -> bool:
    """The process that wrote `progress` runs still: same pid, same start, a process of ours."""
    if not progress or not isinstance(progress.get("start_ticks"), int):
        return False
    pid = progress.get("pid")
    if start_ticks(pid) != progress["start_ticks"]:
        return False
    try:
        cmdline = Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return False
    return PROCESS_NAME.encode() in cmdline


def status(folder: Path) -> Data:
    """State of the job in `folder`: running, ok, failed, dead (ended without a stamp) or absent."""
    progress = read_json(folder / "progress.json")
    stamp = read_json(folder / "stamp.json")
    if stamp:
        state = "ok" if stamp.get("ok") is True else "failed"
    elif alive(progress):
        state = "running"
    else:
        state = "dead" if progress else "absent"
    return {"state": state, "progress": progress, "stamp": stamp}


class Progress:
    """progress.json: written at every change of phase, and else once a second at most."""

    def __init__(self, folder: Path, kind: str, key: str) -> None:
        self._path = folder / "progress.json"
        self._written = 0.0
        self._data: Data = {
            "kind": kind,
            "key": key,
            "pid": os.getpid(),
            "start_ticks": start_ticks(os.getpid()),
            "started": time.time(),
            "updated": 0.0,
            "phase": "",
            "step": 0,
            "steps": 0,
            "line": "",
        }

    def phase(self, name: str, line: str = "") -> None:
        self._data |= {"phase": name, "step": 0, "steps": 0, "line": line}
        self._write()

    def step(self, step: int, steps: int, line: str = "") -> None:
        self._data |= {"step": step, "steps": steps, "line": line[:200]}
        if time.monotonic() - self._written >= 1.0:
            self._write()

    def _write(self) -> None:
        self._written = time.monotonic()
        self._data["updated"] = time.time()
        write_json(self._path, self._data)


class Job:
    """One run of a job, as its worker sees it."""

    def __init__(self, kind: str, folder: Path, config: Data) -> None:
        self.kind = kind
        self.folder = folder
        self.config = config
        self.key = str(config.get("key", folder.name))
        self.log_path = folder / f"{kind}.log"
        self.phases: dict[str, float] = {}
        """Seconds by phase, in the order in which the phases began."""
        self.current_phase = ""
        self.progress = Progress(folder, kind, self.key)
        self._since = time.monotonic()

    def phase(self, name: str, line: str = "") -> None:
        """End the running phase and begin `name`; the time of a phase entered twice is added."""
        self._close_phase()
        self.current_phase = name
        self.progress.phase(name, line)
        print(f"{self.kind} {self.key}: {name}", flush=True)

    def _close_phase(self) -> None:
        now = time.monotonic()
        if self.current_phase:
            spent = self.phases.get(self.current_phase, 0.0) + now - self._since
            self.phases[self.current_phase] = round(spent, 3)
        self._since = now

    def finish(self) -> None:
        self._close_phase()

    def log(self, text: str) -> None:
        """Append lines of the job's own to its log."""
        with self.log_path.open("a", encoding="utf-8") as log:
            log.write(text.rstrip("\n") + "\n")

    def command(
        self,
        argv: Sequence[str],
        *,
        env: dict[str, str],
        on_line: Callable[[str], object] = lambda line: None,
        keep: Callable[[str], bool] = lambda line: True,
        cwd: Path | None = None,
    ) -> None:
        """Run a command, its output line by line to the log (where `keep`) and to `on_line`.

        Raises JobFailed where it can't be started or ends with another status than 0. The command
        has its own session, which is ended with everything in it if this call is left early.
        """
        self.log("$ " + " ".join(argv))
        process = None
        try:
            with STOPPER.hold():
                process = _spawn(argv, env, cwd or self.folder)
            assert process.stdout is not None
            with self.log_path.open("a", encoding="utf-8", buffering=1) as log:
                for line in process.stdout:
                    if keep(line):
                        log.write(line)
                    on_line(line.rstrip("\n"))
            code = process.wait()
        finally:
            if process:
                end_session(process)
        if code < 0:
            raise JobFailed(f"{Path(argv[0]).name} was ended by {signal.Signals(-code).name}")
        if code:
            raise JobFailed(f"{Path(argv[0]).name} ended with status {code}")


def _spawn(argv: Sequence[str], env: dict[str, str], cwd: Path) -> subprocess.Popen[str]:
    """Start a command in a session of its own, stdout and stderr in one pipe."""
    try:
        return subprocess.Popen(
            argv,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env=env,
            cwd=cwd,
            start_new_session=True,
            encoding="utf-8",
            errors="replace",
        )
    except OSError as error:
        raise JobFailed(f"can't run {argv[0]}: {error}") from error


def end_session(process: subprocess.Popen[str]) -> None:
    """End a child that leads its own session, and everything in it.

    Not only its process group: ninja gives each compiler a group of its own, and passes SIGTERM on
    to them if it is left the time.
    """
    if process.poll() is None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGTERM)
    end = time.monotonic() + GRACE_S
    while (members := session_members(process.pid)) and time.monotonic() < end:
        process.poll()
        time.sleep(0.05)
    for pid in members:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    process.wait()


def session_members(session: int) -> list[int]:
    """Pids of the live processes of a session; zombies are none."""
    members = []
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        try:
            stat = (entry / "stat").read_text(encoding="utf-8", errors="replace")
        except OSError:
            continue
        # proc(5): the name in parentheses may hold blanks; state, ppid, pgrp, session follow it.
        state, _, _, sid = stat.rpartition(")")[2].split()[:4]
        if int(sid) == session and state != "Z":
            members.append(int(entry.name))
    return members


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[bool]:
    """Hold the job's lock; False where another process holds it."""
    with (folder / "lock").open("a") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
        else:
            yield True


def run(kind: str, folder: Path, work: Callable[[Job], Data], done: Callable[[Data], bool]) -> int:
    """Run the job in `folder` and stamp it; the exit status of the process.

    `work` does it and returns what the stamp shall hold beside the common part; `done(config)`
    tells whether the product of an earlier, successful run is still there, so that nothing is to
    be done. 0: done; 1: failed; 75: another process runs this job; 128 + n: stopped by signal n.
    """
    with locked(folder) as mine:
        if not mine:
            print(f"{kind}: another process runs the job in {folder}", file=sys.stderr)
            return EXIT_BUSY
        config = read_json(folder / "config.json") or {}
        if status(folder)["state"] == "ok" and done(config):
            print(f"{kind}: done already, see {folder / 'stamp.json'}")
            return 0
        STOPPER.install()
        return _run(Job(kind, folder, config), work)


def _run(job: Job, work: Callable[[Job], Data]) -> int:
    started = time.time()
    code = 0
    outcome: Data = {"ok": True}
    try:
        (job.folder / "stamp.json").unlink(missing_ok=True)
        job.phase("start")
        job.log_path.write_text("", encoding="utf-8")
        os.setpriority(os.PRIO_PROCESS, 0, max(NICE, os.getpriority(os.PRIO_PROCESS, 0)))
        if job.config.get("version") != VERSION or job.config.get("kind") != job.kind:
            raise JobFailed(
                f"{job.folder}/config.json: found no settings of a {job.kind} job; expected "
                f'"version": {VERSION}, "kind": "{job.kind}"; next: deploy again'
            )
        outcome |= work(job)
        STOPPER.ignore()
    except Stopped as stop:
        code = 128 + stop.signum
        outcome = {"ok": False, "error": _stopped(job, stop)}
    except Exception as error:
        STOPPER.ignore()
        code = EXIT_FAILED
        text = str(error) if isinstance(error, JobFailed) else f"{type(error).__name__}: {error}"
        outcome = {"ok": False, "error": _error(job, text)}
    _write_stamp(job, started, outcome)
    if code:
        print("\n".join(outcome["error"]["lines"]), file=sys.stderr)
    return code


def _write_stamp(job: Job, started: float, outcome: Data) -> None:
    job.finish()
    finished = time.time()
    # Children only: the runner's own share is the reading of lines.
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    stamp: Data = {
        "kind": job.kind,
        "key": job.key,
        "started": started,
        "finished": finished,
        "wall_s": round(finished - started, 3),
        "cpu_s": round(usage.ru_utime + usage.ru_stime, 3),
        "max_rss_mib": round(usage.ru_maxrss / 1024, 1),  # Linux counts KiB: getrusage(2)
        "phases": job.phases,
        "inputs": job.config.get("inputs", {}),
        "log": str(job.log_path),
    }
    write_json(job.folder / "stamp.json", stamp | outcome)


def _stopped(job: Job, stop: Stopped) -> Data:
    return {
        "phase": job.current_phase,
        "lines": [str(stop)],
        "log": str(job.log_path),
        "signature": None,
        "cause": None,
        "fix": None,
    }


def _read_log(path: Path) -> str:
    """The log's first LOG_LIMIT characters; the first error is what matters."""
    if not path.is_file():
        return ""
    with path.open(encoding="utf-8", errors="replace") as log:
        return log.read(LOG_LIMIT)


def _error(job: Job, message: str) -> Data:
    """The stamp's "error": the lines worth reading and, where a signature fits, cause and fix."""
    text = _read_log(job.log_path)
    lines = error_lines(text)
    match = diagnose(message, "\n".join(lines), text, stages=OF_JOBS)
    return {
        "phase": job.current_phase,
        "lines": [message, *lines],
        "log": str(job.log_path),
        "signature": match.id if match else None,
        "cause": match.cause if match else None,
        "fix": match.fix if match else None,
    }
