"""Watching a job on a host: short commands until it has ended, by whatever connection there is."""

from __future__ import annotations

import shlex
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from pyinfra.api import FactBase, FunctionCommand, QuoteString, StringCommand
from pyinfra.api.exceptions import FactProcessError
from pyinfra.api.host import Host
from pyinfra.api.state import State as PyinfraState

from llamafleet.connection import LONGEST, PATIENCE_S
from llamafleet.layout import USER, VERIFY_UNIT, job_unit
from llamafleet.plans.plan import JobPlan
from llamafleet.protocol.job import JobStatus, Progress, Stamp, State, log_name
from llamafleet.received import Unreadable, received_text
from llamafleet.terminal import printable
from operations import lock
from operations.files import systemctl
from operations.rights import rights_of
from operations.run import HostRun

# pyinfra's command line makes time.sleep yield to the other hosts (gevent).
POLL_SECONDS = 5.0
SAY_SECONDS = 15.0
START_SECONDS = 30.0
"""Time in which a job that was started must have told something."""
POLL_LIMIT_S = 30
"""For one poll: a host that compiles on all its cores is slow. A silent one ends it sooner."""
LONGEST_PAUSE_S = 16.0
"""Between two polls of a host that does not answer."""
CAUSE = "cause?"
"""In a text: the place for why a job left no stamp."""
END_LIMIT_S = 20
"""For the question how a job ended that left no word."""


class StatusOfJob(FactBase[JobStatus | None]):
    """Where a job stands: state, progress and stamp. None: no answer."""

    def command(self, rights: str, python: str, zipapp: str, folder: str) -> StringCommand:
        program = StringCommand(QuoteString(python), "-I", QuoteString(zipapp))
        return StringCommand(rights, program, "status --dir", QuoteString(folder))

    @staticmethod
    def default() -> JobStatus | None:
        return None

    def process(self, output: list[str]) -> JobStatus:
        # A login shell may print something of its own first.
        begin = next((at for at, line in enumerate(output) if line.startswith("{")), 0)
        status = received_text(JobStatus, "\n".join(output[begin:]))
        if isinstance(status, Unreadable):
            raise FactProcessError(f"status of a job: {status.reason}")
        return status


class EndOfJob(FactBase["End | None"]):
    """What systemd, the log of its start and the boot say of a job that left no stamp."""

    def command(self, unit: str, systemctl: str, log: str, rights: str, since_s: int) -> str:
        user, of = (
            ("--user ", "_SYSTEMD_USER_UNIT") if "--user" in systemctl else ("", "_SYSTEMD_UNIT")
        )
        journal = f"journalctl {user}-q --no-pager -o cat --since -{since_s}s"
        shown = "LoadState,Result,ExecMainStatus"
        return (
            "ticks=$(sed 's/.*) //' /proc/1/stat | cut -d' ' -f20); "
            "began=$(sed -n 's/^btime //p' /proc/stat); "
            # In hundredths of a second on every architecture: proc(5), USER_HZ.
            'echo "boot $((began + ticks / 100))"; '
            f"{systemctl} show -p {shown} {unit} 2>/dev/null | sed 's/^/unit /'; "
            # What the job itself said, and what systemd said of it beside start and end.
            f"{{ {journal} -n 2 {of}={unit}; {journal} -n 2 -p notice -u {unit}; }} "
            "2>/dev/null | sed 's/^/log /'; "
            f"timeout 5 {rights or 'env'} tail -c 600 {shlex.quote(log)} "
            "2>/dev/null | sed 's/^/start /'; true"
        )

    @staticmethod
    def default() -> End | None:
        return None

    def process(self, output: list[str]) -> End:
        told: dict[str, list[str]] = {"boot": [], "unit": [], "log": [], "start": []}
        for line in output:
            word, _, text = line.partition(" ")
            if word in told and text.strip():
                told[word].append(printable(text.strip().expandtabs())[:LONGEST])
        boot = told["boot"][0] if told["boot"] else ""
        return End(
            # A figure of a host: more digits are no time.
            boot=float(boot) if boot.isdecimal() and len(boot) < 13 else None,
            unit=dict(line.split("=", 1) for line in told["unit"] if "=" in line),
            log=tuple(dict.fromkeys(told["log"]))[-4:],
            start=tuple(told["start"][-3:]),
        )


