"""Verifications for real, with a CPU build: its verdicts, and planted faults that must be red."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest

from llamafleet.onhost.job import EXIT_BUSY
from llamafleet.onhost.verify import checks
from llamafleet.protocol.diagnose import diagnose, signatures_from
from llamafleet.protocol.job import machine_id, read_progress
from llamafleet.tables import failures
from tests.onhost.llama import PYTHON, Host, host, library_folder, models, needs_llama, prefix
from tests.onhost.runner import wait_for

__all__ = ["host", "models"]
pytestmark = needs_llama


def test_a_cpu_build_is_cpu_only(host: Host) -> None:
    run = host.verify()
    assert run.returncode == 0, run.stdout + run.stderr
    result = host.latest
    assert result["verdict"] == "CPU ONLY"
    assert [check["name"] for check in result["checks"]] == list(checks.NAMES)
    status = {name: check["status"] for name, check in host.checks().items()}
    assert {name for name in status if status[name] == "skip"} == set(status) - checks.ON_CPU
    assert {name for name in status if status[name] == "pass"} == checks.ON_CPU
    assert "offload is red" in host.checks()["control"]["found"]
    pp, tg = result["benchmark"]["pp"], result["benchmark"]["tg"]
    assert (pp["n"], len(pp["samples_ts"]), len(pp["discarded_ts"])) == (32, 2, 1)
    assert (tg["n"], len(tg["samples_ts"]), len(tg["discarded_ts"])) == (4, 2, 1)
    assert pp["median_ts"] > 0 and tg["median_ts"] > 0
    assert result["model"]["layers"] == 4 and len(result["model"]["sha256"]) == 64
    assert result["build"]["wall_s"] == 160.5
    assert len(result["system"]["libraries"]) >= 4
    assert "CPU : " in result["system"]["system_info"]
    page = (host.results / "llamafleet.prom").read_text()
    assert 'llamafleet_verdict{verdict="CPU ONLY"} 1.0\n' in page
    rate = 'llamafleet_benchmark_tokens_per_second{gpu="cpu",test="tg",tokens="4",model='
    assert f"}} {tg['median_ts']!r}\n" in page.partition(rate)[2]
    named = [path for path in host.results.iterdir() if path.name.endswith("-f00.json")]
    assert json.loads(named[0].read_text()) == result
    assert json.loads((host.job / "stamp.json").read_text())["ok"] is True
    assert json.loads((host.job / "progress.json").read_text())["phase"] == "result"
    for name in checks.NAMES:
        assert name in run.stdout


def test_no_known_failure_is_seen_in_a_good_run(host: Host) -> None:
    assert host.verify().returncode == 0
    signatures = signatures_from(failures.rows())
    logs = sorted(host.job.glob("worker-*.log"))
    assert len(logs) == 4
    for log in logs:
        assert diagnose(signatures, log.read_text(encoding="utf-8")) is None, log


def test_only_the_first_verification_of_a_build_discards(host: Host) -> None:
    for discarded in (1, 0):
        host.verify()
        assert len(host.latest["benchmark"]["tg"]["discarded_ts"]) == discarded


def test_a_cpu_build_where_cuda_is_expected_fails(host: Host) -> None:
    """Also the case of a host whose GPUs are gone: everything that needs one is red."""
    host.config["backend"] = "cuda"
    run = host.verify()
    assert run.returncode == 1
    assert host.latest["verdict"] == "FAIL"
    assert host.red() >= {"library_cuda", "machine_code", "offload", "logits"}
    found = host.checks()
    assert "-DGGML_CUDA=on" in found["library_cuda"]["next"]
    assert "0 of 5 layers" in found["offload"]["found"]
    assert "not on the GPU" in found["logits"]["found"]
    assert found["control"]["status"] == "pass"
    assert found["benchmark"]["status"] == "skip"


@pytest.mark.skipif(os.path.exists("/dev/nvidiactl"), reason="this host has a GPU")  # noqa: PTH110
def test_a_host_without_a_driver_is_told_so(host: Host) -> None:
    host.config["backend"] = "cuda"
    host.verify()
    assert {"gpus_visible", "vram", "busy"} <= host.red()
    assert "NVML" in host.checks()["gpus_visible"]["found"]
    assert "nvidia-smi" in host.checks()["gpus_visible"]["next"]


def test_cpu_only_must_be_allowed(host: Host) -> None:
    host.config["allow_cpu_only"] = False
    assert host.verify().returncode == 1
    assert host.red() == {"gpus_visible"}
    assert "accelerator" in host.checks()["gpus_visible"]["next"]


def test_a_library_that_the_build_did_not_make_is_red(host: Host) -> None:
    listed = json.loads(host.stamp.read_text())["libraries"]
    name = next(name for name in listed if name.endswith("libllama.so"))
    host.write_stamp(listed | {name: "0" * 64})
    assert host.verify().returncode == 1
    assert host.red() == {"library_origin"}
    assert "libllama.so" in host.checks()["library_origin"]["found"]


def test_a_stale_library_that_shadows_is_red(host: Host, tmp_path: Path) -> None:
    stale = tmp_path / "stale"
    stale.mkdir()
    shutil.copy(library_folder() / "libggml-base.so", stale)
    # LD_LIBRARY_PATH comes after the search path of what is built by now.
    host.config["environment"] = {"LD_PRELOAD": str(stale / "libggml-base.so")}
    assert host.verify().returncode == 1
    check = host.checks()["library_origin"]
    assert check["status"] == "fail"
    assert str(stale) in check["found"] and "LD_PRELOAD" in check["next"]


def test_nothing_of_the_caller_s_environment_reaches_the_worker(host: Host, tmp_path: Path) -> None:
    """As /etc/environment or a login's profile may set it: each would change the verdict."""
    planted = tmp_path / "planted"
    planted.mkdir()
    shutil.copy(library_folder() / "libggml-base.so", planted)
    (planted / "llama_cpp.py").write_text("raise SystemExit('planted')\n")
    hostile = {"LD_LIBRARY_PATH": planted, "PYTHONPATH": planted, "LLAMA_CPP_LIB_PATH": planted}
    hostile |= {"PYTHONHOME": planted, "PYTHONSTARTUP": planted / "llama_cpp.py"}
    env = {name: str(value) for name, value in hostile.items()}
    run = host.verify(env=env | {"GGML_BACKEND_PATH": "/none", "CUDA_VISIBLE_DEVICES": "7"})
    assert run.returncode == 0, run.stdout + run.stderr
    assert host.latest["verdict"] == "CPU ONLY"


