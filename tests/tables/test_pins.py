"""What pip installs on a host: every pin exact, with its hashes."""

from __future__ import annotations

import re

import pytest
from packaging.requirements import Requirement

from llamafleet import tables
from llamafleet.tables.toolkits import WheelToolkit, wheel_toolkits

PINNED = (
    "host-requirements.txt",
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
