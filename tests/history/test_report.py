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
            "host    GPU               driver     toolkit  build     verdict    pp t/s  tg t/s  "
            "changed",
            "------  ----------------  ---------  -------  --------  --------  -------  ------  "
            "--------------",
            "gpu-a   GeForce RTX 4090  580.95.05  13.0     01234567  PASS      11536.2   150.5  "
            "toolkit, built",
            "@local  -                 -          -        aaaaaaaa  CPU ONLY     20.0     9.9  "
            "nothing",
            "gpu-b   -                 -          -        -         FAIL            -       -  "
            "nothing",
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
        *("-", "GeForce", "RTX", "4090", "GPU-11112222", "PASS", "11000.0", "151.0")
    ]
    assert lines[4].split()[-3:] == ["FAIL", "-", "-"]
    assert len(render([replace(SOUND, gpus=gpus[:1])]).splitlines()) == 4


def test_only_cpu_only_is_loud() -> None:
    assert "!!!" not in render([SOUND, BROKEN])


def test_what_a_stamp_does_not_tell_is_left_out() -> None:
    row = Row(host="h", verdict="PASS", build="b", built=Built(wall_s=160.0))
    assert render([row]).endswith("h build b: 160 s wall")
    assert "h build" not in render([replace(row, built=Built())])


BUSY = replace(
    SOUND,
    verdict="BUSY",
    gpu="NVIDIA H100 80GB HBM3",
    tg=64.8,
    figures_busy=True,
    busy=("benchmark: found another process (pid 42, 70 GiB); expected none; next: nvidia-smi",),
    built=None,
    changed=(),
)


def test_figures_of_a_gpu_that_was_not_free_stand_in_brackets_with_the_reason_below() -> None:
    _, _, line, reason = render([BUSY]).splitlines()
    assert line.split()[-4:] == ["BUSY", "(11536.2)", "(64.8)", "nothing"]
    assert reason == f"gpu-a BUSY  {BUSY.busy[0]}"


def test_only_the_busy_one_of_two_gpus_stands_in_brackets() -> None:
    gpus = (
        GpuLine("NVIDIA H100 80GB HBM3", "GPU-11112222-x", "PASS", 12501.0, 345.9),
        GpuLine("NVIDIA H100 80GB HBM3", "GPU-33334444-x", "BUSY", 12343.2, 64.8, busy=True),
    )
    row = replace(BUSY, gpu="2x NVIDIA H100 80GB HBM3", gpus=gpus, figures_busy=False)
    name, blank = "580.95.05  13.0     01234567", " " * 26
    assert render([row]).splitlines()[2:5] == [
        f"gpu-a  2x H100 80GB HBM3  {name}  BUSY       11536.2    64.8  nothing",
        f"- H100 80GB HBM3 GPU-11112222{blank} PASS       12501.0   345.9",
        f"- H100 80GB HBM3 GPU-33334444{blank} BUSY     (12343.2)  (64.8)",
    ]


def test_that_a_busy_host_is_taken_for_good_is_said() -> None:
    assert exit_code([BUSY]) == 1 and "allow_busy" not in render([BUSY])
    allowed = replace(BUSY, allowed=True)
    assert exit_code([allowed]) == 0 and exit_code([allowed, BROKEN]) == 1
    assert render([allowed]).endswith(
        "gpu-a BUSY  is taken for good: the setting allow_busy says so"
    )


def test_gpus_that_are_left_out_are_counted_and_named() -> None:
    one = replace(
        SOUND,
        gpu="NVIDIA H100 80GB HBM3",
        gpus=(GpuLine("NVIDIA H100 80GB HBM3", "GPU-1", "PASS"),),
        left_out=("NVIDIA H100 80GB HBM3 GPU-2",),
    )
    text = render([one])
    assert "gpu-a  1 of 2 H100 80GB HBM3  580.95.05" in text
    assert (
        "gpu-a 1 of 2 GPUs: not verified, as the setting gpus says: NVIDIA H100 80GB HBM3 GPU-2"
    ) in text
    mixed = replace(one, gpu="2x NVIDIA A100, NVIDIA H100", gpus=one.gpus * 3)
    assert "gpu-a  3 of 4 2x A100, H100  5" in render([mixed])


def test_changes_without_room_stand_below() -> None:
    long = replace(SOUND, changed=("driver held", "toolkit 13.0 installed", "built", "verified"))
    lines = render([long, replace(BROKEN, changed=())]).splitlines()
    assert "changed" not in lines[0] and max(map(len, lines[:4])) <= 100
    assert "gpu-a changed: driver held, toolkit 13.0 installed, built, verified" in lines
    assert not any(line.startswith("gpu-b changed") for line in lines)


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
