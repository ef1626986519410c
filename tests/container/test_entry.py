"""What starts in a container: what it refuses, whom it tells the key, what it becomes."""

from __future__ import annotations

import http.server
import json
import os
import re
import signal
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest

from llamafleet.layout import Layout
from llamafleet.onhost import container
from llamafleet.onhost.serve.gate import Verdict
from llamafleet.onhost.verify.gpu import Nvml
from llamafleet.plans.container import ImagePlan, plan_image
from llamafleet.protocol.container import ContainerConfig
from llamafleet.protocol.decode import decode
from llamafleet.protocol.job import start_ticks, write_json
from llamafleet.protocol.serve import ServeConfig, State, Status, status_file
from llamafleet.protocol.verify import VerifyConfig, load
from llamafleet.settings import Settings
from llamafleet.tables import overlaid
from tests.frozen_tables import FROZEN
from tests.onhost.verify.test_gpu import Recorded
from tests.plans.hosts import CPU_HOST
from tests.plans.test_container import ARGUMENTS
from tests.ports import free_port

KEY = "k" * 32


class Became(BaseException):
    """The process would be another program now."""


@dataclass
class Container:
    """A container's folders below `root`, and what would happen there."""

    root: Path
    backend: str = "cpu"
    allowed: list[Verdict] = field(default_factory=lambda: [Verdict(False, "no proof")])
    status: int = 0
    verified: list[VerifyConfig] = field(default_factory=list)
    argv: list[str] = field(default_factory=list)
    env: dict[str, str] = field(default_factory=dict)

    @property
    def config(self) -> ContainerConfig:
        at = Layout("system", *(str(self.root / name) for name in ("opt", "etc", "state", "units")))
        settings: dict[str, Any] = {"accelerator": "cpu"} if self.backend == "cpu" else ARGUMENTS
        with overlaid(FROZEN):
            image = plan_image(Settings(**settings), CPU_HOST, at)
        assert isinstance(image, ImagePlan)
        return replace(image.container, models=str(self.root / "models"))

    def start(self, *args: str) -> int | None:
        """Its exit status; None: it became the server."""
        file = self.root / "container.json"
        file.write_text(json.dumps(asdict(self.config)))
        for folder in ("models", "state/serve"):
            (self.root / folder).mkdir(parents=True, exist_ok=True)
        try:
            return container.main(["--config", str(file), *args])
        except Became:
            return None

    @property
    def serve(self) -> ServeConfig:
        """What the server was told."""
        return decode(ServeConfig, json.loads(Path(self.argv[-1]).read_text()))

    @property
    def key(self) -> Path:
        return Path(self.env["CREDENTIALS_DIRECTORY"], "api-key")

    def model(self, name: str, data: bytes = b"GGUF....") -> Path:
        file = self.root / "models" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(data)
        return file


@pytest.fixture
def one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Container]:
    here = Container(tmp_path)

    def verify(config: VerifyConfig, faults: object) -> int:
        here.verified.append(config)
        here.allowed.append(Verdict(True))
        return here.status

    def become(python: str, argv: list[str], env: dict[str, str]) -> None:
        here.argv, here.env = argv, env
        raise Became

    monkeypatch.setattr(container, "verify", verify)
    monkeypatch.setattr(container.gate, "judge", lambda serve, prefix: here.allowed[-1])
    monkeypatch.setattr(container, "SECRET", tmp_path / "no-secret")
    monkeypatch.setattr(os, "execve", become)
    monkeypatch.setattr(os, "geteuid", lambda: 10001)
    monkeypatch.setenv("LLAMAFLEET_ROOT", str(tmp_path))
    handlers = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    yield here
    for number, handler in handlers.items():
        signal.signal(number, handler)


def given_a_gpu(one: Container, monkeypatch: pytest.MonkeyPatch, count: int = 1) -> None:
    one.backend = "cuda"
    (one.root / "dev").mkdir()
    (one.root / "dev/nvidiactl").touch()
    recorded = Recorded(count)
    monkeypatch.setattr(container.gpu, "Nvml", lambda answer_s: Nvml(recorded, answer_s))


# -- GPUs ------------------------------------------------------------------------------------------


def test_without_a_gpu_nothing_is_served_and_the_command_is_said(
    one: Container, capsys: pytest.CaptureFixture[str]
) -> None:
    one.backend = "cuda"
    assert one.start() == 69
    told = capsys.readouterr().err
    assert "found no GPU in this container (no /dev/nvidiactl)" in told
    assert "nothing is served from the CPU" in told
    assert "next: docker run --gpus all -p 8000:8000 llama-rtx4090" in told
    assert "podman run --device nvidia.com/gpu=all" in told
    assert not one.argv and not one.verified


