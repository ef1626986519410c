"""The store: rows from results, and files that are whole or absent."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from llamafleet.history.files import write_text
from llamafleet.history.store import Built, GpuLine, Row, Store, read_result
from llamafleet.protocol.result import BuildSummary, Check, GpuRow, Result, Verdict
from llamafleet.received import Unreadable
from tests.history import OFFLOAD, RESULT, benchmark, gpu


def of(result: Result | Unreadable | None = None, failures: list[str] | None = None) -> Row:
    return Row.of(host="gpu-a", result=result, changed=["built"], failures=failures or [])


def test_a_row_of_a_result() -> None:
    assert of(RESULT) == Row(
        host="gpu-a",
        verdict="PASS",
        gpu="NVIDIA GeForce RTX 4090",
        gpus=(GpuLine("NVIDIA GeForce RTX 4090", "GPU-0", "PASS", 11536.25, 150.5),),
        driver="580.95.05",
        toolkit="13.0",
        build="0123456789abcdef",
        pp=11536.25,
        tg=150.5,
        changed=("built",),
        built=Built(
            wall_s=333.4,
            cpu_s=4542.0,
            wheel_bytes=131_600_000,
            phases={"resolve": 3.0, "compile": 301.5},
        ),
    )


RED = Check("offload", "fail", "0 of 33 layers on CUDA0", "33 of 33", "nvidia-smi")


def test_gpus_are_counted_by_name() -> None:
    others = (gpu(0), gpu(1), gpu(2, name="NVIDIA A100-PCIE-40GB"))
    row = of(replace(RESULT, gpus=others))
    assert row.gpu == "2x NVIDIA GeForce RTX 4090, NVIDIA A100-PCIE-40GB"
    assert row.tg is None, "no benchmark of all of them together"


def test_a_failed_check_is_a_reason_with_the_next_command() -> None:
    broken = replace(gpu(), verdict="FAIL", checks=(RED,))
    row = of(replace(RESULT, verdict="FAIL", gpus=(broken,)))
    assert row.verdict == "FAIL"
    said = "offload: found 0 of 33 layers on CUDA0; expected 33 of 33; next: nvidia-smi"
    assert row.reason == (said,)
    # The same reason told by the run itself is not told twice.
    again = of(replace(RESULT, verdict="FAIL", gpus=(broken,)), failures=[said])
    assert again.reason == row.reason


def test_of_several_gpus_the_red_one_is_named() -> None:
    broken = replace(gpu(1), verdict="FAIL", checks=(RED,), benchmark=None)
    row = of(replace(RESULT, verdict="FAIL", gpus=(gpu(), broken)))
    assert row.reason[0].startswith("NVIDIA GeForce RTX 4090 GPU-1: offload: found 0 of 33")
    assert [(g.uuid, g.verdict, g.tg) for g in row.gpus] == [
        ("GPU-0", "PASS", 150.5),
        ("GPU-1", "FAIL", None),
    ]


@pytest.mark.parametrize("verdict", ["PASS", "CPU ONLY"])
def test_no_good_verdict_beside_a_failed_check_or_a_failure(verdict: Verdict) -> None:
    result = replace(RESULT, verdict=verdict)
    assert of(result).verdict == verdict
    assert of(result, failures=["driver: found none"]).verdict == "FAIL"
    assert of(replace(result, checks=(RED,))).verdict == "FAIL"


WAITED = Check("benchmark", "busy", "tg 64.8: pid 42 computes there", "a free GPU", "nvidia-smi")
SENTENCE = "pid 42 computes there"


def busy(number: int = 0, *, sentences: tuple[str, ...] = (SENTENCE,)) -> GpuRow:
    figures = replace(benchmark(tg=64.8), busy=sentences)
    row = replace(gpu(number), verdict="BUSY", checks=(OFFLOAD, WAITED))
    return replace(row, benchmark=figures)


def test_a_busy_gpu_is_no_failure_and_no_success() -> None:
    row = of(replace(RESULT, verdict="BUSY", gpus=(busy(),)))
    assert (row.verdict, row.reason, row.figures_busy, row.allowed) == ("BUSY", (), True, False)
    assert row.busy == (str(WAITED),) and row.gpus[0].busy and not row.good
    assert of(replace(RESULT, verdict="BUSY", gpus=(busy(),), allow_busy=True)).good
    # The run may tell it as the host's failure, in these words.
    assert of(replace(RESULT, verdict="BUSY", gpus=(busy(),)), failures=[str(WAITED)]) == row


def test_no_pass_beside_a_busy_gpu() -> None:
    assert of(replace(RESULT, gpus=(replace(busy(), verdict="PASS"),))).verdict == "BUSY"


def test_what_the_check_does_not_say_the_benchmark_does() -> None:
    more = busy(sentences=(SENTENCE, "its power is capped"))
    row = of(replace(RESULT, verdict="BUSY", gpus=(more,)))
    assert row.busy == (str(WAITED), "benchmark: its power is capped")


def test_of_several_gpus_the_busy_one_is_named() -> None:
    result = replace(RESULT, verdict="BUSY", gpus=(gpu(), busy(1)), benchmark=benchmark())
    row = of(result)
    assert row.busy == (f"NVIDIA GeForce RTX 4090 GPU-1: {WAITED}",)
    assert [line.busy for line in row.gpus] == [False, True]
    assert not row.figures_busy, "those of both together are good ones"


@pytest.mark.parametrize("allowed", [False, True])
def test_a_failure_beside_busy_is_a_fail_allowed_or_not(allowed: bool) -> None:
    result = replace(RESULT, verdict="BUSY", gpus=(busy(),), allow_busy=allowed)
    row = of(result, failures=["switch: found none"])
    assert (row.verdict, row.good, row.reason) == ("FAIL", False, ("switch: found none",))
    red = replace(result, checks=(RED,))
    assert of(red).verdict == "FAIL"


def test_gpus_that_are_left_out_are_told() -> None:
    left = ("NVIDIA H100 GPU-9",)
    assert of(replace(RESULT, left_out=left)).left_out == left


def test_without_a_result() -> None:
    assert of(None, failures=["driver: found none"]) == Row(
        host="gpu-a", verdict="FAIL", changed=("built",), reason=("driver: found none",)
    )
    row = of(None)
    assert row.verdict == "NOT VERIFIED"
    assert row.reason == (
        "result: found no result of gpu-a; expected a finished verification; "
        "next: pyinfra -y inventory deploy.py",
    )


def test_a_result_without_benchmark_has_no_figures() -> None:
    row = of(replace(RESULT, gpus=(replace(gpu(), benchmark=None),)))
    assert (row.pp, row.tg) == (None, None)


def test_what_a_stamp_does_not_tell_stays_open() -> None:
    row = of(replace(RESULT, build=BuildSummary(wall_s=160.0)))
    assert (row.verdict, row.built, row.toolkit) == ("PASS", Built(wall_s=160.0), "")


def test_a_result_that_can_t_be_understood_is_a_row_that_says_so() -> None:
    row = of(Unreadable("verdict: found nothing"))
    assert row.verdict == "NOT VERIFIED"
    assert row.reason == (
        "result: found one that can't be understood (verdict: found nothing) of gpu-a; "
        "expected a finished verification; next: pyinfra -y inventory deploy.py",
    )
    assert row.changed == ("built",)
    assert of(Unreadable("x"), failures=["driver: y"]).verdict == "NOT VERIFIED"


@pytest.mark.parametrize(
    ("host", "folder"),
    [
        ("@local", "local"),
        ("gpu-a.example", "gpu-a.example"),
        ("@docker/debian:12", "@docker%2Fdebian%3A12"),
        ("../etc", "..%2Fetc"),
        ("..", "%2E%2E"),
        ("", "%"),
        ("a/b", "a%2Fb"),
        ("a_b", "a_b"),
        ("a%2Fb", "a%252Fb"),
        ("local", "local%"),
        ("runs", "runs%"),
        ("gpu-\x1b[2J\ud800", "gpu-%1B%5B2J%ED%A0%80"),
    ],
)
def test_a_host_s_folder_is_directly_below_the_root(host: str, folder: str, tmp_path: Path) -> None:
    found = Store(tmp_path).folder(host)
    assert found == tmp_path / folder
    assert found.resolve().parent == tmp_path.resolve()


def test_no_two_hosts_share_a_folder(tmp_path: Path) -> None:
    names = ["a/b", "a_b", "a%2Fb", "@a/b", "@a_b", "a:b", "@local", "local", "local%", "runs",
             "x" * 300, "x" * 301, "/" * 300, "last-run.json", ".", "..", "...", "_", "__", "@",
             "@@", "", "%"]  # fmt: skip
    folders = [Store(tmp_path).folder(name) for name in names]
    assert len(set(folders)) == len(names)
    for folder in folders:
        folder.mkdir()
        assert folder.parent == tmp_path and folder.resolve() == folder.absolute()


def test_results_in_a_folder_that_was_shared_are_those_of_their_host(tmp_path: Path) -> None:
    """Until results had a folder for each host, a/b and a_b wrote into the same one."""
    store, before = Store(tmp_path), {"a/b": "570.1", "a_b": "575.2"}
    for host, driver in before.items():
        old = replace(RESULT, host=host, inputs=replace(RESULT.inputs, driver=driver))
        path = tmp_path / "a_b" / f"{driver}.json"
        path.parent.mkdir(exist_ok=True)
        path.write_text(json.dumps(asdict(old)))
    for host, driver in before.items():
        update = store.update(host, replace(RESULT, host=host, finished=RESULT.finished + 1))
        assert update is not None and update.before.driver == driver
    store.write_result("a/b", replace(RESULT, host="a/b"))
    assert not (tmp_path / "a_b" / "latest.json").exists()


def test_results_are_kept_under_their_time_and_as_the_latest(tmp_path: Path) -> None:
    store = Store(tmp_path / "results")
    first = store.write_result("@local", RESULT)
    assert first == tmp_path / "results/local/20261125T000320Z-0123456789abcdef.json"
    second = store.write_result("@local", replace(RESULT, finished=1795565001.0))
    names = sorted(path.name for path in first.parent.iterdir())
    assert names == [first.name, second.name, "latest.json"]
    assert read_result(first) == RESULT
    assert json.loads((first.parent / "latest.json").read_text())["finished"] == 1795565001.0


def test_a_write_that_fails_leaves_the_old_file_and_no_other(tmp_path: Path) -> None:
    store = Store(tmp_path)
    path = store.write_result("gpu-a", RESULT)
    before = path.read_text()
    with pytest.raises(TypeError):
        store.write_result("gpu-a", replace(RESULT, model=object()))
    assert path.read_text() == before
    assert sorted(p.name for p in path.parent.iterdir()) == [path.name, "latest.json"]


def test_a_host_of_which_nothing_is_known_is_not_verified_whatever_it_said_before() -> None:
    lost = ["connection: found no answer; expected one; next: ssh"]
    for result, known, verdict in (
        (None, False, "NOT VERIFIED"),
        (None, True, "FAIL"),
        (RESULT, False, "NOT VERIFIED"),
        (RESULT, True, "FAIL"),
        (replace(RESULT, verdict="BUSY"), False, "NOT VERIFIED"),
        (replace(RESULT, verdict="BUSY"), True, "FAIL"),
    ):
        row = Row.of("gpu-a", result, [], lost, known=known)
        assert (row.verdict, row.reason) == (verdict, tuple(lost))
    assert Row.of("gpu-a", RESULT, [], [], known=False).verdict == "PASS"


def test_a_red_check_beside_a_good_verdict_is_a_fail_of_a_host_that_is_lost_too() -> None:
    red = replace(RESULT, checks=(Check("offload", "fail", "0 layers", "33", "look"),))
    assert Row.of("gpu-a", red, [], ["lost"], known=False).verdict == "FAIL"


def test_a_second_may_have_two_results(tmp_path: Path) -> None:
    """The first one may not be taken in yet; the same one again is one file."""
    store, later = Store(tmp_path), replace(RESULT, finished=RESULT.finished + 0.25)
    paths = [store.write_result("gpu-a", one) for one in (RESULT, later, RESULT, later)]
    assert paths[0] != paths[1]
    assert paths[2:] == paths[:2]
    assert [read_result(path) for path in paths[:2]] == [RESULT, later]
    paths[0].write_text("{")
    assert store.write_result("gpu-a", RESULT) == paths[0], "what can't be read is mended"


def test_a_file_that_cant_be_written_leaves_nothing_behind(tmp_path: Path) -> None:
    """And one that can is for all to read, though it is made by one alone."""
    write_text(tmp_path / "there.json", "{}")
    assert (tmp_path / "there.json").stat().st_mode & 0o777 == 0o644
    (tmp_path / "folder.json").mkdir()
    with pytest.raises(OSError):
        write_text(tmp_path / "folder.json", "{}")
    assert {path.name for path in tmp_path.iterdir()} == {"there.json", "folder.json"}
