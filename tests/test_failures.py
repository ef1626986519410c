"""Every row of the catalogue of failures is reached: planted where it happens, read by a person.

A row that nothing asks for is advice that nobody gets; one that fits what is sound is wrong advice.
"""

from __future__ import annotations

import shlex
from collections.abc import Callable
from pathlib import Path
from typing import get_args

import pytest

from llamafleet.facts.host import HostSnapshot
from llamafleet.onhost.job import JobFailed
from llamafleet.onhost.product import import_check
from llamafleet.onhost.verify import known, synth
from llamafleet.onhost.verify.child import Children
from llamafleet.onhost.verify.evidence import task_failed
from llamafleet.plans.driver.known import known_of
from llamafleet.plans.driver.verdict import driver_verdict
from llamafleet.plans.make import make_plan
from llamafleet.protocol.diagnose import diagnose, signatures_from
from llamafleet.protocol.result import Check
from llamafleet.settings import Settings
from llamafleet.tables import failures
from tests.facts.fakehost import FakeHost
from tests.facts.test_gpus import pci
from tests.hosts.recorded import NAMES, load
from tests.onhost.catalogue import catalogue
from tests.onhost.llama import models
from tests.onhost.runner import Runner
from tests.onhost.test_build import Build
from tests.onhost.toolkit.test_install import Install
from tests.onhost.verify.test_session import Host, every, host
from tests.plans.hosts import LAYOUT

__all__ = ["catalogue", "host", "models"]

ROWS = failures.rows()
SIGNATURES = signatures_from(ROWS)
DATA = Path(__file__).parent / "onhost" / "data"
Row = dict[str, str]
CHECKS = {
    "blas-0": "library_cuda",
    "cpu-build": "library_cuda",
    "cpu-only-build": "library_cuda",
    "fa-fallback": "benchmark",
    "mlock": "context",
    "n-ctx-overflow": "context",
}
"""The check that says what a run's log holds, where it is not offload."""


# -- where failures are said, each way with what a person then reads -----------------------------


def a_build_job_says(folder: Path, sample: str) -> str:
    """In the place of the interpreter: says it and fails."""
    script = folder / "python"
    script.write_text(f"#!/bin/sh\nprintf '%s\\n' {shlex.quote(sample)}\nexit 1\n")
    script.chmod(0o755)
    for name in ("llama_cpp_python-0.3.36.tar.gz", "requirements.txt"):
        (folder / name).touch()
    return _read(Build(Runner(folder), folder, python=str(script)))


def nvcc_of_a_toolkit_job_says(folder: Path, sample: str) -> str:
    version = "Cuda compilation tools, release 13.0, V13.0.88"
    script = f'#!/bin/sh\n[ "$*" = --version ] && echo "{version}" && exit\n'
    return _read(Install(folder, f"{script}printf '%s\\n' {shlex.quote(sample)}\nexit 1\n"))


def _read(job: Build | Install) -> str:
    assert job.run().returncode == 1
    error = job.stamp["error"]
    return f"{error['signature']} {error['cause']} {error['fix']}"


def an_import_says(folder: Path, sample: str) -> str:
    return _worker(folder, f"raise RuntimeError({sample!r})\n")


def a_run_that_dies_says(folder: Path, sample: str) -> str:
    return _worker(folder, f"import os\nos.write(2, {sample.encode()!r} + b'\\n')\nos.abort()\n")


def _worker(folder: Path, code: str) -> str:
    """Its llama_cpp is `code`."""
    (folder / "llama_cpp").mkdir()
    (folder / "llama_cpp" / "__init__.py").write_text(code)
    outcome = Children(folder, None, {"PYTHONPATH": str(folder)}).run("probe")
    return str(task_failed("library_cuda", outcome))


def a_run_that_ends_says(host: Host, model: Path, row: Row) -> str:
    """What the check says that is about it; the model is the user's."""
    answers, verify = host
    name = CHECKS.get(row["id"], "offload")
    task = {"library_cuda": "probe", "offload": "generate", "benchmark": "bench"}.get(name, name)
    reply, log = answers.answers[task]
    if name == "library_cuda":
        reply = (reply or {}) | {"system_info": row["sample"]}
    else:
        log = f"{row['sample']}\n"
    answers.answers[task] = (reply, log)
    checks = [Check(**check) for check in every(verify(model=str(model)))]
    return next(str(check) for check in checks if check.name == name)


def nvidia_smi_says(folder: Path, sample: str) -> str:
    fake = FakeHost(folder)
    fake.program("nvidia-smi", f"printf '%s\\n' {shlex.quote(sample)}; exit 9")
    return _planned(fake)


def the_kernel_says(folder: Path, sample: str) -> str:
    fake = FakeHost(folder)
    fake.program("nvidia-smi", "echo 'No devices were found'; exit 6")
    fake.program("dmesg", f"printf '[ 8123.456789] %s\\n' {shlex.quote(sample)}")
    return _planned(fake)


def _planned(fake: FakeHost) -> str:
    # Whoever came by sudo is told to type it.
    fake.program("sudo", "exit 1")
    fake.environment = {"SUDO_UID": "1000"}
    pci(fake, "0000:01:00.0", "0x2684", "nvidia")
    plan = make_plan("gpu-a", Settings(), fake.snapshot(), LAYOUT)
    return "\n".join(str(problem) for problem in plan.problems if problem.check == "driver")