def verifying(host: Host) -> bool:
    progress = read_progress(host.job)
    return progress is not None and progress.phase not in ("", "gpus_visible")


def test_its_code_may_be_replaced_while_it_runs(host: Host) -> None:
    """As a deploy by another version does: each of its steps starts a worker from that file."""
    with host.start() as process:
        wait_for(lambda: verifying(host))
        (host.root / "new").write_bytes(b"another version")
        (host.root / "new").replace(host.root / "llamafleet-host.pyz")
        out, err = process.communicate(timeout=300)
    assert process.returncode == 0, out + err
    assert host.latest["verdict"] == "CPU ONLY"


def test_one_at_a_time_on_a_host(host: Host) -> None:
    with host.start() as first:
        wait_for(lambda: verifying(host))
        second = host.verify()
        assert second.returncode == EXIT_BUSY
        assert "found another verification on this host (verify f00, process " in second.stderr
        out, err = first.communicate(timeout=300)
    assert first.returncode == 0, out + err
    assert host.latest["verdict"] == "CPU ONLY"


def test_a_result_says_which_machine_and_which_build_it_is_of(host: Host) -> None:
    assert host.verify().returncode == 0
    assert host.latest["machine_id"] == machine_id()
    assert host.latest["prefix"] == host.config["prefix"]


@pytest.mark.skipif(os.geteuid() != 0, reason="root alone is refused")
def test_root_verifies_nothing_for_an_account(host: Host) -> None:
    host.config["as_account"] = ["setpriv", "--reuid=llamafleet"]
    run = host.verify()
    assert run.returncode == 2 and not host.job.exists() and not host.results.exists()
    assert "found uid 0; expected the account that builds" in run.stderr
    assert "next: setsid -w env -i setpriv --reuid=llamafleet /" in run.stderr
    assert run.stderr.rstrip().endswith(
        f"verify --config {host.root}/verify.json </dev/null 2>&1 | cat"
    )


def test_a_build_elsewhere_is_red(host: Host, tmp_path: Path) -> None:
    host.config["prefix"] = str(tmp_path)
    assert host.verify().returncode == 1
    assert "library_origin" in host.red()


