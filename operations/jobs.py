"""Jobs on a host: started so that they outlive the connection, watched by short commands."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Generator
from io import BytesIO
from typing import Any, cast

from pyinfra.api import FactBase, FileUploadCommand, FunctionCommand, QuoteString, StringCommand
from pyinfra.api.command import PyinfraCommand
from pyinfra.api.exceptions import FactProcessError
from pyinfra.api.host import Host
from pyinfra.api.state import State

from llamafleet.layout import USER
from operations.run import HostRun

# pyinfra's command line makes time.sleep yield to the other hosts (gevent).
POLL_SECONDS = 5.0
SAY_SECONDS = 15.0
UNPRIVILEGED = (f"--property=User={USER}", "--property=NoNewPrivileges=yes")
PACKAGE_MANAGER = ("--property=KillMode=mixed", "--property=TimeoutStopSec=30min")
"""Stopped, or at a shutdown, the job alone is told, and it lets the package manager end."""
LOST_LIMIT = 6
"""Polls without an answer, each with an attempt to reconnect, before the host is given up."""


class JobStatus(FactBase[dict[str, Any]]):
    """Where a job stands: state, progress and stamp."""

    def command(self, python: str, zipapp: str, folder: str) -> StringCommand:
        return StringCommand(
            QuoteString(python), QuoteString(zipapp), "status --dir", QuoteString(folder)
        )

    @staticmethod
    def default() -> dict[str, Any]:
        return {}

    def process(self, output: list[str]) -> dict[str, Any]:
        try:
            return cast("dict[str, Any]", json.loads("\n".join(output)))
        except ValueError as error:
            raise FactProcessError(f"status of a job is not JSON: {output[:3]}") from error


def upload_config(
    run: HostRun, folder: str, config: dict[str, Any], *, root: bool = False
) -> Generator[PyinfraCommand]:
    """Put config.json into the job's folder, which belongs to the account that runs the job."""
    own = f"-o {USER} -g {USER}" if run.settings.scope == "system" and not root else ""
    yield StringCommand("install -d -m 755", own, QuoteString(folder))
    yield FileUploadCommand(
        BytesIO(json.dumps(config, indent=1, sort_keys=True).encode()), f"{folder}/config.json"
    )
    yield StringCommand("chmod 644", QuoteString(f"{folder}/config.json"))
    # A stamp of an earlier attempt would be read as this one's end.
    yield StringCommand(
        "rm -f", QuoteString(f"{folder}/stamp.json"), QuoteString(f"{folder}/progress.json")
    )


def start(
    run: HostRun, kind: str, folder: str, python: str, *, root: bool = False
) -> StringCommand:
    """The command that starts a job and returns: a transient unit, or a detached process.

    `root`: the job keeps root's rights, in scope system.
    """
    layout = run.layout()
    job = (QuoteString(layout.zipapp), "job --kind", kind, "--dir", QuoteString(folder))
    key = folder.rsplit("/", 1)[1]
    if run.snapshot().init == "systemd" and run.settings.scope == "system":
        return StringCommand(
            "systemd-run --quiet --collect",
            f"--unit=llamafleet-{kind}-{key}",
            QuoteString(f"--description=llamafleet: {kind} {key}"),
            *(PACKAGE_MANAGER if root else UNPRIVILEGED),
            "--property=Nice=10",
            QuoteString(python),
            *job,
        )
    # A user's own manager ends with the last session unless lingering is on; this does not.
    return StringCommand(
        QuoteString(python),
        QuoteString(layout.zipapp),
        "start --log",
        QuoteString(f"{folder}/start.log"),
        *(() if root else as_account(run)),
        "--",
        *job[1:],
    )


def as_account(run: HostRun) -> tuple[str, ...]:
    """Option of `start` that leaves root behind."""
    return ("--user", USER) if run.settings.scope == "system" else ()


def watch(
    run: HostRun,
    kind: str,
    folder: str,
    python: str,
    *,
    minutes: int,
    done: Callable[[dict[str, Any]], bool],
) -> FunctionCommand:
    """Poll a job until it ends; `done` judges its stamp and returns whether the host goes on."""
    layout = run.layout()

    def poll(state: State, host: Host) -> bool:
        begun = time.monotonic()
        said, lost = 0.0, 0
        last_phase = None
        while True:
            status = host.get_fact(
                JobStatus,
                python=python,
                zipapp=layout.zipapp,
                folder=folder,
                _ignore_errors=True,
            )
            progress = status.get("progress") or {}
            if not status:
                lost += 1
                if lost > LOST_LIMIT:
                    run.fail(
                        f"{kind}: the connection to {run.name} is lost, the job goes on there; "
                        f"expected an answer within {LOST_LIMIT} attempts; next: run the same "
                        "command again, it attaches to the job"
                    )
                    return False
                reconnect(host)
            elif status["state"] in ("ok", "failed"):
                run.reread()
                return done(status["stamp"])
            elif status["state"] == "dead" or (
                status["state"] == "absent" and time.monotonic() - begun > 30
            ):
                run.fail(
                    f"{kind}: the job on {run.name} is gone without a stamp (killed or rebooted); "
                    f"expected {folder}/stamp.json; next: read {folder}/{kind}.log there, "
                    "then run the same command again"
                )
                return False
            else:
                lost = 0
            now = time.monotonic()
            if now - begun > minutes * 60:
                run.fail(
                    f"{kind}: still running after {minutes} minutes on {run.name}; it was left "
                    f"running; next: read {folder}/{kind}.log there, or raise the time limit"
                )
                return False
            if progress and (progress.get("phase") != last_phase or now - said > SAY_SECONDS):
                said, last_phase = now, progress.get("phase")
                run.say(_line(kind, progress))
            time.sleep(1.0 if now - begun < 10 else POLL_SECONDS)

    return FunctionCommand(poll, (), {})


def reconnect(host: Host) -> None:
    """One attempt, after a pause; `host.connected` says whether it worked."""
    time.sleep(POLL_SECONDS)
    try:
        host.disconnect()
    except Exception:  # A dead session may fail in any way while it is closed.
        host.connected = False
    host.connect(show_errors=False)


def _line(kind: str, progress: dict[str, Any]) -> str:
    elapsed = int(progress.get("updated", 0) - progress.get("started", 0))
    counter = f"[{progress['step']}/{progress['steps']}] " if progress.get("steps") else ""
    return f"{kind} {counter}{progress.get('phase', '')}, {elapsed // 60}m{elapsed % 60:02d}s"
