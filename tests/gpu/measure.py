"""Runs on a host with a GPU, and what they measured: one JSON file, filled test by test."""

from __future__ import annotations

import json
import os
import subprocess
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from llamafleet.history.store import read_result
from llamafleet.layout import Layout
from llamafleet.protocol.result import Check, Result
from llamafleet.protocol.verify import LATEST
from tests.e2e.runs import REPOSITORY, Run, pyinfra

LAYOUT = Layout.system() if os.geteuid() == 0 else Layout.user(str(Path.home()))
REPORT = Path(os.environ.get("LLAMAFLEET_GPU_REPORT", REPOSITORY / "results/gpu.json"))
STORED = REPOSITORY / "results/local"
"""Results of this machine on the controller, which is the same one."""
SHARED = REPOSITORY / "shared-wheels"
"""The wheels that hosts share, on the controller."""
WHEELHOUSE = os.environ.get("LLAMAFLEET_GPU_WHEELHOUSE")
"""Folder of a wheelhouse: the host is then provisioned without a network."""
OLDEST_WHEELHOUSE = os.environ.get("LLAMAFLEET_GPU_WHEELHOUSE_OLDEST")
"""The same for the oldest release that may be built."""


def deploy(*, wheelhouse: str | None = WHEELHOUSE, **data: object) -> Run:
    """The real command on the default inventory, this machine."""
    if wheelhouse:
        data["wheelhouse"] = wheelhouse
    options = [o for k, v in data.items() for o in ("--data", f"{k}={_text(v)}")]
    return pyinfra(REPOSITORY, "-y", *options, "inventory", "deploy.py", limit=1800)


def uninstall() -> Run:
    """The real command on the default inventory, this machine."""
    return pyinfra(REPOSITORY, "-y", "inventory", "uninstall.py", limit=600)


def _text(value: object) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def result() -> Result:
    """What the last run fetched."""
    return _read(STORED / LATEST)


def _read(file: Path) -> Result:
    found = read_result(file)
    assert isinstance(found, Result), found
    return found


def checks(found: Result) -> list[Check]:
    """Of the host and of each GPU."""
    return [*found.checks, *(check for gpu in found.gpus for check in gpu.checks)]


def check(found: Result, name: str) -> Check:
    """The worst of that name."""
    order = ("fail", "skip", "busy", "warn", "pass")
    named = [check for check in checks(found) if check.name == name]
    return min(named, key=lambda check: order.index(check.status))


def record(name: str, **figures: object) -> None:
    """Add figures under `name` to the report."""
    REPORT.parent.mkdir(parents=True, exist_ok=True)
    known = json.loads(REPORT.read_text()) if REPORT.exists() else {}
    known[name] = {"at": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()), **figures}
    REPORT.write_text(json.dumps(known, indent=1) + "\n")


def verify(
    folder: Path,
    *arguments: str,
    env: dict[str, str] | None = None,
    prefix_command: Sequence[str] = (),
    inputs: Mapping[str, object] | None = None,
    alone: bool = False,
    **changes: object,
) -> Result:
    """The verification by hand, with its settings changed, its result in `folder`.

    `env`: of llama.cpp's process; the caller's own does not reach it. `alone`: of the first GPU,
    where the fault is not one of a single GPU. By whoever runs the tests.
    """
    config = json.loads(Path(LAYOUT.verify_config).read_text())
    if alone:
        config["inputs"]["gpus"] = config["inputs"]["gpus"][:1]
        config["gpus"] = [name.rpartition(" ")[2] for name in config["inputs"]["gpus"]]
    config |= {"results": str(folder / "results"), "job": str(folder / "run"), **changes}
    config["inputs"] |= inputs or {}
    config["environment"] |= env or {}
    config["as_account"] = []
    path = folder / "verify.json"
    path.write_text(json.dumps(config))
    python = f"{config['prefix']}/bin/python"
    argv = [python, "-I", LAYOUT.zipapp, "verify", "--config", str(path), *arguments]
    done = subprocess.run(
        [*prefix_command, *argv],
        capture_output=True,
        text=True,
        check=False,
        timeout=900,
    )
    found = _read(folder / "results" / LATEST)
    assert (done.returncode == 0) == found.good, done.stdout + done.stderr
    return found


def reds(found: Result) -> list[str]:
    return [check.name for _, check in found.red]


def synthesise(shape: str, kind: str, path: str) -> None:
    """Write a synthetic model with the host's own tools."""
    argv = [f"{LAYOUT.current}/bin/python", LAYOUT.zipapp, "synth"]
    subprocess.run([*argv, "--shape", shape, "--type", kind, "-o", path], check=True, timeout=600)
