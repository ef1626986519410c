"""The interpreter of a venv with a built llama-cpp-python, for tests that load a model."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest

from llamafleet import zipapps

VARIABLE = "LLAMAFLEET_TEST_PYTHON"
PYTHON = os.environ.get(VARIABLE, "")
needs_llama = pytest.mark.skipif(
    not PYTHON,
    reason=f"no {VARIABLE}: {VARIABLE}=$(.venv/bin/python -m tests.build_llama) builds one",
)
ROOT = Path(__file__).parents[2]


def prefix() -> Path:
    """The venv that the interpreter belongs to."""
    return Path(PYTHON).parents[1]


def library_folder() -> Path:
    return next(prefix().glob("lib/python*/site-packages/llama_cpp/lib"))


def libraries() -> dict[str, str]:
    """As the build writes them into its stamp."""
    return {
        str(path.relative_to(prefix())): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in library_folder().glob("lib*.so")
    }


class Host:
    """The folders of a host below `root`, with a finished build."""

    def __init__(self, root: Path, models: Path) -> None:
        self.root = root
        self.stamp = root / "stamp.json"
        self.results = root / "results"
        self.job = root / "job"
        self.write_stamp(libraries())
        self.config: dict[str, Any] = {
            "version": 1,
            "host": "test",
            "inputs": {
                "fingerprint": "f00",
                "driver": None,
                "gpus": [],
                "model": "synthetic:tiny-q4_0",
                "bench": {"prompt": 32, "gen": 4, "repetitions": 2},
                "context": 512,
            },
            "backend": "cpu",
            "toolkit": None,
            "prefix": str(prefix()),
            "stamp": str(self.stamp),
            "job": str(self.job),
            "results": str(self.results),
            "models": str(models),
            "compute_capabilities": ["8.9"],
            "allow_cpu_only": True,
        }

    def write_stamp(self, listed: dict[str, str]) -> None:
        stamp = {"version": 1, "ok": True, "wall_s": 160.5, "libraries": listed}
        self.stamp.write_text(json.dumps(stamp))

    def verify(
        self, *options: str, env: dict[str, str] | None = None
    ) -> subprocess.CompletedProcess[str]:
        """Run the command as the host's unit does, on one core: a busy machine makes two slower."""
        config, zipapp = self.root / "verify.json", self.root / "llamafleet-host.pyz"
        config.write_text(json.dumps(self.config))
        zipapp.write_bytes(zipapps.host_zipapp())
        core = min(os.sched_getaffinity(0))
        return subprocess.run(
            ["taskset", "-c", str(core), PYTHON, zipapp, "verify", "--config", config, *options],
            capture_output=True,
            text=True,
            check=False,
            env=os.environ | (env or {}),
            cwd=self.root,
            timeout=300,
        )

    @property
    def latest(self) -> dict[str, Any]:
        data: dict[str, Any] = json.loads((self.results / "latest.json").read_text())
        return data

    def checks(self) -> dict[str, dict[str, str]]:
        return {check["name"]: check for check in self.latest["checks"]}

    def red(self) -> set[str]:
        return {name for name, check in self.checks().items() if check["status"] == "fail"}


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One folder of models for all tests; a finished model is never written again."""
    return tmp_path_factory.mktemp("models")


@pytest.fixture
def host(tmp_path: Path, models: Path) -> Host:
    return Host(tmp_path, models)
