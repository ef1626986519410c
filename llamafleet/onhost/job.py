"""One run of a job on a host: its lock, progress, commands and stamp."""

from __future__ import annotations

import contextlib
import fcntl
import os
import resource
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from threading import Lock
from types import FrameType
from typing import Any, Generic, TextIO, TypeVar

from llamafleet.onhost.diagnose import OF_JOBS, diagnose
from llamafleet.protocol.decode import DecodeError
from llamafleet.protocol.diagnose import error_lines
from llamafleet.protocol.job import (
    LOCK,
    PROGRESS,
    STAMP,
    JobConfig,
    JobError,
    Kind,
    Product,
    Progress,
    Retry,
    Stamp,
    log_name,
    machine_id,
    read_json,
    remove_partial,
    start_ticks,
    status,
    write_json,
    write_stamp,
)
from llamafleet.protocol.redact import redacted

EXIT_FAILED, EXIT_USAGE = 1, 2
EXIT_BUSY = 75
"""EX_TEMPFAIL of sysexits.h: another process holds the lock of the job, or of its kind."""
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
    """progress.json: written at every change of phase, and else once a second at most.

    Of several threads the last word stands.
    """

    def __init__(self, folder: Path, kind: Kind, key: str) -> None:
        self._path = folder / PROGRESS
        self._lock = Lock()
        self._written = 0.0
        pid = os.getpid()
        self._told = Progress(
            kind=kind, key=key, pid=pid, start_ticks=start_ticks(pid), started=time.time()
        )

    def phase(self, name: str, line: str = "") -> None:
        with self._lock:
            said = redacted(line[:200])
            self._told = replace(self._told, phase=name, step=0, steps=0, line=said)
            self._write()

    def again(self, retry: Retry) -> None:
        with self._lock:
            self._told = replace(self._told, retry=retry)

    def step(self, step: int, steps: int, line: str = "") -> None:
        with self._lock:
            self._told = replace(self._told, step=step, steps=steps, line=redacted(line[:200]))
            if time.monotonic() - self._written >= 1.0:
                self._write()

    def _write(self) -> None:
        self._written = time.monotonic()
        self._told = replace(self._told, updated=time.time())
        # Worth nothing after a loss of power.
        write_json(self._path, asdict(self._told), durable=False)


