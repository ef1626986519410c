"""Proof on a host with an NVIDIA GPU: `.venv/bin/pytest -m gpu`, by hand, in this order.

It provisions this machine by the real command and leaves the deployment in place. What it measured
is in results/gpu.json. Environment: LLAMAFLEET_GPU_WHEELHOUSE (work without a network),
LLAMAFLEET_GPU_REPORT, LLAMAFLEET_GPU_WRONG_LIBRARY (a libggml-cuda.so for another capability).
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from statistics import median
from typing import Any

import pytest

from llamafleet.layout import AS_ACCOUNT
from llamafleet.onhost.driver_check import EXIT_OK, EXIT_STALE, EXIT_VERIFY
from llamafleet.protocol.job import PATH
from llamafleet.protocol.result import Check, Result
from tests.gpu import llama_bench, measure
from tests.gpu.measure import LAYOUT, check, deploy, record, reds, result, verify

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(
        not Path("/dev/nvidiactl").exists(), reason="no NVIDIA GPU: /dev/nvidiactl is not there"
    ),
]
ROUNDS = 3


def summary(found: Result, seconds: float) -> dict[str, Any]:
    """The figures of one deployment that go into a table."""
    return {
        "run_s": round(seconds, 1),
        "verdict": found.verdict,
        "driver": found.system.driver,
        "build": asdict(found.build),
        "benchmark": found.benchmark and asdict(found.benchmark),
        "gpus": [
            asdict(replace(gpu, checks=())) | {"checks": told(gpu.checks)} for gpu in found.gpus
        ],
        "checks": told(found.checks),
    }


def told(checks: Sequence[Check]) -> dict[str, str]:
    return {check.name: f"{check.status}: {check.found}" for check in checks}


def test_the_build_that_a_4090_gets_passes_here() -> None:
    run = deploy(accelerator="cuda", compute_capabilities=["8.9"])
    assert run.returncode == 0, run.output
    found = result()
    record("sm_89", **summary(found, run.seconds), output=run.output[-3000:])
    assert found.verdict == "PASS"
    native = all(g.compute_capability == "8.9" for g in found.gpus)
    assert check(found, "machine_code").status == ("pass" if native else "warn")
    assert (found.build.inputs or {})["compute_capabilities"] == ["8.9"]


def test_the_detected_capability_passes_with_machine_code() -> None:
    run = deploy(accelerator="cuda")
    assert run.returncode == 0, run.output
    found = result()
    record("detected", **summary(found, run.seconds), output=run.output[-3000:])
    assert found.verdict == "PASS"
    assert check(found, "machine_code").status == "pass"
    assert found.system.driver == found.inputs.driver


def test_the_next_run_changes_nothing() -> None:
    run = deploy(accelerator="cuda")
    assert run.returncode == 0, run.output
    record("second_run", run_s=round(run.seconds, 2))
    assert "PASS" in run.output and "nothing" in run.output, run.output


OLDER = "570.86.10"


def test_after_a_driver_update_the_host_is_verified_and_nothing_is_built() -> None:
    """The update is in the records alone: all results so far are made to speak of an older one."""
    loaded = result().inputs.driver
    stored = [Path(LAYOUT.results, "latest.json"), *measure.STORED.glob("*.json")]
    for file in stored:
        data = json.loads(file.read_text())
        data["inputs"]["driver"], data["key"] = OLDER, "0" * 16
        file.write_text(json.dumps(data))
    assert driver_check() == EXIT_VERIFY and not Path(LAYOUT.results, "latest.json").exists()
    run = deploy(accelerator="cuda")
    assert run.returncode == 0, run.output
    record("driver_update", run_s=round(run.seconds, 1), output=run.output[-3000:])
    assert "build: none" in run.output and "Build llama-cpp-python" in run.output
    assert f"driver {OLDER} -> {loaded}: PASS -> PASS" in run.output, run.output
    assert result().inputs.driver == loaded
    again = deploy(accelerator="cuda")
    assert again.returncode == 0 and OLDER not in again.output, again.output
    assert driver_check() == EXIT_OK


def test_other_gpus_take_the_verdict_away() -> None:
    """The exchange is in the settings alone: they are made to speak of another GPU."""
    file = Path(LAYOUT.verify_config)
    text = file.read_text()
    planned = json.loads(text)["inputs"]["gpus"]
    file.write_text(text.replace(planned[0], "NVIDIA GeForce RTX 4090 GPU-0"))
    assert driver_check() == EXIT_STALE and not Path(LAYOUT.results, "latest.json").exists()
    mark = json.loads(Path(LAYOUT.results, "stale.json").read_text())
    assert mark["reason"] == (
        f"the GPUs changed: found {', '.join(planned)}; expected "
        + ", ".join(("NVIDIA GeForce RTX 4090 GPU-0", *planned[1:]))
    )
    run = deploy(accelerator="cuda")
    assert run.returncode == 0 and result().verdict == "PASS", run.output
    assert driver_check() == EXIT_OK


def driver_check() -> int:
    """Exit status of what the unit of that name runs."""
    clean = ("env", "-i", f"PATH={PATH}")
    command = [*AS_ACCOUNT, *clean, f"{LAYOUT.current}/bin/python", "-I", LAYOUT.zipapp]
    return subprocess.run(
        [*command, "driver-check", "--config", LAYOUT.verify_config], check=False
    ).returncode


@pytest.mark.parametrize(
    ("model", "pp_limit", "tg_limit"),
    [("synthetic-7b-q4_0.gguf", 0.05, 0.02), ("synthetic-160m-q4_0.gguf", 0.05, 0.02)],
)
def test_the_benchmark_agrees_with_llama_bench(
    tmp_path: Path, model: str, pp_limit: float, tg_limit: float
) -> None:
    path = f"{LAYOUT.models}/{model}"
    if not Path(path).exists():
        shape, kind = model.removeprefix("synthetic-").removesuffix(".gguf").rsplit("-", 1)
        measure.synthesise(shape, kind, path)
    program = llama_bench.compile_it(tmp_path)
    ours: list[dict[str, Any]] = []
    theirs: list[dict[str, float]] = []
    for _ in range(ROUNDS):
        ours.append(measure.our_bench(tmp_path, path))
        theirs.append(llama_bench.run(program, path, ours[-1]["threads"]))
    ratios = {}
    for kind in ("pp", "tg"):
        mine = median(o[kind]["median_ts"] for o in ours)
        reference = median(t[kind] for t in theirs)
        ratios[kind] = mine / reference
    record(
        f"llama_bench {model}",
        ratios=ratios,
        ours=[{k: o[k]["median_ts"] for k in ("pp", "tg")} for o in ours],
        llama_bench=theirs,
    )
    assert ratios["tg"] == pytest.approx(1, abs=tg_limit), (ours, theirs)
    assert ratios["pp"] == pytest.approx(1, abs=pp_limit), (ours, theirs)


# -- planted faults: none may end in PASS, and the check it is about must be red ------------------


def planted(name: str, found: Result, *expected: str) -> None:
    record(
        f"fault {name}",
        verdict=found.verdict,
        red={f"{where} {c.name}".strip(): [c.found, c.next] for where, c in found.red},
    )
    assert found.verdict == "FAIL"
    assert set(expected) <= set(reds(found)), reds(found)
    assert all(check(found, name).next for name in reds(found))


def test_hidden_gpus_are_red(tmp_path: Path) -> None:
    found = verify(tmp_path, env={"CUDA_VISIBLE_DEVICES": ""})
    planted("gpus hidden", found, "gpus_visible")
    assert {gpu.verdict for gpu in found.gpus} == {"FAIL"}
    assert "CUDA_VISIBLE_DEVICES" in check(found, "gpus_visible").next


@pytest.mark.parametrize("layers", ["0", "half"])
def test_a_model_that_stays_on_the_cpu_is_red(tmp_path: Path, layers: str) -> None:
    found = verify(tmp_path, "--n-gpu-layers", layers)
    planted(f"n_gpu_layers {layers}", found, "offload", "vram", "logits")
    said = check(found, "offload").found
    assert said.startswith("graph: ") and "weights of layers 0-" in said and "; log: " in said


def test_memory_that_the_driver_moves_is_red(tmp_path: Path) -> None:
    """Graph and log show the GPU: the growth of its memory tells."""
    found = verify(tmp_path, env={"GGML_CUDA_ENABLE_UNIFIED_MEMORY": "1"})
    planted("unified memory", found, "vram")


def test_a_context_far_too_large_is_red_and_the_largest_that_fits_is_named(tmp_path: Path) -> None:
    found = verify(tmp_path, inputs={"context": 1_048_576})
    planted("out of memory", found, "context")
    assert "set context = " in check(found, "context").next


def test_a_stale_library_in_front_is_red(tmp_path: Path) -> None:
    stale = tmp_path / "stale"
    stale.mkdir()
    library = next(Path(LAYOUT.current).resolve().rglob("libggml-base.so"))
    shutil.copy(library, stale)
    found = verify(tmp_path, env={"LD_LIBRARY_PATH": str(stale)})
    planted("stale library", found, "library_origin")


@pytest.mark.skipif(os.geteuid() != 0, reason="to hide a folder from one process takes root")
def test_a_missing_cublas_is_red(tmp_path: Path) -> None:
    """libcublas is hidden from this one verification, by mounts of its own."""
    found = verify(tmp_path, prefix_command=hidden(library_folder(), tmp_path / "libraries"))
    planted("libcublas missing", found, "library_cuda")
    assert "libcublas" in check(found, "library_cuda").found


def library_folder() -> Path:
    """Where the build looks for libcublas: the path that is linked into it."""
    options = (result().build.inputs or {})["cmake_options"]
    flags = next(o for o in options if o.startswith("CMAKE_SHARED_LINKER_FLAGS="))
    return Path(flags.rpartition("-rpath,")[2]).resolve()


HIDE = """
mkdir "$2" && mount --bind "$1" "$2" && mount -t tmpfs none "$1"
for file in "$2"/*; do
  case $file in */libcublas.so*) ;; *) ln -s "$file" "$1" ;; esac
