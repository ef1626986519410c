"""What a result repeats of the build's stamp: the history is told of the build by it alone."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

from llamafleet.onhost.verify.evidence import Evidence, Faults
from llamafleet.protocol.job import Retry, write_json
from llamafleet.protocol.result import BuildSummary
from tests.onhost.llama import stamped

RETRY = Retry(signature="oom", line="Killed signal terminated program cc1plus", before=8, jobs=2)


def summary(stamp: Path) -> BuildSummary:
    config = SimpleNamespace(stamp=str(stamp), busy_minutes=0)
    return Evidence(cast(Any, config), Faults(), cast(Any, None), None).build()


def test_all_that_it_has_a_name_for(tmp_path: Path) -> None:
    told = {
        "inputs": {"toolkit": "13.0"},
        "cpu_s": 4542.0,
        "phases": {"compile": 301.5},
        "nvcc": "13.0.88",
        "retry": asdict(RETRY),
    }
    write_json(tmp_path / "build.json", stamped({}) | told)
    found = summary(tmp_path / "build.json")
    assert asdict(found) == {
        **{name: told[name] for name in ("inputs", "cpu_s", "phases", "nvcc")},
        "wall_s": 160.5,
        "wheel_bytes": 4426211,
        "llama_cpp_python": "0.3.36",
        "retried": str(RETRY),
    }


def test_without_a_stamp_it_tells_nothing(tmp_path: Path) -> None:
    assert summary(tmp_path / "none.json") == BuildSummary()