@dataclass(frozen=True)
class End:
    """How a job may have ended."""

    boot: float | None = None
    """Seconds since 1970 at which the host's first process began."""
    unit: dict[str, str] = field(default_factory=dict)
    """Properties of its unit; of one that is gone the result says nothing."""
    log: tuple[str, ...] = ()
    """Last lines of the unit's journal."""
    start: tuple[str, ...] = ()
    """Last lines that were written where it was started without a unit."""

    def cause(self, began: float | None) -> str:
        """In words. `began`: when the job began, by its own clock."""
        if self.boot is not None and began is not None and self.boot > began:
            return "the host has rebooted since it began"
        result = self.unit.get("Result", "") if self.unit.get("LoadState") == "loaded" else ""
        parts = []
        if result not in ("", "success"):
            parts.append(f"its unit ended by {result}, status {self.unit.get('ExecMainStatus')}")
        if self.log:
            parts.append(f"systemd says: {' / '.join(self.log)}")
        if self.start:
            parts.append(f"its start said: {' / '.join(self.start)}")
        return "; ".join(parts) or "why is not known"


def unit_of(job: JobPlan) -> str:
    """The systemd unit that a job runs as."""
    return VERIFY_UNIT if job.kind == "verify" else job_unit(job.kind, job.key)


def watch(
    run: HostRun,
    job: JobPlan,
    done: Callable[[Stamp], bool],
    stalled_s: float | None = None,
) -> FunctionCommand:
    """Poll a job until it ends; `done` judges its stamp and returns whether the host goes on.

    A host that does not answer is tried again for PATIENCE_S, less and less often, and then given
    up: all other hosts wait for it here. So is a job that tells nothing new for `stalled_s`
    seconds, as one whose processes are stopped; None: its own limit of time is enough.
    """

    systemd = run.snapshot().init == "systemd"

    def poll(state: PyinfraState, host: Host) -> bool:
        run.waits_for = job
        wait = _Wait(run.name, job, time.monotonic(), stalled_s)
        said, pause = _Said(run, job), 1.0
        while True:
            status = host.get_fact(StatusOfJob, **_where(run, job))
            wait.hear(status, time.monotonic())
            run.stop = _stop(run, job, wait.progress, systemd)
            if status and status.stamp:
                run.waits_for = None
                run.reread()
                return done(status.stamp)
            problem = wait.problem(status, time.monotonic(), run.guard.cause or run.guard.words)
            if problem:
                if wait.over(status):
                    run.waits_for = None
                    problem = problem.replace(CAUSE, _cause(run, host, job, wait))
                run.fail(problem, known=wait.over(status))
                return False
            pause = min(pause * 2, LONGEST_PAUSE_S) if status is None else 1.0
            said.tell(status)
            lock.keep(run)
            time.sleep(pause if status is None or wait.young else POLL_SECONDS)

    return FunctionCommand(poll, (), {})


def _stop(run: HostRun, job: JobPlan, progress: Progress | None, systemd: bool) -> str:
    """What ends the job, typed on its host."""
    system = run.settings.scope == "system"
    if systemd and system:
        return f"sudo systemctl stop {unit_of(job)}"
    if systemd and job.kind == "verify":
        return f"systemctl --user stop {unit_of(job)}"
    if progress is None:
        return f"look for it with ps, in {job.folder}"
    # The account tells the pid of its own jobs: it may be anybody's.
    sudo = ("sudo " if job.root else f"sudo -u {USER} ") if system else ""
    return f"{sudo}kill {progress.pid}"


def _where(run: HostRun, job: JobPlan) -> dict[str, object]:
    return {
        # A job's interpreter is not always one that root may run, nor its folder one to look into.
        "rights": " ".join(rights_of(run, job)),
        "python": job.python,
        "zipapp": run.layout().zipapp,
        "folder": job.folder,
        "_timeout": POLL_LIMIT_S,
        "_ignore_errors": True,
    }


def _cause(run: HostRun, host: Host, job: JobPlan, wait: _Wait) -> str:
    """Why a job ended that left no word."""
    end = host.get_fact(
        EndOfJob,
        unit=unit_of(job),
        systemctl=systemctl(run),
        log=f"{job.folder}/start.log",
        rights=" ".join(rights_of(run, job)),
        since_s=int(time.monotonic() - wait.begun) + 5,
        _timeout=END_LIMIT_S,
        _ignore_errors=True,
    )
    return (end or End()).cause(wait.progress.started if wait.progress else None)


