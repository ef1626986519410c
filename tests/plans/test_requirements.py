"""What pip is told: pinned, each file with its hash, and of a wheelhouse what it has."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from llamafleet.plans.requirements import (
    host_requirements,
    llama_requirement,
    toolkit_requirements,
)
from llamafleet.settings import Settings
from llamafleet.tables.pinned import HOST, pins
from llamafleet.wheelhouse.manifest import File, load
from tests.test_settings import ZEROS, make_wheelhouse


def test_requirements() -> None:
    assert "scikit-build-core==1.1.2 \\\n    --hash=sha256:" in host_requirements()
    assert "nvidia-cuda-nvcc==13.0.88 " in toolkit_requirements("13.0")
    with pytest.raises(FileNotFoundError):
        toolkit_requirements("12.8")
    assert llama_requirement(Settings()) == (
        f"llama-cpp-python==0.3.36 --hash=sha256:{Settings().llama_sha256}"
    )


def test_requirements_are_only_what_is_there(tmp_path: Path) -> None:
    manifest = load(make_wheelhouse(tmp_path / "w"))
    assert host_requirements(manifest) == ""
    table = {str(pin.requirement): pin.sha256 for pin in pins(HOST)}
    ninja = next(name for name in table if name.startswith("ninja"))
    numpy = next(name for name in table if name.startswith("numpy") and "3.12" in name)
    files = {
        "ninja.whl": File(table[ninja][0], 1),
        "numpy1.whl": File(table[numpy][1], 1),
        "numpy2.whl": File(table[numpy][-1], 1),
    }
    assert host_requirements(replace(manifest, files=files)) == (
        f"{ninja} --hash=sha256:{table[ninja][0]}\n"
        f"{numpy} --hash=sha256:{table[numpy][1]} --hash=sha256:{table[numpy][-1]}\n"
    )


def test_the_source_archive_of_a_wheelhouse_has_its_own_hash(tmp_path: Path) -> None:
    manifest = load(make_wheelhouse(tmp_path / "w"))
    assert llama_requirement(Settings(), manifest).endswith(f"==0.3.36 --hash=sha256:{ZEROS}")
