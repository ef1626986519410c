"""`python -m tests.build_llama`: build llama-cpp-python for the CPU once, print its interpreter.

For the tests that load a model: LLAMAFLEET_TEST_PYTHON=$(.venv/bin/python -m tests.build_llama).
The build is the product's own, by snapshot, plan and job, and is kept in LLAMAFLEET_TEST_CACHE,
but for one that is to fill the cache of tests/compiled.py.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

from llamafleet.facts.snapshot import parse, render
from llamafleet.layout import Layout
from llamafleet.plans.make import make_plan
from llamafleet.plans.plan import JobPlan, Plan
from llamafleet.protocol.job import BuildConfig
from llamafleet.settings import Settings
from llamafleet.zipapps import host_zipapp, pip_zipapp
from tests import compiled
from tests.e2e.booted import CACHE

PLACE = f"{CACHE}/{'llama-compiled' if compiled.URL else 'llama'}"
LAYOUT = Layout("user", PLACE, PLACE, PLACE, PLACE)


def plan() -> Plan:
    """Of this machine, for the CPU; pip and the zipapp lie where it says."""
    Path(LAYOUT.prefix).mkdir(parents=True, exist_ok=True)
    read = subprocess.run(
        ["sh", "-c", render(LAYOUT, ())], capture_output=True, text=True, check=True
    )
    Path(LAYOUT.zipapp).write_bytes(host_zipapp())
    Path(LAYOUT.pip).write_bytes(pip_zipapp())
    settings = Settings(scope="user", accelerator="cpu", **compiled.SETTINGS)
    return make_plan("tests", settings, parse(read.stdout.splitlines()), LAYOUT)


def main() -> int:
    """Build unless it is built; the job's exit status."""
    if compiled.URL:
        # A build that is there has filled no cache that began after it.
        shutil.rmtree(PLACE, ignore_errors=True)
    made = plan()
    for problem in made.problems:
        print(problem, file=sys.stderr)
    if made.build is None:
        return 1
    if made.build.job and (code := _build(made.build.config, made.build.job, LAYOUT.zipapp)):
        return code
    print(f"{made.build.config.prefix}/bin/python")
    return 0


def _build(config: BuildConfig, job: JobPlan, zipapp: str) -> int:
    config, before = compiled.placed_as_on_a_host(config, Path(LAYOUT.state, "var-lib"))
    told = Path(job.config)
    told.parent.mkdir(parents=True, exist_ok=True)
    told.write_text(json.dumps(asdict(config)))
    told.chmod(0o600)
    argv = [*before, job.python, "-I", zipapp, "job", "--kind", "build"]
    argv += ["--config", job.config, "--dir", job.folder]
    return subprocess.run(argv, stdout=sys.stderr, check=False).returncode


if __name__ == "__main__":
    sys.exit(main())
