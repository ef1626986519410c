"""Jobs on a host: told what to do, and started so that they outlive the connection."""

from __future__ import annotations

import json
from collections.abc import Callable, Generator, Iterable
from dataclasses import asdict

from pyinfra.api import QuoteString, StringCommand
from pyinfra.api.command import PyinfraCommand

from llamafleet import sandbox
from llamafleet.layout import job_unit
from llamafleet.managed import access
from llamafleet.plans.plan import JobPlan
from llamafleet.protocol.job import PROGRESS, STAMP, JobConfig, Stamp
from operations import upload
from operations.rights import as_account, rights_of
from operations.run import HostRun
from operations.watch import watch

__all__ = ["as_account", "carry_out", "discard", "forget_last", "start", "upload_config"]


def carry_out(
    run: HostRun,
    job: JobPlan,
    config: JobConfig,
    done: Callable[[Stamp], bool],
    stalled_s: float | None = None,
) -> Generator[PyinfraCommand]:
    """Start the job unless it runs already, and wait for it; `done` judges its stamp.

    `stalled_s`: see `watch`.
    """
    if job.start:
        yield from upload_config(run, job, config)
        yield start(run, job)
    yield watch(run, job, done, stalled_s)


def upload_config(run: HostRun, job: JobPlan, config: JobConfig) -> Generator[PyinfraCommand]:
    """Put what the job is told where only root writes, and forget how the last attempt ended."""
    layout = run.layout()
    told = json.dumps(asdict(config), indent=1, sort_keys=True).encode()
    # It may name the addresses of a company's servers: others need not read it.
    wanted = access(layout, secret=True)
    yield from upload.write(told, job.config, wanted)
    yield forget_last(run, job)


def forget_last(run: HostRun, job: JobPlan) -> StringCommand:
    """A stamp of an earlier attempt would be read as this one's end."""
    files = (QuoteString(f"{job.folder}/{name}") for name in (STAMP, PROGRESS))
    return StringCommand(*rights_of(run, job), "rm -f --", *files)


def discard(
    run: HostRun, python: str, folder: str, names: Iterable[str], current: str = ""
) -> StringCommand:
    """Remove those entries of a folder of the account that nobody uses, nor `current` points to."""
    program = (QuoteString(python), "-I", QuoteString(run.layout().zipapp), "discard")
    kept = ("--current", QuoteString(current)) if current else ()
    of = ("--versions", QuoteString(folder), *kept, "--", *map(QuoteString, names))
    return StringCommand(*as_account(run), *program, *of)


def start(run: HostRun, job: JobPlan) -> StringCommand:
    """The command that starts a job and returns: a transient unit, or a detached process."""
    layout = run.layout()
    program = StringCommand(QuoteString(job.python), "-I", QuoteString(layout.zipapp))
    argv = StringCommand(
        "job --kind",
        job.kind,
        "--config",
        QuoteString(job.config),
        "--dir",
        QuoteString(job.folder),
    )
    if run.snapshot().init == "systemd" and run.settings.scope == "system":
        kind: sandbox.Kind = "packages" if job.root else "build"
        unit = job_unit(job.kind, job.key)
        return StringCommand(
            # One of an attempt that has told its end may not be gone yet.
            f"systemctl stop {unit} 2>/dev/null; systemctl reset-failed {unit} 2>/dev/null;",
            "systemd-run --quiet --collect",
            f"--unit={unit}",
            QuoteString(f"--description=llamafleet: {job.kind} {job.key}"),
            *map(QuoteString, sandbox.transient(kind, layout, run.snapshot().systemd)),
            "--property=Nice=10",
            program,
            argv,
        )
    # A user's own manager ends with the last session unless lingering is on; this does not.
    log = QuoteString(f"{job.folder}/start.log")
    detached = StringCommand("exec", program, "start --log", log, "--", argv)
    script = StringCommand("umask 022; mkdir -p --", QuoteString(job.folder), "&&", detached)
    return StringCommand(*rights_of(run, job), "sh -c", QuoteString(script))