@dataclass
class _Wait:
    """For how long, and for what, a job is waited for."""

    host: str
    job: JobPlan
    begun: float
    """Monotonic, as `heard` and `moved`."""
    stalled_s: float | None = None

    def __post_init__(self) -> None:
        self.heard = self.now = self.moved = self.begun
        self.progress: Progress | None = None
        """What it told last."""

    def hear(self, status: JobStatus | None, now: float) -> None:
        self.now = now
        if status:
            self.heard = now
            if status.progress not in (None, self.progress):
                self.progress, self.moved = status.progress, now

    @property
    def young(self) -> bool:
        return self.now - self.begun < 10

    def over(self, status: JobStatus | None) -> bool:
        """It ended without a stamp, or never began; that is known of the host itself."""
        return status is not None and self._gone(status.state)

    def problem(self, status: JobStatus | None, now: float, why: str) -> str:
        """Why it is waited for no longer; "": it is. CAUSE in it is to be filled in.

        `why`: what is known of a status that did not come.
        """
        log = f"{self.job.folder}/{log_name(self.job.kind)}"
        again = f"next: read {log} there, then run the same command again"
        kind, silent = self.job.kind, now - self.heard
        if status is None and silent > PATIENCE_S:
            found = why or "an answer that can't be understood"
            return (
                f"{kind}: found no status of it from {self.host} for {silent:.0f} s ({found}); "
                f"expected one within {PATIENCE_S} s; {self._last_seen}; next: run the same "
                "command again, it attaches to the job"
            )
        if status and status.state == "dead" and status.unreadable:
            return (
                f"{kind}: found a stamp on {self.host} that can't be read "
                f"({status.unreadable}); expected the one that the job writes at its end; "
                f"{again}"
            )
        if status and self._gone(status.state):
            seen = self.progress or status.state == "dead"
            what = "gone without a stamp" if seen else "not there, nor was it seen"
            return (
                f"{kind}: found the job on {self.host} {what} ({CAUSE}); expected it to end "
                f"with a stamp; {again}"
            )
        if now - self.begun > self.job.minutes * 60:
            return (
                f"{kind}: still running after {self.job.minutes} minutes on {self.host}; it was "
                f"left running; next: read {log} there, or raise the time limit"
            )
        still = now - self.moved
        if self.stalled_s is not None and still > self.stalled_s and self.progress:
            return (
                f"{kind}: found no step forward on {self.host} for {still / 60:.0f} minutes "
                f"({_line(self.job, self.progress)}); expected one within "
                f"{self.stalled_s / 60:.0f}, as other hosts wait for it; it was left running; "
                f"{again}, which attaches to it"
            )
        return ""

    @property
    def _last_seen(self) -> str:
        if self.progress is None:
            return "whether the job began is not known"
        at = _line(self.job, self.progress)
        return f"the job ran when the host last answered ({at}), and may go on there"

    def _gone(self, state: State) -> bool:
        return state == "dead" or (state == "absent" and self.now - self.begun > START_SECONDS)


class _Said:
    """What was said of a job's progress: each phase once, and a line every SAY_SECONDS."""

    def __init__(self, run: HostRun, job: JobPlan) -> None:
        self._run, self._job = run, job
        self._phase: str | None = None
        self._at = 0.0
        self._silent = False

    def tell(self, status: JobStatus | None) -> None:
        if (status is None) != self._silent:
            self._silent = status is None
            again = f"no status of the {self._job.kind}; it is asked again for {PATIENCE_S} s"
            self._run.say(again if self._silent else "it answers again", fg="yellow")
        if status is None or status.progress is None:
            return
        now, progress = time.monotonic(), status.progress
        if progress.phase != self._phase or now - self._at > SAY_SECONDS:
            self._at, self._phase = now, progress.phase
            self._run.say(_line(self._job, progress))


def reconnect(run: HostRun) -> bool:
    """One attempt, after a pause, whatever the connection is like; whether it worked."""
    time.sleep(POLL_SECONDS)
    return run.guard.renew()


def _line(job: JobPlan, progress: Progress) -> str:
    # A host's clock may say anything.
    elapsed = int(min(max(progress.updated - progress.started, 0.0), 1e9))
    at = f"{elapsed // 60}m{elapsed % 60:02d}s"
    if job.kind == "model":
        said = f": {progress.line}" if progress.line else ""
        return f"model {job.key} {progress.phase}{said}, {at}"
    counter = f"[{progress.step}/{progress.steps}] " if progress.steps else ""
    return f"{job.kind} {counter}{progress.phase}, {at}"
