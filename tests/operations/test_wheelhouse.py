"""Whether a host can build from the wheelhouse."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from operations.run import HostRun
from operations.wheelhouse import _misfits
from tests.plans.hosts import GPU_HOST, LAYOUT, driver, installed, plan, toolkit
from tests.wheelhouse.test_wheelhouse import make_wheelhouse

INSTALLED = replace(
    GPU_HOST,
    toolkits=(toolkit("13.1", LAYOUT.toolkit("13.1")),),
    jobs=(installed("13.1"),),
)


@pytest.mark.parametrize(
    ("snapshot", "settings", "missing"),
    [
        (GPU_HOST, {}, True),
        (INSTALLED, {}, False),
        (replace(GPU_HOST, toolkits=(toolkit("13.1"),)), {}, False),
        (GPU_HOST, {"accelerator": "cpu"}, False),
    ],
)
def test_a_toolkit_must_be_in_it_only_where_wheels_have_to_bring_it(
    tmp_path: Path, snapshot: Any, settings: dict[str, Any], missing: bool
) -> None:
    newer = replace(snapshot, driver=driver("590"))
    run = SimpleNamespace(plan=lambda: plan(newer, **settings), snapshot=lambda: newer)
    make_wheelhouse(tmp_path / "w")
    lines = _misfits(cast(HostRun, run), tmp_path / "w")
    assert [line for line in lines if line.startswith("CUDA")] == (
        [
            "CUDA 13.1: the wheelhouse has no toolkit "
            "(add --toolkit 13.1, or set toolkit_version to one that it has)"
        ]
        if missing
        else []
    )
