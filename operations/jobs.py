"""Jobs on a host: started so that they outlive the connection, watched by short commands."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Generator
from dataclasses import asdict, dataclass
from io import BytesIO

from pyinfra.api import FactBase, FileUploadCommand, FunctionCommand, QuoteString, StringCommand
from pyinfra.api.command import PyinfraCommand
from pyinfra.api.exceptions import FactProcessError
from pyinfra.api.host import Host
from pyinfra.api.state import State as PyinfraState

from llamafleet import sandbox
from llamafleet.layout import USER
from llamafleet.plans.plan import JobPlan
from llamafleet.protocol.job import (
    CONFIG,
    PROGRESS,
    STAMP,
    JobConfig,
    JobStatus,
    Kind,
    Progress,
    Stamp,
    State,
    log_name,
)
from llamafleet.received import Unreadable, received_text
from operations.run import HostRun

# pyinfra's command line makes time.sleep yield to the other hosts (gevent).
POLL_SECONDS = 5.0
SAY_SECONDS = 15.0
START_SECONDS = 30.0
"""Time in which a job that was started must have told something."""
LOST_LIMIT = 6
"""Polls without an answer, each with an attempt to reconnect, before the host is given up."""


class StatusOfJob(FactBase[JobStatus | None]):
    """Where a job stands: state, progress and stamp. None: no answer."""

    def command(self, python: str, zipapp: str, folder: str) -> StringCommand:
        return StringCommand(
            QuoteString(python), QuoteString(zipapp), "status --dir", QuoteString(folder)
        )

    @staticmethod
    def default() -> JobStatus | None:
        return None

    def process(self, output: list[str]) -> JobStatus:
        status = received_text(JobStatus, "\n".join(output))
        if isinstance(status, Unreadable):
            raise FactProcessError(f"status of a job: {status.reason}")
        return status


def carry_out(
    run: HostRun, job: JobPlan, config: JobConfig, done: Callable[[Stamp], bool]
) -> Generator[PyinfraCommand]:
    """Start the job unless it runs already, and wait for it; `done` judges its stamp."""
    if job.start:
        yield from upload_config(run, job, config)
        yield start(run, job)
    yield watch(run, job, done)


def upload_config(run: HostRun, job: JobPlan, config: JobConfig) -> Generator[PyinfraCommand]:
    """Put config.json into the job's folder, which belongs to the account that runs the job."""
    own = f"-o {USER} -g {USER}" if run.settings.scope == "system" and not job.root else ""
    yield StringCommand("install -d -m 755", own, QuoteString(job.folder))
    path = f"{job.folder}/{CONFIG}"
    yield FileUploadCommand(
        BytesIO(json.dumps(asdict(config), indent=1, sort_keys=True).encode()), path
    )
    yield StringCommand("chmod 644", QuoteString(path))
    yield forget_last(job)


def forget_last(job: JobPlan) -> StringCommand:
    """A stamp of an earlier attempt would be read as this one's end."""
    files = (QuoteString(f"{job.folder}/{name}") for name in (STAMP, PROGRESS))
    return StringCommand("rm -f", *files)


def start(run: HostRun, job: JobPlan) -> StringCommand:
    """The command that starts a job and returns: a transient unit, or a detached process."""
    layout = run.layout()
    argv = ("job --kind", job.kind, "--dir", QuoteString(job.folder))
    if run.snapshot().init == "systemd" and run.settings.scope == "system":
        kind: sandbox.Kind = "packages" if job.root else "build"
        return StringCommand(
            "systemd-run --quiet --collect",
            f"--unit=llamafleet-{job.kind}-{job.key}",
            QuoteString(f"--description=llamafleet: {job.kind} {job.key}"),
            *map(QuoteString, sandbox.transient(kind, layout, run.snapshot().systemd)),
            "--property=Nice=10",
            QuoteString(job.python),
            QuoteString(layout.zipapp),
            *argv,
        )
    # A user's own manager ends with the last session unless lingering is on; this does not.
    return StringCommand(
        QuoteString(job.python),
        QuoteString(layout.zipapp),
        "start --log",
        QuoteString(f"{job.folder}/start.log"),
        *(() if job.root else as_account(run)),
        "--",
        *argv,
    )


