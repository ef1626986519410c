"""What pip installs on a host: every pin exact, with its hashes."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from llamafleet import tables
from llamafleet.protocol.pythons import PYTHONS
from llamafleet.tables.pinned import SERVE, pins
from llamafleet.tables.pins import COMMAND, main
from llamafleet.tables.toolkits import WheelToolkit, wheel_toolkits

PINNED = (
    "compiler-cache.txt",
    "host-requirements.txt",
    "serve-requirements.txt",
    *{f"toolkit-wheels-{w.cuda}.txt" for w in wheel_toolkits()},
)


@pytest.mark.parametrize("name", sorted(PINNED))
def test_every_pin_is_exact_and_has_hashes_and_no_other_index(name: str) -> None:
    lines = [line for line in tables.text(name).splitlines() if line and line[0] != "#"]
    pins = [line for line in lines if line[0] != " "]
    assert all(re.match(r"[a-z0-9-]+==\S+ (; .+ )?\\$", pin) for pin in pins)
    hashes = [line for line in lines if line[0] == " "]
    assert all(re.match(r"    --hash=sha256:[0-9a-f]{64}( \\)?$", h) for h in hashes)
    for pin in pins:
        assert lines[lines.index(pin) + 1].startswith("    --hash=")


def test_the_build_backend_and_the_run_time_packages_are_pinned() -> None:
    pinned = re.findall(r"^([a-z0-9-]+)==", tables.text("host-requirements.txt"), re.M)
    assert {"scikit-build-core", "cmake", "ninja", "numpy", "gguf", "nvidia-ml-py"} <= set(pinned)
    assert {"jinja2", "diskcache", "typing-extensions", "pathspec"} <= set(pinned)


@pytest.mark.parametrize("python", PYTHONS)
def test_the_server_has_what_llama_cpp_server_imports_for_each_python(python: str) -> None:
    host = {"python_version": python, "python_full_version": f"{python}.0"}
    there = [
        pin.requirement.name
        for pin in pins(SERVE)
        if pin.requirement.marker is None or pin.requirement.marker.evaluate(host)
    ]
    assert len(there) == len(set(there))
    # Of its pyproject.toml, [project.optional-dependencies] server; and for the metrics.
    asked = {"uvicorn", "fastapi", "pydantic-settings", "sse-starlette", "starlette-context"}
    assert asked | {"pyyaml", "prometheus-client"} <= set(there)


@pytest.mark.parametrize("wheel", wheel_toolkits(), ids=lambda w: f"{w.cuda}-{w.machine}")
def test_a_toolkit_of_wheels_has_its_pins(wheel: WheelToolkit) -> None:
    text = tables.text(f"toolkit-wheels-{wheel.cuda}.txt")
    pins = [Requirement(line) for line in re.findall(r"^([a-z].*?) \\$", text, re.M)]
    host = {"sys_platform": "linux", "platform_machine": wheel.machine}
    # pip passes over a pin that its marker excludes, without a word.
    assert all(pin.marker is None or pin.marker.evaluate(host) for pin in pins)
    versions = {pin.name: str(pin.specifier) for pin in pins}
    # cuBLAS counts by itself, and so does CCCL.
    apart = {"nvidia-cublas", "nvidia-cuda-cccl"}
    same = {
        "cuda-toolkit",
        "nvidia-nvvm",
        *(f"nvidia-cuda-{p}" for p in ("nvcc", "crt", "runtime")),
    }
    assert versions.keys() == apart | same
    assert all(versions[name].startswith(f"=={wheel.cuda}.") for name in same)


def test_every_file_of_pins_is_made_from_a_source_and_says_how() -> None:
    sources = {path.stem for path in tables.FOLDER.glob("*.in")}
    made = {path.stem for path in tables.FOLDER.glob("*.txt")}
    assert sources == made
    assert made == {name.removesuffix(".txt") for name in PINNED}
    for name in PINNED:
        assert tables.text(name).splitlines()[1] == f"#    {COMMAND}"


@pytest.mark.parametrize("name", sorted(PINNED))
def test_what_the_source_asks_for_is_pinned(name: str) -> None:
    asked = tables.text(name.replace(".txt", ".in")).split()
    pinned = re.findall(r"^([a-z0-9-]+)==(\S+)", tables.text(name), re.M)
    for requirement in map(Requirement, asked):
        versions = [version for pin, version in pinned if pin == requirement.name]
        assert versions  # of a package two, where the newer one is for newer Pythons alone
        assert all(map(requirement.specifier.contains, versions))


@pytest.fixture
def uv(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A uv that writes down how it was called and ends as the file `status` says."""
    program = tmp_path / "uv"
    script = f'echo "$PWD $*" >> {tmp_path}/calls; exit $(cat {tmp_path}/status)'
    program.write_text(f"#!/bin/sh\n{script}\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    return tmp_path


def test_one_command_pins_every_source(uv: Path) -> None:
    (uv / "status").write_text("0")
    assert main(["--upgrade"]) == 0
    calls = (uv / "calls").read_text().splitlines()
    assert len(calls) == len(PINNED)
    for name, call in zip(sorted(PINNED), calls, strict=True):
        assert call.startswith(f"{tables.FOLDER} pip compile --universal --generate-hashes ")
        assert call.endswith(f" --upgrade {name.replace('.txt', '.in')} -o {name}")


def test_without_uv_it_says_what_to_type(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    assert main([]) == 1
    assert "found no uv on PATH" in capsys.readouterr().err


def test_the_first_source_that_can_not_be_pinned_ends_it(
    uv: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (uv / "status").write_text("3")
    assert main([]) == 3
    assert len((uv / "calls").read_text().splitlines()) == 1
    assert "compiler-cache.in: uv ended with status 3" in capfd.readouterr().err