class Job:
    """One run of a job, as its worker sees it."""

    def __init__(self, kind: Kind, folder: Path, key: str) -> None:
        self.kind = kind
        self.folder = folder
        self.key = key
        self.log_path = folder / log_name(kind)
        self.started = time.time()
        self.phases: dict[str, float] = {}
        """Seconds by phase, in the order in which the phases began."""
        self.notes: list[str] = []
        """What to know of it though it ends well, a line each."""
        self.current_phase = ""
        self.progress = ProgressFile(folder, kind, key)
        self.retry: Retry | None = None
        self.log_begin = 0
        """Bytes of the log that an earlier attempt wrote."""
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

    def begin_log(self) -> None:
        """An empty log in place of whatever lies there; for owner and group alone."""
        self.log_path.unlink(missing_ok=True)
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
        os.close(os.open(self.log_path, flags, 0o640))

    def log(self, text: str) -> None:
        """Append lines of the job's own to its log."""
        with self._append() as log:
            log.write(redacted(text.rstrip("\n")) + "\n")

    def again(self, retry: Retry) -> None:
        """Begin a second attempt, the running phase included."""
        self.retry = retry
        self.log(f"llamafleet: {retry}")
        self.log_begin = self.log_path.stat().st_size
        self.progress.again(retry)
        self.phase(self.current_phase, str(retry))

    def read_log(self) -> str:
        """First LOG_LIMIT bytes of this attempt: the first error is what matters."""
        if not self.log_path.is_file():
            return ""
        with self.log_path.open("rb") as log:
            log.seek(self.log_begin)
            return log.read(LOG_LIMIT).decode("utf-8", errors="replace")

    def _append(self) -> TextIO:
        return self.log_path.open("a", encoding="utf-8", buffering=1)

    def stamp(self, inputs: dict[str, Any], error: JobError | None = None) -> Stamp:
        """How it ends, as things are now."""
        self.finish()
        finished = time.time()
        # Children only: the runner's own share is the reading of lines.
        usage = resource.getrusage(resource.RUSAGE_CHILDREN)
        return Stamp(
            kind=self.kind,
            key=self.key,
            ok=error is None,
            started=self.started,
            finished=finished,
            wall_s=round(finished - self.started, 3),
            cpu_s=round(usage.ru_utime + usage.ru_stime, 3),
            max_rss_mib=round(usage.ru_maxrss / 1024, 1),  # Linux counts KiB: getrusage(2)
            phases=self.phases,
            inputs=inputs,
            log=str(self.log_path),
            error=error,
            retry=self.retry,
            machine_id=machine_id(),
            notes=tuple(map(redacted, self.notes)),
        )

    def command(
        self,
        argv: Sequence[str],
        *,
        env: dict[str, str],
        on_line: Callable[[str], object] = lambda line: None,
        keep: Callable[[str], object] = lambda line: True,
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
            with self._append() as log:
                for line in process.stdout:
                    if keep(line):
                        log.write(redacted(line))
                    on_line(line.rstrip("\n"))
            code = process.wait()
        finally:
            if process:
                end_session(process)
        judge(argv, code)


@contextlib.contextmanager
def beside(
    argv: Sequence[str], *, env: dict[str, str], cwd: Path, limit_s: float
) -> Iterator[None]:
    """Run a command while the block runs, and `limit_s` longer at most.

    For what may as well be left undone: its output and its status count for nothing. Raises
    JobFailed where it can't be started.
    """
    with STOPPER.hold():
        process = _spawn(argv, env, cwd, subprocess.DEVNULL)
    try:
        yield
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(limit_s)
    finally:
        end_session(process)


def judge(argv: Sequence[str], status: int) -> None:
    """Raise JobFailed unless a command ended with 0; `status` below 0: by that signal."""
    name = Path(argv[0]).name
    if status < 0:
        raise JobFailed(f"{name} was ended by {signal.Signals(-status).name}")
    if status:
        raise JobFailed(f"{name} ended with status {status}")


def _spawn(
    argv: Sequence[str], env: dict[str, str], cwd: Path, output: int = subprocess.PIPE
) -> subprocess.Popen[str]:
    """Start a command in a session of its own, stdout and stderr in one `output`."""
    try:
        return subprocess.Popen(
            argv,
            stdin=subprocess.DEVNULL,
            stdout=output,
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
def locked(path: Path, what: str) -> Iterator[str]:
    """Hold the lock in `path` for `what`; "", or who holds it where another process does.

    It ends with the process, however that ends: what an old holder wrote there is no lock.
    """
    flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
    with os.fdopen(os.open(path, flags, 0o644), "r+", encoding="utf-8", errors="replace") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield lock.readline(200).strip() or "a process that has not said yet which it is"
        else:
            since = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
            with contextlib.suppress(OSError):  # of a full disk; the lock holds all the same
                lock.truncate(0)
                print(f"{what}, process {os.getpid()}, since {since}", file=lock, flush=True)
            yield ""


def make_folder(folder: Path) -> None:
    """Make a job's folder, which no other account can have prepared. Raises JobFailed."""
    if os.geteuid() == 0:
        refuse_foreign(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        found = folder.lstat()
    except OSError as error:
        raise JobFailed(f"can't make the job's folder: {error}; next: deploy again") from error
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.geteuid():
        raise JobFailed(
            f"{folder}: found {'a folder' if stat.S_ISDIR(found.st_mode) else 'no folder'} of uid "
            f"{found.st_uid}; expected a folder of uid {os.geteuid()}; next: move it away"
        )


def refuse_foreign(path: Path) -> None:
    """Raise JobFailed where another account than root could have put a part of `path` there."""
    for place in {*path.parents, path, *path.resolve().parents, path.resolve()}:
        try:
            found = place.lstat()
        except (FileNotFoundError, NotADirectoryError):
            continue
        sticky = found.st_mode & stat.S_ISVTX
        link = stat.S_ISLNK(found.st_mode)
        writable = found.st_mode & (stat.S_IWGRP | stat.S_IWOTH) and not (sticky or link)
        if found.st_uid != 0 or writable:
            raise JobFailed(
                f"{place}: found uid {found.st_uid}, mode {stat.S_IMODE(found.st_mode):o}; "
                "expected what root alone can write, as a job of root works there; "
                "next: deploy again"
            )


@dataclass(frozen=True)
class Worker(Generic[Config]):
    """What a kind of job does."""

    kind: Kind
    read: Callable[[object], Config]
    """Its settings from the object in its configuration. Raises DecodeError."""
    work: Callable[[Job, Config], Product]
    done: Callable[[Config], bool]
    """The product of an earlier, successful run is still there: nothing is to be done."""


def run(worker: Worker[Config], told: Path, folder: Path) -> int:
    """Run the job of the configuration `told` in `folder` and stamp it; the exit status.

    0: done; 1: failed; 2: it can't have that folder; 75: another process runs this job, or one of
    its kind on this host; 128 + n: stopped by signal n.
    """
    # What is built is for every user.
    os.umask(0o022)
    try:
        make_folder(folder)
    except JobFailed as problem:
        print(f"{worker.kind}: {problem}", file=sys.stderr)
        return EXIT_USAGE
    name = f"{worker.kind} {folder.name}"
    with locked(folder / LOCK, name) as holder:
        if holder:
            print(f"{worker.kind}: another process runs this job: {holder}", file=sys.stderr)
            return EXIT_BUSY
        config = _config(worker, told)
        key = folder.name if isinstance(config, JobFailed) else config.key
        job = Job(worker.kind, folder, key)
        if not isinstance(config, JobFailed) and _done(worker, config, folder):
            print(f"{worker.kind}: done already, see {folder / STAMP}")
            return 0
        with locked(folder.parent / LOCK, name) as other:
            if other:
                return _busy(job, config, other)
            STOPPER.install()
            return _run(job, worker, config)


def _done(worker: Worker[Config], config: Config, folder: Path) -> bool:
    return status(folder).state == "ok" and worker.done(config)


def _busy(job: Job, config: Config | JobFailed, holder: str) -> int:
    """Stamp a job that does not begin, as one of its kind runs on this host."""
    found = f"found another {job.kind} on this host ({holder}); expected one at a time"
    advice = "next: run the same command again when it has ended"
    error = JobError(phase="start", lines=(f"{found}; {advice}",))
    inputs = {} if isinstance(config, JobFailed) else asdict(config.inputs)
    write_stamp(job.folder, job.stamp(inputs, error), None)
    print(error.lines[0], file=sys.stderr)
    return EXIT_BUSY


def _config(worker: Worker[Config], path: Path) -> Config | JobFailed:
    """The job's settings, or what is wrong with them."""
    try:
        if os.geteuid() == 0:
            refuse_foreign(path)
        return worker.read(read_json(path))
    except JobFailed as problem:
        return problem
    except DecodeError as error:
        return JobFailed(
            f"{path}: found no settings of a {worker.kind} job ({_unread(path) or error}); "
            "expected those of this version; next: deploy again"
        )


def _unread(path: Path) -> str:
    """Why a file can't be opened; "": it can."""
    try:
        os.close(os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC))
    except OSError as error:
        return error.strerror or str(error)
    return ""


def _run(job: Job, worker: Worker[Config], config: Config | JobFailed) -> int:
    code = 0
    product: Product | None = None
    error: JobError | None = None
    try:
        (job.folder / STAMP).unlink(missing_ok=True)
        remove_partial(job.folder)
        job.phase("start")
        job.begin_log()
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
    write_stamp(job.folder, job.stamp(inputs, error), None if error else product)
    if error:
        print("\n".join(error.lines), file=sys.stderr)
    return code


def _error(job: Job, failure: Exception) -> JobError:
    """The lines worth reading and, where a signature fits, cause and fix."""
    named = isinstance(failure, JobFailed)
    message = redacted(str(failure) if named else f"{type(failure).__name__}: {failure}")
    text = job.read_log()
    lines = error_lines(text)
    if job.retry:
        lines.insert(0, f"the first attempt: {job.retry.line} ({job.retry})")
    # As one text: what the job itself says of it stands last, where the log says it was.
    match = diagnose(f"{text}\n{message}", stages=OF_JOBS)
    return JobError(
        phase=job.current_phase,
        lines=(message, *lines),
        log=str(job.log_path),
        signature=match.id if match else None,
        cause=match.cause if match else None,
        fix=match.fix if match else None,
    )