def test_a_missing_stamp_is_red(host: Host) -> None:
    host.stamp.unlink()
    assert host.verify().returncode == 1
    assert host.red() == {"library_origin"}


@pytest.mark.parametrize(
    ("task", "check"), [("control", "control"), ("context", "context"), ("bench", "benchmark")]
)
def test_an_abort_in_the_child_is_red(host: Host, task: str, check: str) -> None:
    run = host.verify("--abort-in", task)
    assert run.returncode == 1
    assert host.red() == {check}
    assert "SIGABRT" in host.checks()[check]["found"]
    assert "abort asked for" in host.checks()[check]["found"]
    assert Path(host.checks()[check]["next"].removeprefix("read ")).exists()


def test_a_damaged_synthetic_model_is_red(host: Host, tmp_path: Path) -> None:
    host.config["models"] = str(tmp_path / "models")
    host.verify()
    model = tmp_path / "models" / "synthetic-tiny-q4_0.gguf"
    data = bytearray(model.read_bytes())
    data[-100] ^= 0xFF
    model.write_bytes(data)
    assert host.verify().returncode == 1
    assert host.red() == {"model"}
    assert "damaged" in host.checks()["model"]["found"]
    assert f"rm {model}" in host.checks()["model"]["next"]


def test_a_model_of_the_user_s_own_is_measured(host: Host, tmp_path: Path, models: Path) -> None:
    host.verify()
    model = tmp_path / "mine.gguf"
    shutil.copy(models / "synthetic-tiny-q4_0.gguf", model)
    host.config["inputs"]["model"] = str(model)
    assert host.verify().returncode == 0
    assert host.latest["verdict"] == "CPU ONLY" and host.latest["model"]["path"] == str(model)
    assert "mine.gguf: 1 MiB of weights" in host.checks()["model"]["found"]


@pytest.mark.parametrize("content", [None, b"no model"])
def test_a_given_model_that_is_none_is_red(
    host: Host, tmp_path: Path, content: bytes | None
) -> None:
    model = tmp_path / "mine.gguf"
    if content is not None:
        model.write_bytes(content)
    host.config["inputs"]["model"] = str(model)
    assert host.verify().returncode == 1
    assert host.red() == {"model"}
    assert "mine.gguf" in host.checks()["model"]["found"]
    assert host.latest["model"] is None


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        (b"\x05\0\0\0\0\0\0\0llama", b"\x05\0\0\0\0\0\0\0llomo", "architecture: 'llomo'"),
        (b"blk.3.ffn_up", b"blk.3.ffn_op", "tensor 'blk.3.ffn_up.weight' not found"),
    ],
)
def test_a_model_that_llama_cpp_rejects_is_red(
    host: Host, tmp_path: Path, models: Path, *, old: bytes, new: bytes, said: str
) -> None:
    """Whole for the reader, and yet wrong: no architecture of that name, or a tensor too few."""
    host.verify()
    model = tmp_path / "mine.gguf"
    data = (models / "synthetic-tiny-q4_0.gguf").read_bytes()
    model.write_bytes(data.replace(old, new, 1))
    host.config["inputs"]["model"] = str(model)
    assert host.verify().returncode == 1
    assert host.red() == {"model"}
    assert said in host.checks()["model"]["found"]
    assert "newer llama_version" in host.checks()["model"]["next"]


def test_a_context_that_does_not_fit_is_red_and_a_smaller_one_is_named(host: Host) -> None:
    host.config["inputs"]["context"] = 100_000_000
    assert host.verify().returncode == 1
    assert host.red() == {"context"}
    check = host.checks()["context"]
    assert "out of memory" in check["found"] and "known as oom-" in check["found"]
    number = int(check["next"].split("=")[1].split()[0])
    assert 0 < number < 100_000_000 and number % 256 == 0


LOADED = {"offload", "vram", "busy", "control", "logits", "context", "benchmark"}
"""Checks that load a model."""


def skipped(host: Host) -> set[str]:
    return {name for name, check in host.checks().items() if check["status"] == "skip"}


def shadowing(folder: Path, code: str) -> Path:
    """A package of the build's name that is `code`."""
    package = folder / "llama_cpp"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text(code)
    return folder