def as_account(run: HostRun) -> tuple[str, ...]:
    """Option of `start` that leaves root behind."""
    return ("--user", USER) if run.settings.scope == "system" else ()


def watch(run: HostRun, job: JobPlan, done: Callable[[Stamp], bool]) -> FunctionCommand:
    """Poll a job until it ends; `done` judges its stamp and returns whether the host goes on."""
    where = {"python": job.python, "zipapp": run.layout().zipapp, "folder": job.folder}

    def poll(state: PyinfraState, host: Host) -> bool:
        begun, lost = time.monotonic(), 0
        wait = _Wait(run.name, f"{job.folder}/{log_name(job.kind)}", job.minutes)
        said = _Said(run, job.kind)
        while True:
            status = host.get_fact(StatusOfJob, **where, _ignore_errors=True)
            lost = 0 if status else lost + 1
            waited = time.monotonic() - begun
            if status and status.stamp:
                run.reread()
                return done(status.stamp)
            if problem := wait.problem(status, lost, waited):
                run.fail(f"{job.kind}: {problem}")
                return False
            if status is None:
                reconnect(host)
            elif status.progress:
                said.tell(status.progress)
            time.sleep(1.0 if waited < 10 else POLL_SECONDS)

    return FunctionCommand(poll, (), {})


@dataclass(frozen=True)
class _Wait:
    """For how long a job is waited for."""

    host: str
    log: str
    minutes: int

    def problem(self, status: JobStatus | None, lost: int, waited: float) -> str:
        """Why it is waited for no longer; "": it is. `lost`: polls in a row without an answer."""
        again = f"next: read {self.log} there, then run the same command again"
        if lost > LOST_LIMIT:
            return (
                f"the connection to {self.host} is lost, the job goes on there; expected an answer "
                f"within {LOST_LIMIT} attempts; next: run the same command again, it attaches to "
                "the job"
            )
        if status and status.state == "dead" and status.unreadable:
            return (
                f"found a stamp on {self.host} that can't be read ({status.unreadable}); expected "
                f"the one that the job writes at its end; {again}"
            )
        if status and self._gone(status.state, waited):
            return (
                f"the job on {self.host} is gone without a stamp (killed or rebooted); "
                f"expected one; {again}"
            )
        if waited > self.minutes * 60:
            return (
                f"still running after {self.minutes} minutes on {self.host}; it was left running; "
                f"next: read {self.log} there, or raise the time limit"
            )
        return ""

    def _gone(self, state: State, waited: float) -> bool:
        return state == "dead" or (state == "absent" and waited > START_SECONDS)


class _Said:
    """What was said of a job's progress: each phase once, and a line every SAY_SECONDS."""

    def __init__(self, run: HostRun, kind: Kind) -> None:
        self._run, self._kind = run, kind
        self._phase: str | None = None
        self._at = 0.0

    def tell(self, progress: Progress) -> None:
        now = time.monotonic()
        if progress.phase != self._phase or now - self._at > SAY_SECONDS:
            self._at, self._phase = now, progress.phase
            self._run.say(_line(self._kind, progress))


def reconnect(host: Host) -> None:
    """One attempt, after a pause; `host.connected` says whether it worked."""
    time.sleep(POLL_SECONDS)
    try:
        host.disconnect()
    except Exception:  # A dead session may fail in any way while it is closed.
        host.connected = False
    host.connect(show_errors=False)


def _line(kind: Kind, progress: Progress) -> str:
    # A host's clock may say anything.
    elapsed = int(min(max(progress.updated - progress.started, 0.0), 1e9))
    counter = f"[{progress.step}/{progress.steps}] " if progress.steps else ""
    return f"{kind} {counter}{progress.phase}, {elapsed // 60}m{elapsed % 60:02d}s"
