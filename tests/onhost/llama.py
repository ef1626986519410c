"""The interpreter of a venv with a built llama-cpp-python, for tests that load a model."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from llamafleet import zipapps
from llamafleet.protocol.job import BuildProduct, Stamp

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


def stamped(libraries: dict[str, str]) -> dict[str, Any]:
    """What build.json of a build with these libraries says."""
    stamp = Stamp(kind="build", key="f00", ok=True, wall_s=160.5)
    product = BuildProduct(
        wheel_bytes=4426211,
        wheel_sha256=None,
        libraries=libraries,
        units=135,
        llama_cpp_python="0.3.36",
        system_info="CPU : SSE3 = 1 | ",
        import_s=0.1,
    )
    return asdict(stamp) | asdict(product)


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
        self.stamp.write_text(json.dumps(stamped(listed)))

    def start(self, *options: str, env: dict[str, str] | None = None) -> subprocess.Popen[str]:
        """Run the command as the host's unit does, on one core: a busy machine makes two slower.

        `env`: of the caller, which the worker must not see.
        """
        config, zipapp = self.root / "verify.json", self.root / "llamafleet-host.pyz"
        config.write_text(json.dumps(self.config))
        zipapp.write_bytes(zipapps.host_zipapp())
        core = str(min(os.sched_getaffinity(0)))
        command = ["taskset", "-c", core, PYTHON, "-I", zipapp, "verify", "--config", config]
        return subprocess.Popen(
            [*command, *options],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=os.environ | (env or {}),
            cwd=self.root,
        )

    def verify(
        self, *options: str, env: dict[str, str] | None = None
    ) -> subprocess.CompletedProcess[str]:
        """The same, when it has ended."""
        with self.start(*options, env=env) as process:
            out, err = process.communicate(timeout=300)
        return subprocess.CompletedProcess(process.args, process.returncode, out, err)

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
