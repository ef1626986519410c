"""The report: what a reader sees of each verdict, and the exit code."""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime, timezone

import pytest

from llamafleet.history.report import exit_code, render, render_line, render_run
from llamafleet.history.runs import Run, RunState
from llamafleet.history.store import Built, GpuLine, Row
from llamafleet.protocol.result import Verdict

SOUND = Row(
    host="gpu-a",
    verdict="PASS",
    gpu="NVIDIA GeForce RTX 4090",
    driver="580.95.05",
    toolkit="13.0",
    build="0123456789abcdef",
    pp=11536.25,
    tg=150.5,
    changed=("toolkit", "built"),
    built=Built(
        wall_s=333.4,
        cpu_s=4542.0,
        wheel_bytes=131_600_000,
        phases={"resolve": 3.0, "compile": 301.5},
    ),
)
LOCAL = Row(host="@local", verdict="CPU ONLY", build="aaaaaaaabbbbbbbb", tg=9.87, pp=20.0)
BROKEN = Row(
    host="gpu-b",
    verdict="FAIL",
    reason=(
        "driver: found no nvidia module; expected 525.60.13 or newer; next: modprobe nvidia",
        "disk: found 2 GiB;\nexpected 10 GiB; next: df -h",
    ),
)
RUN = Run(
    id="20261126T010203.456000Z-ab12",
    started=datetime(2026, 11, 26, 1, 2, 3, 456000, tzinfo=timezone.utc),
    command=("pyinfra", "-y", "--limit", "gpu-*", "inventory", "deploy.py"),
    hosts=("gpu-a", "gpu-b"),
    fleet=40,
    waves=(("gpu-a", "gpu-b"),),
    state="complete",
    rows=(SOUND, BROKEN),
)
BEFORE = replace(RUN, id="last-run", started=None, command=(), fleet=2)


def test_the_whole_report() -> None:
    assert render([SOUND, LOCAL, BROKEN]) == "\n".join(
        (
            "host    GPU                      driver     toolkit  build     verdict    pp t/s  "
            "tg t/s  changed",
            "------  -----------------------  ---------  -------  --------  --------  -------  "
            "------  --------------",
            "gpu-a   NVIDIA GeForce RTX 4090  580.95.05  13.0     01234567  PASS      11536.2  "
            " 150.5  toolkit, built",
            "@local  -                        -          -        aaaaaaaa  CPU ONLY     20.0  "
            "   9.9  nothing",
            "gpu-b   -                        -          -        -         FAIL            -  "
            "     -  nothing",
            "!!! @local: CPU ONLY. No GPU was used and nothing here proves offload. !!!",
            "gpu-b FAIL  driver: found no nvidia module; expected 525.60.13 or newer; "
            "next: modprobe nvidia",
            "gpu-b FAIL  disk: found 2 GiB; expected 10 GiB; next: df -h",
            "gpu-a build 0123456789abcdef: 333 s wall, 75.7 CPU-minutes, wheel 131.6 MB "
            "(resolve 3.0 s, compile 301.5 s)",
        )
    )


def test_each_of_several_gpus_has_a_line_of_its_own() -> None:
    gpus = (
        GpuLine("NVIDIA GeForce RTX 4090", "GPU-11112222-x", "PASS", 11000.0, 151.0),
        GpuLine("NVIDIA GeForce RTX 4090", "GPU-33334444-x", "FAIL"),
    )
    lines = render([replace(SOUND, verdict="FAIL", gpus=gpus)]).splitlines()
    assert lines[3].split() == [
        *("-", "NVIDIA", "GeForce", "RTX", "4090", "GPU-11112222", "PASS", "11000.0", "151.0")
    ]
    assert lines[4].split()[-3:] == ["FAIL", "-", "-"]
    assert len(render([replace(SOUND, gpus=gpus[:1])]).splitlines()) == 4


def test_only_cpu_only_is_loud() -> None:
    assert "!!!" not in render([SOUND, BROKEN])


def test_what_a_stamp_does_not_tell_is_left_out() -> None:
    row = Row(host="h", verdict="PASS", build="b", built=Built(wall_s=160.0))
    assert render([row]).endswith("h build b: 160 s wall")
    assert "h build" not in render([replace(row, built=Built())])


@pytest.mark.parametrize(
    ("verdicts", "code"),
    [
        (["PASS"], 0),
        (["PASS", "CPU ONLY"], 0),
        (["PASS", "FAIL"], 1),
        (["PASS", "NOT VERIFIED"], 1),
        ([], 1),
    ],
)
def test_exit_code(verdicts: list[Verdict], code: int) -> None:
    assert exit_code([Row(host="h", verdict=verdict) for verdict in verdicts]) == code


def test_a_run_without_hosts_proves_nothing() -> None:
    assert render([]) == "no host was in this run: nothing is proven"


def test_nothing_of_a_host_moves_the_cursor() -> None:
    row = Row(
        host="gpu-a\x1b[2J",
        verdict="FAIL",
        gpu="RTX\n4090",
        driver="580\x07",
        gpus=(GpuLine("A\x1b[2J", "GPU-\n1", "FAIL"), GpuLine("B", "GPU-2", "PASS")),
        changed=("built\0",),
        reason=("offload: found \x1b[32mPASS\x1b[0m",),
        built=Built(wall_s=1.0, phases={"link\x9b": 1.0}),
    )
    table, first, _, reason, cost = render([row]).split("\n")[2:]
    assert table.split()[:3] == [r"gpu-a\x1b[2J", r"RTX\n4090", r"580\x07"]
    assert r"- A\x1b[2J GPU-\n1 " in first
    assert reason == r"gpu-a\x1b[2J FAIL  offload: found \x1b[32mPASS\x1b[0m"
    assert r"link\x9b" in cost


def test_the_head_says_which_run_it_is() -> None:
    head, rest = render_run(RUN).split("\n", 1)
    assert head == (
        "run 20261126T010203.456000Z-ab12, 2 of 40 hosts, started 2026-11-26 01:02:03+0000 "
        "as: pyinfra -y --limit 'gpu-*' inventory deploy.py"
    )
    assert rest == render(RUN.rows)


def test_the_head_of_a_run_of_before_runs_were_kept() -> None:
    assert render_run(BEFORE).split("\n", 1)[0] == (
        "run last-run, of before runs were kept: start, command and limit are unknown"
    )


@pytest.mark.parametrize(
    ("state", "said"),
    [
        ("running", "NO END: it still runs, or was killed"),
        ("interrupted", "INTERRUPTED: not everything was done"),
    ],
)
def test_a_run_that_is_not_complete_says_so(state: RunState, said: str) -> None:
    run = replace(RUN, state=state)
    assert f"2 of 40 hosts, {said}, started" in render_run(run)
    assert render_line(run).endswith(f"  {said}")


def test_a_run_in_a_list() -> None:
    run = replace(RUN, rows=(SOUND, SOUND, BROKEN))
    assert render_line(run) == (
        "20261126T010203.456000Z-ab12  2026-11-26 01:02:03+0000  2 of 40 hosts  2 PASS, 1 FAIL"
    )
    assert render_line(BEFORE) == "last-run  before runs were kept  2 hosts  1 PASS, 1 FAIL"


def test_nothing_of_a_run_moves_the_cursor() -> None:
    run = replace(RUN, command=("pyinfra", "a\nb\x1b[2J"))
    assert render_run(run).split("\n")[0].endswith(r"as: pyinfra 'a\nb\x1b[2J'")
