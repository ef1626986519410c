"""One run of a job on a host: its lock, progress, commands and stamp."""

from __future__ import annotations

import contextlib
import fcntl
import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from types import FrameType
from typing import Any, Generic, TypeVar

from llamafleet.onhost.diagnose import OF_JOBS, diagnose
from llamafleet.protocol.decode import DecodeError
from llamafleet.protocol.diagnose import error_lines
from llamafleet.protocol.job import (
    CONFIG,
    LOCK,
    PROGRESS,
    STAMP,
    JobConfig,
    JobError,
    Kind,
    Product,
    Progress,
    Stamp,
    log_name,
    read_json,
    start_ticks,
    status,
    write_json,
    write_stamp,
)

EXIT_FAILED = 1
EXIT_BUSY = 75
"""EX_TEMPFAIL of sysexits.h: another runner holds the job's lock."""
NICE = 10
SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
LOG_LIMIT = 64 * 2**20
GRACE_S = 5.0
"""Time between SIGTERM and SIGKILL for a job's children."""

Config = TypeVar("Config", bound=JobConfig)


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


class ProgressFile:
    """progress.json: written at every change of phase, and else once a second at most."""

    def __init__(self, folder: Path, kind: Kind, key: str) -> None:
        self._path = folder / PROGRESS
        self._written = 0.0
        pid = os.getpid()
        self._told = Progress(
            kind=kind, key=key, pid=pid, start_ticks=start_ticks(pid), started=time.time()
        )

    def phase(self, name: str, line: str = "") -> None:
        self._told = replace(self._told, phase=name, step=0, steps=0, line=line)
        self._write()

    def step(self, step: int, steps: int, line: str = "") -> None:
        self._told = replace(self._told, step=step, steps=steps, line=line[:200])
        if time.monotonic() - self._written >= 1.0:
            self._write()

    def _write(self) -> None:
        self._written = time.monotonic()
        self._told = replace(self._told, updated=time.time())
        write_json(self._path, asdict(self._told))


class Job:
    """One run of a job, as its worker sees it."""

    def __init__(self, kind: Kind, folder: Path, key: str) -> None:
        self.kind = kind
        self.folder = folder
        self.key = key
        self.log_path = folder / log_name(kind)
        self.phases: dict[str, float] = {}
        """Seconds by phase, in the order in which the phases began."""
        self.current_phase = ""
        self.progress = ProgressFile(folder, kind, key)
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
    with (folder / LOCK).open("a") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
        else:
            yield True


@dataclass(frozen=True)
class Worker(Generic[Config]):
    """What a kind of job does."""

    kind: Kind
    read: Callable[[object], Config]
    """Its settings from the object in config.json. Raises DecodeError."""
    work: Callable[[Job, Config], Product]
    done: Callable[[Config], bool]
    """The product of an earlier, successful run is still there: nothing is to be done."""


def run(worker: Worker[Config], folder: Path) -> int:
    """Run the job in `folder` and stamp it; the exit status of the process.

    0: done; 1: failed; 75: another process runs this job; 128 + n: stopped by signal n.
    """
    with locked(folder) as mine:
        if not mine:
            print(f"{worker.kind}: another process runs the job in {folder}", file=sys.stderr)
            return EXIT_BUSY
        config = _config(worker, folder)
        key = folder.name
        if not isinstance(config, JobFailed):
            key = config.key
            if status(folder).state == "ok" and worker.done(config):
                print(f"{worker.kind}: done already, see {folder / STAMP}")
                return 0
        STOPPER.install()
        return _run(Job(worker.kind, folder, key), worker, config)


def _config(worker: Worker[Config], folder: Path) -> Config | JobFailed:
    """The job's settings, or what is wrong with them."""
    try:
        return worker.read(read_json(folder / CONFIG))
    except DecodeError as error:
        return JobFailed(
            f"{folder / CONFIG}: found no settings of a {worker.kind} job ({error}); expected "
            "those of this version; next: deploy again"
        )


def _run(job: Job, worker: Worker[Config], config: Config | JobFailed) -> int:
    started = time.time()
    code = 0
    product: Product | None = None
    error: JobError | None = None
    try:
        (job.folder / STAMP).unlink(missing_ok=True)
        job.phase("start")
        job.log_path.write_text("", encoding="utf-8")
        os.setpriority(os.PRIO_PROCESS, 0, max(NICE, os.getpriority(os.PRIO_PROCESS, 0)))
        if isinstance(config, JobFailed):
            raise config
        product = worker.work(job, config)
        STOPPER.ignore()
    except Stopped as stop:
        code = 128 + stop.signum
        error = JobError(phase=job.current_phase, lines=(str(stop),), log=str(job.log_path))
    except Exception as failure:
        STOPPER.ignore()
        code = EXIT_FAILED
        error = _error(job, failure)
    inputs = {} if isinstance(config, JobFailed) else asdict(config.inputs)
    write_stamp(job.folder, _stamp(job, started, inputs, error), None if error else product)
    if error:
        print("\n".join(error.lines), file=sys.stderr)
    return code


def _stamp(job: Job, started: float, inputs: dict[str, Any], error: JobError | None) -> Stamp:
    job.finish()
    finished = time.time()
    # Children only: the runner's own share is the reading of lines.
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return Stamp(
        kind=job.kind,
        key=job.key,
        ok=error is None,
        started=started,
        finished=finished,
        wall_s=round(finished - started, 3),
        cpu_s=round(usage.ru_utime + usage.ru_stime, 3),
        max_rss_mib=round(usage.ru_maxrss / 1024, 1),  # Linux counts KiB: getrusage(2)
        phases=job.phases,
        inputs=inputs,
        log=str(job.log_path),
        error=error,
    )


def _read_log(path: Path) -> str:
    """The log's first LOG_LIMIT characters; the first error is what matters."""
    if not path.is_file():
        return ""
    with path.open(encoding="utf-8", errors="replace") as log:
        return log.read(LOG_LIMIT)


def _error(job: Job, failure: Exception) -> JobError:
    """The lines worth reading and, where a signature fits, cause and fix."""
    named = isinstance(failure, JobFailed)
    message = str(failure) if named else f"{type(failure).__name__}: {failure}"
    text = _read_log(job.log_path)
    lines = error_lines(text)
    match = diagnose(message, "\n".join(lines), text, stages=OF_JOBS)
    return JobError(
        phase=job.current_phase,
        lines=(message, *lines),
        log=str(job.log_path),
        signature=match.id if match else None,
        cause=match.cause if match else None,
        fix=match.fix if match else None,
    )