done
shift 2
exec "$@"
"""


def hidden(folder: Path, aside: Path) -> list[str]:
    """A command in front of another, which then sees no libcublas in `folder`."""
    return ["unshare", "-m", "sh", "-euc", HIDE, "sh", str(folder), str(aside)]


def test_a_cpu_build_in_the_cuda_build_s_place_is_red(tmp_path: Path) -> None:
    run = deploy(accelerator="cpu", model="synthetic:tiny-q4_0")
    assert run.returncode == 0, run.output
    cpu = json.loads(Path(LAYOUT.verify_config).read_text())
    run = deploy(accelerator="cuda")
    assert run.returncode == 0, run.output
    found = verify(tmp_path, prefix=cpu["prefix"], stamp=cpu["stamp"])
    planted("cpu build", found, "library_cuda", "machine_code", "offload")


@pytest.mark.skipif(
    "LLAMAFLEET_GPU_WRONG_LIBRARY" not in os.environ,
    reason="LLAMAFLEET_GPU_WRONG_LIBRARY names no library for another capability",
)
def test_a_library_for_another_capability_is_red(tmp_path: Path) -> None:
    """The installed build with only its CUDA library replaced, and a stamp that agrees."""
    config = json.loads(Path(LAYOUT.verify_config).read_text())
    stamp = json.loads(Path(config["stamp"]).read_text())
    prefix = tmp_path / "version"
    shutil.copytree(config["prefix"], prefix, symlinks=True)
    name = next(n for n in stamp["libraries"] if n.endswith("/libggml-cuda.so"))
    shutil.copy(os.environ["LLAMAFLEET_GPU_WRONG_LIBRARY"], prefix / name)
    stamp["libraries"][name] = hashlib.sha256((prefix / name).read_bytes()).hexdigest()
    (tmp_path / "stamp.json").write_text(json.dumps(stamp))
    found = verify(tmp_path, prefix=str(prefix), stamp=str(tmp_path / "stamp.json"))
    planted("other capability", found, "machine_code")


# -- several GPUs --------------------------------------------------------------------------------


def several() -> bool:
    return len(result().gpus) > 1


def test_one_gpu_of_several_that_is_hidden_is_named(tmp_path: Path) -> None:
    """Measured before there were rows: this was a PASS."""
    if not several():
        pytest.skip("one GPU")
    shown, *hidden = result().gpus
    found = verify(tmp_path, env={"CUDA_VISIBLE_DEVICES": shown.uuid})
    planted("one of several hidden", found, "gpus_visible")
    verdicts = {gpu.uuid: gpu.verdict for gpu in found.gpus}
    assert verdicts == {shown.uuid: "PASS"} | {gpu.uuid: "FAIL" for gpu in hidden}


def test_each_of_several_gpus_has_figures_of_its_own() -> None:
    if not several():
        pytest.skip("one GPU")
    found = result()
    assert found.verdict == "PASS" and found.benchmark is not None
    for gpu in found.gpus:
        assert gpu.verdict == "PASS" and gpu.benchmark is not None, gpu
        assert gpu.bus_id and gpu.benchmark.gpu and gpu.benchmark.gpu.utilisation_mean