@pytest.mark.parametrize("backend", ["cpu", "cuda"])
def test_a_library_that_cannot_be_loaded_is_one_red_check(
    host: Host, tmp_path: Path, backend: str
) -> None:
    """Of the build itself: one that it needs is broken in front of the system's."""
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken/libgomp.so.1").write_text("no library")
    host.config["backend"] = backend
    host.config["environment"] = {"LD_LIBRARY_PATH": str(tmp_path / "broken")}
    run = host.verify()
    assert run.returncode == 1, run.stderr
    name = "library_cuda" if backend == "cuda" else "library_origin"
    assert host.red() - {"gpus_visible", "machine_code"} == {name}, "of what is loaded"
    assert "libgomp.so.1" in host.checks()[name]["found"]
    assert skipped(host) >= LOADED
    assert host.checks()["context"]["found"] == "not tried: the library can't be loaded"


@pytest.mark.parametrize("code", ["raise ImportError('planted')\n", "__version__ = '0.3.36'\n"])
def test_a_package_in_front_of_the_build_is_named(host: Host, tmp_path: Path, code: str) -> None:
    """It was "ImportError" in nine checks; or nothing, where it could be imported."""
    folder = shadowing(tmp_path / "mine", code)
    host.config["environment"] = {"PYTHONPATH": f"/none:{folder}"}
    assert host.verify().returncode == 1
    assert host.red() == {"library_origin"} and skipped(host) >= LOADED
    check = host.checks()["library_origin"]
    assert f"llama_cpp is imported from {folder}/llama_cpp/__init__.py" in check["found"]
    assert f"by {folder} of sys.path, which PYTHONPATH=/none:{folder} " in check["found"]
    assert ("planted" in check["found"]) is ("planted" in code)
    assert f"below {library_folder().parent}" in check["expected"]
    assert "without PYTHONPATH" in check["next"]


def test_a_package_that_loads_the_build_s_libraries_is_red_too(host: Host, tmp_path: Path) -> None:
    """Its libraries are the build's own, by path and content; its code is not. It was a pass."""
    folder = tmp_path / "mine"
    shutil.copytree(library_folder().parent, folder / "llama_cpp", ignore=lambda *_: ["lib"])
    (folder / "llama_cpp/lib").symlink_to(library_folder())
    host.config["environment"] = {"PYTHONPATH": str(folder)}
    assert host.verify().returncode == 1
    assert host.red() == {"library_origin"}
    assert f"imported from {folder}/llama_cpp" in host.checks()["library_origin"]["found"]


def test_libraries_that_a_variable_puts_elsewhere_are_named(host: Host, tmp_path: Path) -> None:
    host.config["environment"] = {"LLAMA_CPP_LIB_PATH": str(tmp_path)}
    assert host.verify().returncode == 1
    assert host.red() == {"library_origin"} and skipped(host) >= LOADED
    check = host.checks()["library_origin"]
    assert f"LLAMA_CPP_LIB_PATH={tmp_path}" in check["found"]
    assert "unset LLAMA_CPP_LIB_PATH" in check["next"]


def test_a_user_s_own_package_is_not_seen(host: Host, tmp_path: Path) -> None:
    """Of ~/.local, wherever the home is: the worker has none."""
    version = library_folder().parents[2].parent.name
    for home in (host.job, tmp_path / "home"):
        shadowing(home / f".local/lib/{version}/site-packages", "raise SystemExit('planted')\n")
    run = host.verify(env={"HOME": str(tmp_path / "home"), "PYTHONUSERBASE": str(tmp_path)})
    assert run.returncode == 0, run.stdout


def test_an_old_verdict_is_gone_before_the_new_one_is_there(host: Host) -> None:
    host.results.mkdir()
    latest = host.results / "latest.json"
    latest.write_text('{"verdict": "PASS"}')
    host.config["inputs"]["context"] = 0
    host.config["surplus"] = 1
    run = host.verify()
    assert run.returncode == 2
    assert "context: found 0" in run.stderr
    assert not latest.exists()


def test_a_result_that_cannot_be_written_is_told(host: Host) -> None:
    host.config["results"] = "/proc/results"
    run = host.verify()
    assert run.returncode == 2
    assert "/proc/results" in run.stderr


def test_tests_use_a_venv() -> None:
    assert (prefix() / "pyvenv.cfg").exists(), f"{PYTHON} must be a venv's bin/python, unresolved"