def test_a_gpu_without_the_drivers_library(
    one: Container, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """As with NVIDIA_DRIVER_CAPABILITIES=compute."""
    given_a_gpu(one, monkeypatch)

    def none(answer_s: float) -> Nvml:
        raise container.gpu.NvmlUnavailable("NVML Shared Library Not Found")

    monkeypatch.setattr(container.gpu, "Nvml", none)
    assert one.start() == 69
    told = capsys.readouterr().err
    assert "NVML Shared Library Not Found" in told and "compute,utility" in told


def test_a_driver_that_gives_none_of_its_gpus(
    one: Container, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    given_a_gpu(one, monkeypatch, count=0)
    assert one.start() == 69
    assert "found driver 580.159.04 and none of its GPUs" in capsys.readouterr().err


def test_the_gpus_that_are_given_are_verified_before_the_server_starts(
    one: Container, monkeypatch: pytest.MonkeyPatch
) -> None:
    given_a_gpu(one, monkeypatch, count=2)
    assert one.start() is None
    (checked,) = one.verified
    assert checked.inputs.driver == "580.159.04"
    assert checked.inputs.gpus == (
        "NVIDIA GeForce RTX 4090 GPU-0",
        "NVIDIA GeForce RTX 4090 GPU-1",
    )
    assert load(Path(one.serve.verify)) == checked, "the server judges another verification"


def test_a_red_verification_serves_nothing(
    one: Container, capsys: pytest.CaptureFixture[str]
) -> None:
    one.status = 1
    assert one.start() == 1
    assert "the verification is red" in capsys.readouterr().err
    assert not one.argv


def test_what_was_verified_here_is_not_verified_again(one: Container) -> None:
    one.allowed = [Verdict(True)]
    assert one.start() is None
    assert not one.verified


def test_root_is_refused(
    one: Container, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    assert one.start() == 2
    assert "found uid 0; expected the image's own user" in capsys.readouterr().err


def test_a_stop_while_it_verifies_ends_it(one: Container, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first process of a container has no default action for SIGTERM."""

    def verify(config: VerifyConfig, faults: object) -> int:
        os.kill(os.getpid(), signal.SIGTERM)
        return 0

    monkeypatch.setattr(container, "verify", verify)
    with pytest.raises(SystemExit) as ended:
        one.start()
    assert ended.value.code == 128 + signal.SIGTERM


# -- the key ---------------------------------------------------------------------------------------


def test_a_key_is_made_once_and_is_in_no_log_and_no_environment(
    one: Container, capsys: pytest.CaptureFixture[str]
) -> None:
    assert one.start() is None
    key = one.key.read_text()
    assert len(key) >= 32
    assert stat.S_IMODE(one.key.stat().st_mode) == 0o600
    assert one.start() is None
    assert one.key.read_text() == key, "a restart would lock its clients out"
    told = capsys.readouterr()
    assert key not in told.out + told.err
    assert key not in " ".join((*one.argv, *one.env.values()))
    assert re.search(rf"docker exec \S+ cat {one.key}", told.out)
    assert one.serve.key


def test_a_mounted_key_is_taken(
    one: Container, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "key"
    file.write_text(f"{KEY}\n")
    assert one.start("--api-key-file", str(file)) is None
    assert one.key.read_text() == KEY
    assert stat.S_IMODE(one.key.stat().st_mode) == 0o600
    assert KEY not in capsys.readouterr().out


def test_a_secret_of_docker_is_taken(one: Container, monkeypatch: pytest.MonkeyPatch) -> None:
    secret = one.root / "secret"
    secret.write_text(KEY)
    monkeypatch.setattr(container, "SECRET", secret)
    assert one.start() is None
    assert one.key.read_text() == KEY


@pytest.mark.parametrize(
    ("data", "word"),
    [
        (None, "No such file"),
        (b"", "found 0 characters"),
        (b"short\n", "found 5 characters"),
        (b"k" * 20 + b"\nsecond line\n", "one word"),
        (b"k" * 5000, "found 4097 characters"),
        (b"\xff" * 40, "no ASCII text"),
    ],
)
def test_a_bad_key_is_refused_and_not_told(
    one: Container, data: bytes | None, word: str, capsys: pytest.CaptureFixture[str]
) -> None:
    file = one.root / "key"
    if data is not None:
        file.write_bytes(data)
    assert one.start("--api-key-file", str(file)) == 2
    told = capsys.readouterr().err
    assert word in told and "kkkk" not in told and "second" not in told
    assert not one.argv


# -- the model -------------------------------------------------------------------------------------


def test_without_a_model_the_verifications_own_is_served_and_that_is_said(
    one: Container, capsys: pytest.CaptureFixture[str]
) -> None:
    assert one.start() is None
    assert one.serve.model.endswith("/synthetic-160m-q4_0.gguf")
    assert one.serve.alias == "synthetic-160m-q4_0"
    assert "whose text means nothing" in capsys.readouterr().out


def test_the_one_model_that_is_mounted_is_served(one: Container) -> None:
    file = one.model("deep/chat.gguf")
    assert one.start("--n-ctx", "8192", "--n-gpu-layers", "45", "--kv-type", "q8_0") is None
    assert (one.serve.model, one.serve.alias) == (str(file), "chat")
    placed = one.serve.placement
    assert (placed.n_ctx, placed.n_gpu_layers, placed.kv_type) == (8192, 45, "q8_0")


def test_the_parts_of_a_split_model_are_one(one: Container) -> None:
    first = one.model("big-00001-of-00002.gguf")
    one.model("big-00002-of-00002.gguf")
    assert one.start("--alias", "large") is None
    assert (one.serve.model, one.serve.alias) == (str(first), "large")


def test_of_several_models_one_must_be_named(
    one: Container, capsys: pytest.CaptureFixture[str]
) -> None:
    first, second = one.model("a.gguf"), one.model("b.gguf")
    assert one.start() == 2
    assert f"--model {first}" in capsys.readouterr().err
    assert one.start("--model", str(second)) is None
    assert one.serve.model == str(second)


@pytest.mark.parametrize(
    ("data", "word"),
    [(None, "No such file"), (b"<html>", "expected GGUF"), (b"", "expected GGUF")],
)
def test_a_model_that_is_none_is_refused(
    one: Container, data: bytes | None, word: str, capsys: pytest.CaptureFixture[str]
) -> None:
    file = one.root / "models/a.gguf" if data is None else one.model("a.gguf", data)
    assert one.start("--model", str(file)) == 2
    assert word in capsys.readouterr().err
    assert not one.argv


@pytest.mark.parametrize(
    "args",
    [
        ["--n-ctx", "0"],
        ["--n-ctx", "many"],
        ["--n-gpu-layers", "-2"],
        ["--kv-type", "f8"],
        ["--unknown"],
        ["more"],
    ],
)
def test_bad_arguments_are_refused(one: Container, args: list[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        one.start(*args)
    assert ended.value.code == 2


def test_a_place_that_can_not_be_written_is_said(
    one: Container, capsys: pytest.CaptureFixture[str]
) -> None:
    (one.root / "state").write_text("a file")
    (one.root / "container.json").write_text(json.dumps(asdict(one.config)))
    (one.root / "models").mkdir()
    assert container.main(["--config", str(one.root / "container.json")]) == 2
    assert "found no place to write to" in capsys.readouterr().err


# -- its health ------------------------------------------------------------------------------------


@pytest.mark.parametrize(("answer", "status"), [(200, 0), (503, 1), (404, 1)])
def test_health_is_what_the_server_says(one: Container, answer: int, status: int) -> None:
    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(answer if self.path == "/ready" else 500)
            self.end_headers()
            self.wfile.write(b"loading")

        def log_message(self, *args: object) -> None:
            pass

    server = http.server.HTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.handle_request, daemon=True).start()
    serve = replace(one.config.serve, port=server.server_port)
    tell(serve, "ready")
    assert container.health(serve) == status
    server.server_close()


def tell(serve: ServeConfig, state: State, pid: int = 0) -> None:
    """As the server tells its own state."""
    pid = pid or os.getpid()
    told = Status(1, serve.profile, state, time.time(), pid, start_ticks=start_ticks(pid))
    status_file(serve).parent.mkdir(parents=True, exist_ok=True)
    write_json(status_file(serve), asdict(told))


def test_another_server_at_its_port_is_no_health_of_it(one: Container) -> None:
    """With the host's network any process may listen there while this one verifies its GPUs."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.end_headers()

        def log_message(self, *args: object) -> None:
            pass

    server = http.server.HTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    serve = replace(one.config.serve, port=server.server_port)
    assert container.health(serve) == 1
    tell(serve, "loading")
    assert container.health(serve) == 1
    tell(serve, "ready", pid=2**22 + 1)
    assert container.health(serve) == 1, "the process has ended"
    tell(serve, "ready")
    assert container.health(serve) == 0
    server.shutdown()
    server.server_close()


def test_no_server_is_no_health(one: Container) -> None:
    serve = replace(one.config.serve, port=free_port())
    tell(serve, "ready")
    assert container.health(serve) == 1


def test_the_zipapp_has_it(tmp_path: Path) -> None:
    """And tells a file that is no configuration from one that is."""
    from llamafleet.zipapps import host_zipapp

    pyz = tmp_path / "llamafleet-host.pyz"
    pyz.write_bytes(host_zipapp())
    argv = [sys.executable, "-I", str(pyz), "container", "--config", str(tmp_path / "none.json")]
    done = subprocess.run(argv, capture_output=True, text=True, check=False)
    assert done.returncode == 2, done.stderr
    assert "next: build the image again" in done.stderr
