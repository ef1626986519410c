"""Jobs on a host: told what to do, and started so that they outlive the connection."""

from __future__ import annotations

import json
from collections.abc import Callable, Generator
from dataclasses import asdict
from io import BytesIO

from pyinfra.api import FileUploadCommand, QuoteString, StringCommand
from pyinfra.api.command import PyinfraCommand

from llamafleet.layout import AS_ACCOUNT, USER
from llamafleet.plans.plan import JobPlan
from llamafleet.protocol.job import PATH, PROGRESS, STAMP, JobConfig, Stamp
from operations.run import HostRun
from operations.watch import watch

UNPRIVILEGED = (f"--property=User={USER}", "--property=NoNewPrivileges=yes")
PACKAGE_MANAGER = ("--property=KillMode=mixed", "--property=TimeoutStopSec=30min")
"""Stopped, or at a shutdown, the job alone is told, and it lets the package manager end."""


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
    yield StringCommand("install -d -m 755", QuoteString(job.config.rpartition("/")[0]))
    yield FileUploadCommand(
        BytesIO(json.dumps(asdict(config), indent=1, sort_keys=True).encode()), job.config
    )
    yield StringCommand("chmod 644", QuoteString(job.config))
    yield forget_last(job)


def forget_last(job: JobPlan) -> StringCommand:
    """A stamp of an earlier attempt would be read as this one's end."""
    files = (QuoteString(f"{job.folder}/{name}") for name in (STAMP, PROGRESS))
    return StringCommand("rm -f", *files)


def start(run: HostRun, job: JobPlan) -> StringCommand:
    """The command that starts a job and returns: a transient unit, or a detached process."""
    layout = run.layout()
    told = ("--config", QuoteString(job.config), "--dir", QuoteString(job.folder))
    argv = ("job --kind", job.kind, *told)
    if run.snapshot().init == "systemd" and run.settings.scope == "system":
        return StringCommand(
            "systemd-run --quiet --collect",
            f"--unit=llamafleet-{job.kind}-{job.key}",
            QuoteString(f"--description=llamafleet: {job.kind} {job.key}"),
            *(PACKAGE_MANAGER if job.root else UNPRIVILEGED),
            "--property=Nice=10",
            QuoteString(job.python),
            "-I",
            QuoteString(layout.zipapp),
            *argv,
        )
    # A user's own manager ends with the last session unless lingering is on; this does not.
    return StringCommand(
        *(() if job.root else as_account(run)),
        QuoteString(job.python),
        "-I",
        QuoteString(layout.zipapp),
        "start --log",
        QuoteString(f"{job.folder}/start.log"),
        "--",
        *argv,
    )


def as_account(run: HostRun) -> tuple[str, ...]:
    """What leaves root and its environment behind, before a command."""
    if run.settings.scope == "user":
        return ()
    return ("env", "-i", f"PATH={PATH}", *AS_ACCOUNT)
