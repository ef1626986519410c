"""`python -m tests.build_llama`: build llama-cpp-python for the CPU once, print its interpreter.

For the tests that load a model: LLAMAFLEET_TEST_PYTHON=$(.venv/bin/python -m tests.build_llama).
The build is the product's own, by snapshot, plan and job, and is kept in LLAMAFLEET_TEST_CACHE.
"""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

from llamafleet.facts.snapshot import parse, render
from llamafleet.layout import Layout
from llamafleet.plans.make import make_plan
from llamafleet.protocol.job import CONFIG
from llamafleet.settings import Settings
from llamafleet.zipapps import host_zipapp, pip_zipapp
from tests.e2e.booted import CACHE


def main() -> int:
    """Build unless it is built; the job's exit status."""
    layout = Layout("user", f"{CACHE}/llama", f"{CACHE}/llama", f"{CACHE}/llama", f"{CACHE}/llama")
    Path(layout.prefix).mkdir(parents=True, exist_ok=True)
    read = subprocess.run(
        ["sh", "-c", render(layout, ())], capture_output=True, text=True, check=True
    )
    settings = Settings(scope="user", accelerator="cpu")
    plan = make_plan("tests", settings, parse(read.stdout.splitlines()), layout)
    for problem in plan.problems:
        print(problem, file=sys.stderr)
    if plan.build is None:
        return 1
    Path(layout.zipapp).write_bytes(host_zipapp())
    Path(layout.pip).write_bytes(pip_zipapp())
    config = plan.build.config
    folder = Path(layout.job("build", config.key))
    folder.mkdir(parents=True, exist_ok=True)
    (folder / CONFIG).write_text(json.dumps(asdict(config)))
    argv = [config.python, layout.zipapp, "job", "--kind", "build", "--dir", str(folder)]
    done = subprocess.run(argv, stdout=sys.stderr, check=False)
    if done.returncode == 0:
        print(f"{config.prefix}/bin/python")
    return done.returncode


if __name__ == "__main__":
    sys.exit(main())
