"""What a fetched result must be to count as this plan's."""

from __future__ import annotations

import subprocess
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from llamafleet.facts.host import Job
from llamafleet.history.store import Store
from llamafleet.layout import Layout
from llamafleet.protocol.decode import decode
from llamafleet.protocol.job import Progress
from llamafleet.protocol.result import Check, Result
from llamafleet.protocol.verify import VerifyConfig
from llamafleet.received import Unreadable
from llamafleet.settings import Settings
from operations import verify
from tests.history import RESULT, gpu
from tests.history.test_update import result as under
from tests.plans.hosts import GPU_HOST, plan, toolkit, verification
from tests.protocol.test_verify import with_inputs

CONFIG = decode(VerifyConfig, with_inputs(driver="580.95.05", gpus=["A"]))
WANTED = verification("k1", CONFIG)


def judged(result: Result | Unreadable | None) -> list[str]:
    said: list[str] = []
    run = SimpleNamespace(name="gpu-a", result=result, fail=said.append, layout=Layout.system)
    ended = verify._judge(cast("Any", None), cast("Any", None), cast("Any", run), WANTED)
    assert ended is False
    return said


def test_a_result_of_another_driver_or_gpu_says_which() -> None:
    inputs = replace(CONFIG.inputs, driver="570.86.10", gpus=())
    other = replace(RESULT, key="k0", inputs=inputs)
    assert "(driver 580.95.05 -> 570.86.10; gpus -A)" in judged(other)[0]


def test_no_result() -> None:
    assert "found no result on gpu-a" in judged(None)[0]


def test_red_checks_are_told_one_by_one() -> None:
    red = Check("vram", "fail", "0", "9", "look")
    green = replace(red, name="busy", status="pass")
    broken = replace(gpu(), verdict="FAIL", checks=(red, green))
    result = replace(RESULT, key="k1", verdict="FAIL", gpus=(broken,))
    assert judged(result) == ["vram: found 0; expected 9; next: look"]


def test_a_bad_verdict_without_a_red_check_is_told_too() -> None:
    assert "found the verdict FAIL" in judged(replace(RESULT, key="k1", verdict="FAIL"))[0]


def test_a_result_that_can_t_be_understood_says_why() -> None:
    said = judged(Unreadable("found a result of version 9, expected 1 to 2"))
    assert "can't be understood (found a result of version 9" in said[0]


def started(monkeypatch: pytest.MonkeyPatch, running: Job | None, **found: Any) -> list[str]:
    """The commands for a host that is to be verified."""
    host = replace(GPU_HOST, toolkits=(toolkit("13.0"),), verifying=running, **found)
    made = plan(host)
    assert made.verify and made.verify.needed
    run = SimpleNamespace(
        noop=lambda text: None,
        plan=lambda: made,
        layout=Layout.system,
        snapshot=lambda: host,
        settings=Settings(),
    )
    monkeypatch.setattr(verify, "here", lambda: run)
    operation: Any = verify.verify._inner  # type: ignore[attr-defined]
    return [str(command) for command in operation() if hasattr(command, "bits")]


def test_without_systemd_a_verification_of_something_else_is_ended_first(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    progress = Progress(kind="verify", key="k0", pid=4242, start_ticks=1)
    other = Job("verify", "k0", alive=True, progress=progress)
    assert "/proc/4242/stat" in started(monkeypatch, other, init="none")[0]
    ended = replace(other, alive=False)
    for commands in (
        started(monkeypatch, None, init="none"),
        started(monkeypatch, ended, init="none"),
        started(monkeypatch, other, init="systemd"),
    ):
        assert len(commands) == 2 and not any("kill" in command for command in commands)


def test_it_is_ended_with_its_worker() -> None:
    script = "sleep 60 & echo $!; wait"
    parent = subprocess.Popen(
        ["sh", "-c", script], stdout=subprocess.PIPE, text=True, start_new_session=True
    )
    assert parent.stdout is not None
    parent.stdout.readline()
    stop = str(verify.stop_verification(parent.pid))
    assert subprocess.run(["sh", "-c", stop], check=False).returncode == 0
    # The worker holds the pipe too, which ends with the last of both.
    parent.communicate(timeout=5)
    assert parent.returncode == -15
    assert subprocess.run(["sh", "-c", stop], check=False).returncode == 0, "gone already"


@pytest.mark.parametrize("dry", [True, False])
def test_only_a_run_that_is_carried_out_keeps_the_result(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, dry: bool
) -> None:
    monkeypatch.setattr(verify, "RESULTS", tmp_path)
    store = Store(tmp_path)
    store.write_result("gpu-a", under("570.86.10"))
    before = sorted(tmp_path.rglob("*.json"))
    new = replace(under("580.95.05", finished=2.0), key="k1")
    run = SimpleNamespace(
        noop=lambda text: None,
        name="gpu-a",
        plan=lambda: SimpleNamespace(verify=WANTED),
        snapshot=lambda: SimpleNamespace(result=new),
        host=SimpleNamespace(state=SimpleNamespace(is_executing=not dry)),
        update=None,
    )
    monkeypatch.setattr(verify, "here", lambda: run)
    operation: Any = verify.result._inner  # type: ignore[attr-defined]
    assert list(operation()) == []
    assert (run.update is None) is dry
    assert (sorted(tmp_path.rglob("*.json")) == before) is dry
