"""A service as a host has it: settings, proof, model, libraries and the process itself."""

from __future__ import annotations

import fcntl
import hashlib
import http.client
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from llamafleet import zipapps
from llamafleet.onhost.serve.libraries import packages, whole
from llamafleet.onhost.verify import synth
from llamafleet.protocol.job import WHOLE, machine_id
from llamafleet.protocol.result import CPU_ONLY, PASS, GpuRow, Result, System
from llamafleet.protocol.verify import BenchSettings, VerifyInputs
from llamafleet.tables import text
from llamafleet.tables.pinned import SERVE
from tests.onhost import llama
from tests.ports import free_port

CACHE = Path.home() / ".cache" / "llamafleet-test" / "serve"
ALIAS = "test-model"
KEY = "sk-test-0123456789abcdef"


def libraries(python: str) -> Path:
    """The server's own packages for this interpreter, installed once on this machine."""
    folder = folder_for(python)
    CACHE.mkdir(parents=True, exist_ok=True)
    with (CACHE / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not whole(folder):
            _install(python, folder, text(SERVE))
    return folder


def folder_for(python: str) -> Path:
    """Where they lie."""
    version = subprocess.check_output([python, "-V"], text=True)
    return CACHE / hashlib.sha256((text(SERVE) + version).encode()).hexdigest()[:16]


def _install(python: str, folder: Path, wanted: str) -> None:
    requirements = CACHE / "requirements.txt"
    requirements.write_text(wanted)
    pip = [sys.executable, "-m", "pip", "--python", python, "install", "--quiet", "--no-deps"]
    pip += ["--upgrade", "--only-binary", ":all:", "--require-hashes", "--no-warn-script-location"]
    subprocess.run([*pip, "--target", str(folder), "-r", str(requirements)], check=True)
    (folder / WHOLE).write_text(json.dumps({"packages": packages(folder)}))


def model(folder: Path, shape: str = "tiny", type_: str = "q8_0") -> Path:
    """A synthetic model in `folder`."""
    file = folder / f"{shape}-{type_}.gguf"
    if not file.exists():
        synth.write(file, shape, type_)
    return file


def proof(prefix: str, driver: str | None = None, gpus: tuple[GpuRow, ...] = ()) -> Result:
    """A verification of this build on this machine; without a driver on its CPU."""
    inputs = VerifyInputs(
        fingerprint="f00",
        driver=driver,
        gpus=tuple(f"{gpu.name} {gpu.uuid}" for gpu in gpus),
        model="synthetic:tiny-q4_0",
        bench=BenchSettings(32, 4, 2),
        context=512,
    )
    found = {f"{prefix}/{name}": digest for name, digest in llama.libraries().items()}
    return Result(
        host="test",
        verdict=PASS if driver else CPU_ONLY,
        gpus=gpus,
        fingerprint="f00",
        key="key",
        inputs=inputs,
        finished=time.time(),
        system=System(libraries=found),
        machine_id=machine_id(),
        prefix=prefix,
    )


class Service:
    """The files of one service below `root`, and its process."""

    def __init__(
        self, root: Path, gguf: Path, proven: Result | None = None, **changed: Any
    ) -> None:
        self.root, self.port = root, free_port()
        prefix = str(llama.prefix())
        proven = proven or proof(prefix)
        results, self.folder = root / "results", root / "serve"
        for made in (results, self.folder, root / "credentials"):
            made.mkdir(exist_ok=True)
        (results / "latest.json").write_text(json.dumps(asdict(proven)))
        self.environment: dict[str, str] = changed.pop("environment", {})
        """Of the verification, which is that of whatever loads llama.cpp."""
        verify = root / "verify.json"
        verify.write_text(
            json.dumps(
                {
                    "version": 1,
                    "host": "test",
                    "inputs": asdict(proven.inputs),
                    "backend": "cuda" if proven.inputs.driver else "cpu",
                    "toolkit": "13.0" if proven.inputs.driver else None,
                    "prefix": prefix,
                    "stamp": str(root / "stamp.json"),
                    "job": str(root / "job"),
                    "results": str(results),
                    "models": str(root),
                    "compute_capabilities": [],
                    "allow_cpu_only": True,
                    "environment": self.environment,
                }
            )
        )
        self.config: dict[str, Any] = {
            "version": 1,
            "profile": "chat",
            "host": "test",
            "verify": str(verify),
            "folder": str(self.folder),
            "libraries": str(libraries(llama.PYTHON)),
            "model": str(gguf),
            "alias": ALIAS,
            "placement": {"n_gpu_layers": -1, "n_ctx": 512, "n_batch": 128},
            "address": "127.0.0.1",
            "port": self.port,
            "key": True,
            **changed,
        }
        (root / "credentials" / "api-key").write_text(KEY + "\n")
        self.process: subprocess.Popen[str] | None = None
        self.log = root / "serve.log"
        self.before: tuple[str, ...] = ()
        """What its command line begins with."""

    def start(self, environment: dict[str, str] | None = None) -> subprocess.Popen[str]:
        config, zipapp = self.root / "serve-chat.json", self.root / "llamafleet-host.pyz"
        config.write_text(json.dumps(self.config))
        zipapp.write_bytes(zipapps.host_zipapp())
        given = {"PATH": os.environ["PATH"], "CREDENTIALS_DIRECTORY": f"{self.root}/credentials"}
        with self.log.open("w") as log:
            self.process = subprocess.Popen(
                [*self.before, llama.PYTHON, "-I", zipapp, "serve", "--config", config],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=given | (environment or {}),
                text=True,
            )
        return self.process

    @contextmanager
    def running(self, environment: dict[str, str] | None = None) -> Iterator[Service]:
        """Ready within; it has ended afterwards."""
        self.start(environment)
        try:
            self.wait("ready")
            yield self
        finally:
            self.stop()

    def wait(self, state: str, seconds: float = 120) -> None:
        end = time.monotonic() + seconds
        while self.status().get("state") != state:
            assert self.process and self.process.poll() is None, self.said()
            assert time.monotonic() < end, self.said()
            time.sleep(0.05)

    def stop(self, seconds: float = 60) -> int:
        assert self.process
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        try:
            return self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            self.process.kill()
            raise

    def status(self) -> dict[str, Any]:
        try:
            told: dict[str, Any] = json.loads((self.folder / "status.json").read_text())
        except FileNotFoundError:
            return {}
        return told

    def said(self) -> str:
        return self.log.read_text(errors="replace")

    def child(self) -> int:
        """Pid of the process that serves."""
        assert self.process
        pid = self.process.pid
        return int(Path(f"/proc/{pid}/task/{pid}/children").read_text().split()[0])

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def ask(
        self,
        path: str,
        body: object = None,
        *,
        method: str = "",
        key: str | None = KEY,
        seconds: float = 60,
    ) -> tuple[int, dict[str, Any], dict[str, str]]:
        """Status, JSON (or {"text"}), headers."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=seconds)
        headers = {"authorization": f"Bearer {key}"} if key else {}
        data = body if isinstance(body, bytes | None) else json.dumps(body).encode()
        connection.request(method or ("POST" if data else "GET"), path, data, headers)
        answer = connection.getresponse()
        read = answer.read()
        connection.close()
        try:
            told = json.loads(read)
        except ValueError:
            told = {"text": read.decode(errors="replace")}
        return answer.status, told, {name.lower(): value for name, value in answer.getheaders()}

    def complete(self, prompt: str = "a w300 b", **fields: Any) -> dict[str, Any]:
        """One completion of temperature 0."""
        asked = {"prompt": prompt, "max_tokens": 4, "temperature": 0, **fields}
        status, told, _ = self.ask("/v1/completions", asked)
        assert status == 200, told
        return told