Reach = Callable[[Row], list[str]]


@pytest.fixture
def reach(tmp_path: Path, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Reach:
    """What is read after a row's sample was said, in each place where its stage says it.

    Raises KeyError for a stage without a place.
    """
    # A toolkit of this machine would be the better answer.
    monkeypatch.setattr(known, "TOOLKITS", ())

    def ended(folder: Path, row: Row) -> str:
        model = folder / "mine.gguf"
        model.symlink_to(synth.ensure(request.getfixturevalue("models"), "160m", "q4_0")[0])
        return a_run_that_ends_says(request.getfixturevalue("host"), model, row)

    def detected(folder: Path, sample: str) -> str:
        return (the_kernel_says if "NVRM: " in sample else nvidia_smi_says)(folder, sample)

    ways = {
        "detection": (detected,),
        "toolkit": (nvcc_of_a_toolkit_job_says,),
        **dict.fromkeys(("deps", "configure", "compile", "link"), (a_build_job_says,)),
        "import": (an_import_says, a_build_job_says),
        "runtime": (a_run_that_dies_says,),
    }

    def reached(row: Row) -> list[str]:
        if row["stage"] == "verify":
            return [ended(tmp_path, row)]
        texts = []
        for number, way in enumerate(ways[row["stage"]]):
            folder = tmp_path / str(number)
            folder.mkdir()
            texts.append(way(folder, row["sample"]))
        return texts

    return reached


# -- the proof ------------------------------------------------------------------------------------


@pytest.mark.parametrize("row", ROWS, ids=[row["id"] for row in ROWS])
def test_a_row_is_reached(reach: Reach, row: Row) -> None:
    # What to do about a card is the driver's verdict's word, which knows the host and its GPUs.
    fix = "; next: " if row["stage"] == "detection" else row["fix"]
    for text in reach(row):
        assert row["id"] in text and fix in text, f"{row['id']} is not said: {text}"


def test_every_stage_has_rows() -> None:
    assert {row["stage"] for row in ROWS} == set(get_args(failures.Stage))


def planted(stage: str, sample: str) -> Row:
    return {"id": "planted", "stage": stage, "sample": sample, "fix": "do this"}


def test_a_row_of_a_new_stage_is_seen(reach: Reach) -> None:
    with pytest.raises(KeyError):
        test_a_row_is_reached(reach, planted("serve", "address already in use"))


@pytest.mark.parametrize(
    ("stage", "sample"),
    [
        ("detection", "traps: python3[213941] trap invalid opcode in libllama.so"),
        ("compile", "nvcc is tired"),
        ("runtime", "CUDA is tired"),
        ("verify", "llama.cpp is tired"),
    ],
)
def test_a_row_that_nothing_asks_for_is_seen(reach: Reach, stage: str, sample: str) -> None:
    with pytest.raises(AssertionError, match="planted is not said"):
        test_a_row_is_reached(reach, planted(stage, sample))


def test_a_build_for_another_cpu_is_known_by_the_end_of_its_import(tmp_path: Path) -> None:
    script = tmp_path / "python"
    script.write_text("#!/bin/sh\nkill -ILL $$\n")
    script.chmod(0o755)
    with pytest.raises(JobFailed) as failed:
        import_check(str(script), {}, tmp_path)
    match = diagnose(SIGNATURES, str(failed.value))
    assert match and match.id == "illegal-instruction"


# -- what is sound is not diagnosed ----------------------------------------------------------------

LOGS = {
    "cuda-half": "layers-on-cpu",
    "cuda-zero": "gpu-layers-0",
    "cuda-init-error": "no-cuda-device",
    **dict.fromkeys(("cuda-full", "cuda-colon", "cuda-two-gpus", "cpu-160m")),
}
"""What each recorded log of a run is known as; None: it is a good one."""


def test_every_recorded_log_is_looked_at() -> None:
    assert {path.stem for path in (DATA / "logs").glob("*.log")} == set(LOGS)


@pytest.mark.parametrize("name", LOGS)
def test_a_recorded_run_is_known_as_what_it_is(name: str) -> None:
    match = diagnose(SIGNATURES, (DATA / "logs" / f"{name}.log").read_text("utf-8"))
    assert (match and match.id) == LOGS[name]


def test_a_good_build_is_not_diagnosed() -> None:
    assert diagnose(SIGNATURES, (DATA / "build-cpu.log").read_text("utf-8")) is None


def healthy(snapshot: HostSnapshot) -> bool:
    """Its driver works, and its kernel's log holds nothing about a card."""
    driver = snapshot.driver
    return driver_verdict(snapshot).state == "ok" and bool(snapshot.gpus) and not driver.kernel_log


HEALTHY = [name for name in NAMES if healthy(load(name).snapshot)]


def test_there_are_healthy_hosts_enough() -> None:
    assert len(HEALTHY) > 20


@pytest.mark.parametrize("name", HEALTHY)
def test_a_healthy_host_is_not_diagnosed(name: str) -> None:
    recorded = load(name)
    assert known_of(recorded.snapshot) is None
    assert diagnose(SIGNATURES, recorded.text) is None
    assert "known as " not in recorded.explanation
