"""Proof on a host with an NVIDIA GPU: `.venv/bin/pytest -m gpu`, by hand, in this order.

It provisions this machine by the real command and leaves the deployment in place. What it measured
is in results/gpu.json. Environment: LLAMAFLEET_GPU_WHEELHOUSE (work without a network),
LLAMAFLEET_GPU_WHEELHOUSE_OLDEST (the same for the oldest release), LLAMAFLEET_GPU_REPORT.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest

from llamafleet.layout import AS_ACCOUNT
from llamafleet.onhost.cards import cards
from llamafleet.onhost.driver_check import EXIT_OK, EXIT_STALE, EXIT_VERIFY
from llamafleet.plans.share import wheel_of
from llamafleet.protocol.decode import decode
from llamafleet.protocol.job import BUILD, PATH, WHEELS, BuildProduct, SharedWheel
from llamafleet.protocol.result import Check, GpuRow, Result
from llamafleet.tables.releases import releases
from llamafleet.wheelstore import WheelStore
from tests.gpu import faults, llama_bench, measure
from tests.gpu.measure import LAYOUT, check, deploy, record, reds, result, verify

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(
        not Path("/dev/nvidiactl").exists(), reason="no NVIDIA GPU: /dev/nvidiactl is not there"
    ),
]


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
    assert 0 < (found.build.wheel_bytes or 0) <= 45_000_000


def test_the_detected_capability_passes_with_machine_code() -> None:
    # Its wheel is kept for the test of another host.
    run = deploy(accelerator="cuda", build_sharing="wheel")
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
    rival = llama_bench.Rival.of(tmp_path, Path(LAYOUT.current))
    found = llama_bench.in_turns(rival, path)
    record(f"llama_bench {model}", **found)
    assert found["ratios"]["tg"] == pytest.approx(1, abs=tg_limit), found
    assert found["ratios"]["pp"] == pytest.approx(1, abs=pp_limit), found


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
    found = verify(tmp_path, "--n-gpu-layers", layers, alone=True)
    planted(f"n_gpu_layers {layers}", found, "offload", "vram", "logits")
    said = check(found, "offload").found
    assert said.startswith("graph: ") and "weights of layers 0-" in said and "; log: " in said


def test_a_context_far_too_large_is_red_and_the_largest_that_fits_is_named(tmp_path: Path) -> None:
    found = verify(tmp_path, inputs={"context": 1_048_576}, alone=True)
    planted("out of memory", found, "context")
    assert "set context = " in check(found, "context").next


def of_a_model(folder: Path) -> Path:
    """A small model of the user's own."""
    path = folder / "mine.gguf"
    measure.synthesise("160m", "q4_0", str(path))
    return path


def skipped(found: Result) -> set[str]:
    return {check.name for check in measure.checks(found) if check.status == "skip"}


NEED_A_MODEL = {"offload", "vram", "busy", "context", "benchmark"}


def test_a_model_of_the_user_s_own_passes(tmp_path: Path) -> None:
    found = verify(tmp_path, inputs={"model": str(of_a_model(tmp_path))}, alone=True)
    record("own model", verdict=found.verdict, checks=told(found.checks))
    assert found.verdict in ("PASS", "BUSY") and check(found, "model").status == "pass"


def test_a_cut_model_is_one_red_check(tmp_path: Path) -> None:
    path = of_a_model(tmp_path)
    os.truncate(path, path.stat().st_size - 1_000_000)
    found = verify(tmp_path, inputs={"model": str(path)})
    planted("cut model", found, "model")
    assert set(reds(found)) == {"model"} and skipped(found) == NEED_A_MODEL
    assert "1,000,000 are missing" in check(found, "model").found


def test_a_model_that_llama_cpp_does_not_know_is_one_red_check(tmp_path: Path) -> None:
    path = of_a_model(tmp_path)
    path.write_bytes(path.read_bytes().replace(b"blk.3.ffn_up", b"blk.3.ffn_op", 1))
    found = verify(tmp_path, inputs={"model": str(path)})
    planted("unknown model", found, "model")
    assert set(reds(found)) == {"model"} and "blk.3.ffn_up" in check(found, "model").found


@pytest.mark.parametrize("code", ["raise ImportError('planted')\n", "__version__ = '0.3.36'\n"])
def test_a_package_in_front_of_the_build_is_red_by_its_place(tmp_path: Path, code: str) -> None:
    package = tmp_path / "mine/llama_cpp"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text(code)
    found = verify(tmp_path, env={"PYTHONPATH": str(package.parent)})
    planted("shadowing package", found, "library_origin")
    assert set(reds(found)) == {"library_origin"} and skipped(found) >= NEED_A_MODEL
    assert str(package) in check(found, "library_origin").found


def test_memory_that_the_host_lends_is_red_by_its_name(tmp_path: Path) -> None:
    unified = {"GGML_CUDA_ENABLE_UNIFIED_MEMORY": "1"}
    found = verify(tmp_path, env=unified, alone=True, inputs=SMALL)
    planted("unified memory", found, "vram")
    assert "GGML_CUDA_ENABLE_UNIFIED_MEMORY=1" in check(found, "vram").found


def test_a_stale_library_in_front_is_red(tmp_path: Path) -> None:
    stale = tmp_path / "stale"
    stale.mkdir()
    library = next(Path(LAYOUT.current).resolve().rglob("libggml-base.so"))
    shutil.copy(library, stale)
    assert not reds(verify(tmp_path, env={"LD_LIBRARY_PATH": str(stale)}, alone=True))
    found = verify(tmp_path, env={"LD_PRELOAD": str(stale / library.name)}, alone=True)
    planted("stale library", found, "library_origin")


def test_another_toolkit_in_front_is_not_taken_and_forced_is_red(tmp_path: Path) -> None:
    """Copies of the toolkit's libraries, as those of another toolkit of the same major."""
    decoy = tmp_path / "cuda-decoy"
    decoy.mkdir()
    for library in library_folder().glob("libcudart.so.*"):
        shutil.copy(library, decoy)
    found = verify(tmp_path, env={"LD_LIBRARY_PATH": str(decoy)}, alone=True)
    assert not reds(found), found.red
    library = next(decoy.glob("libcudart.so.*.*"), None) or next(decoy.iterdir())
    found = verify(tmp_path, env={"LD_PRELOAD": str(library)}, alone=True)
    planted("another toolkit", found, "library_origin")
    assert str(library) in check(found, "library_origin").found


def test_no_core_waits_for_a_long_unit() -> None:
    """Of the last build."""
    made = built()
    record("build", packing=made["packing"], order=made["order"])
    assert made["order"].startswith("longest first") and made["packing"] >= 0.95


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


def test_a_library_for_another_capability_is_red(tmp_path: Path) -> None:
    """One translation unit of the installed build is for sm_120 alone, and the stamp agrees."""
    config = json.loads(Path(LAYOUT.verify_config).read_text())
    changed, library = faults.copied(config, tmp_path)
    assert faults.for_another_capability(library, 120)
    faults.stamped(config, changed, library)
    found = verify(tmp_path, alone=True, **changed)
    planted("other capability", found, "machine_code")


def test_garbage_of_one_quantisation_is_red_by_its_name(tmp_path: Path) -> None:
    """mmvq.cu with a mask dropped stands in front of the build's own, for iq3_s alone."""
    config = json.loads(Path(LAYOUT.verify_config).read_text())
    library = next(Path(config["prefix"]).resolve().rglob("libggml-cuda.so"))
    capability = result().gpus[0].compute_capability.replace(".", "")
    garbage = faults.garbage_of_iq3_s(tmp_path, library, capability)
    found = verify(tmp_path, env={"LD_PRELOAD": str(garbage)}, alone=True)
    planted("iq3_s garbage", found, "logits")
    red = check(found, "logits").found
    assert "iq3_s" in red and "q4_0" not in red.partition(";")[0], red


# -- a GPU that is somebody else's too: BUSY or red, never PASS -----------------------------------


SMALL = {"model": "synthetic:160m-q4_0"}
"""It takes the time of a verification less than any other."""


def first() -> GpuRow:
    return result().gpus[0]


def verdicts(found: Result) -> dict[str, str]:
    return {gpu.uuid: gpu.verdict for gpu in found.gpus}


def others_pass(found: Result, taken: str) -> bool:
    return all(gpu.verdict == "PASS" for gpu in found.gpus if gpu.uuid != taken)


def shared(name: str, found: Result, taken: str, pid: int, spread: bool = False) -> None:
    """That GPU is BUSY with its reason beside the figure, and the others are PASS.

    `spread`: they may be BUSY for figures that vary, as the load takes the host's cores too.
    """
    row = next(gpu for gpu in found.gpus if gpu.uuid == taken)
    benchmark = row.benchmark
    assert benchmark is not None
    busy = {gpu.uuid: gpu.benchmark.busy if gpu.benchmark else () for gpu in found.gpus}
    record(
        f"shared {name}",
        verdicts=verdicts(found),
        busy=busy,
        attempts=benchmark.attempts,
        pp=benchmark.pp.median_ts,
        tg=benchmark.tg.median_ts,
    )
    assert row.verdict == "BUSY" and found.verdict == "BUSY", [str(c) for c in row.checks]
    assert any(str(pid) in reason for reason in busy.pop(taken)), benchmark.busy
    if not spread:
        assert others_pass(found, taken), verdicts(found)
        return
    assert all(gpu.verdict in ("PASS", "BUSY") for gpu in found.gpus), verdicts(found)
    others = [reason for reasons in busy.values() for reason in reasons]
    assert not [reason for reason in others if " differs by " not in reason], busy


def test_memory_taken_by_another_process_is_busy(tmp_path: Path) -> None:
    gpu = first()
    with faults.another_process(gpu.uuid, mib=10_000) as pid:
        found = verify(tmp_path, busy_minutes=0, inputs=SMALL)
    shared("memory", found, gpu.uuid, pid)


def test_too_little_memory_left_is_red_on_that_gpu_alone(tmp_path: Path) -> None:
    gpu = first()
    with faults.another_process(gpu.uuid, mib=faults.free_mib(gpu.uuid) - 3000):
        found = verify(tmp_path, busy_minutes=0)
    planted("memory taken", found)
    assert verdicts(found)[gpu.uuid] == "FAIL" and others_pass(found, gpu.uuid), verdicts(found)


def test_a_computation_beside_it_is_busy_and_named(tmp_path: Path) -> None:
    gpu = first()
    with faults.another_process(gpu.uuid, computes=True) as pid:
        found = verify(tmp_path, busy_minutes=0, inputs=SMALL)
    shared("computation", found, gpu.uuid, pid)


LONG = SMALL | {"bench": {"prompt": 512, "gen": 512, "repetitions": 30}}
"""A benchmark of some eight seconds where nobody comes."""


@contextmanager
def intruder(folder: Path, gpu: GpuRow) -> Iterator[list[int]]:
    """Another process computes for a while amid what is measured; gives its pid.

    Earlier the benchmark loads and warms up, and a load that is gone by then hurts nobody.
    """
    progress = folder / "run/progress.json"
    pids: list[int] = []
    done = threading.Event()

    def intrude() -> None:
        while not done.wait(0.05):
            if progress.exists() and "tg repetition" in progress.read_text():
                with faults.another_process(gpu.uuid, computes=True) as pid:
                    pids.append(pid)
                    done.wait(1.5)
                return

    thread = threading.Thread(target=intrude)
    thread.start()
    try:
        yield pids
    finally:
        done.set()
        thread.join()
    assert pids, "nobody came: the benchmark was over before it was seen"


def test_a_load_amid_the_benchmark_is_busy(tmp_path: Path) -> None:
    gpu = first()
    with intruder(tmp_path, gpu) as pids:
        found = verify(tmp_path, busy_minutes=0, inputs=LONG)
    shared("load amid the benchmark", found, gpu.uuid, pids[0], spread=True)


def test_a_load_that_ends_is_waited_for(tmp_path: Path) -> None:
    with intruder(tmp_path, first()):
        found = verify(tmp_path, busy_minutes=5, inputs=LONG, alone=True)
    row = found.gpus[0]
    record("load that ends", attempts=row.benchmark and row.benchmark.attempts)
    assert found.verdict == "PASS" and row.benchmark and row.benchmark.attempts > 1, row.benchmark


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
    assert verdicts(found) == {shown.uuid: "PASS"} | {gpu.uuid: "FAIL" for gpu in hidden}


COVER = 'mount --bind /dev/null "$1" && shift && exec "$@"'


def test_a_gpu_whose_device_file_is_covered_is_named(tmp_path: Path) -> None:
    """As where a container or a unit was given too few of them."""
    if not several():
        pytest.skip("one GPU")
    last = next(card for card in cards() if card.uuid == result().gpus[-1].uuid)
    covered = ["unshare", "-m", "sh", "-euc", COVER, "sh", f"/dev/nvidia{last.minor}"]
    found = verify(tmp_path, prefix_command=covered)
    planted("device file covered", found, "gpus_visible")
    *others, row = [gpu for gpu in found.gpus if gpu.uuid != last.uuid] + [
        gpu for gpu in found.gpus if gpu.uuid == last.uuid
    ]
    assert row.verdict == "FAIL" and {gpu.verdict for gpu in others} == {"PASS"}


def test_one_gpu_of_several_by_the_settings(tmp_path: Path) -> None:
    if not several():
        pytest.skip("one GPU")
    names, wanted = result().inputs.gpus, result().gpus[-1]
    name = next(name for name in names if name.endswith(wanted.uuid))
    found = verify(tmp_path, inputs={"gpus": [name]}, gpus=[wanted.uuid])
    assert found.verdict == "PASS" and [gpu.uuid for gpu in found.gpus] == [wanted.uuid]
    assert found.left_out == tuple(one for one in names if one != name)
    hidden = verify(
        tmp_path,
        inputs={"gpus": [name]},
        gpus=[wanted.uuid],
        env={"CUDA_VISIBLE_DEVICES": result().gpus[0].uuid},
    )
    planted("the chosen one hidden", hidden, "gpus_visible")


def test_each_of_several_gpus_has_figures_of_its_own() -> None:
    if not several():
        pytest.skip("one GPU")
    found = result()
    assert found.verdict == "PASS" and found.benchmark is not None
    for gpu in found.gpus:
        assert gpu.verdict == "PASS" and gpu.benchmark is not None, gpu
        assert gpu.bus_id and gpu.benchmark.gpu and gpu.benchmark.gpu.utilisation_mean


# -- the last ones, as they leave another deployment: a host that was emptied, another release -----


def built() -> dict[str, Any]:
    """build.json of the build in use."""
    found: dict[str, Any] = json.loads((Path(LAYOUT.current) / BUILD).read_text())
    return found


def test_another_host_of_the_fingerprint_takes_the_wheel() -> None:
    """The host is emptied between two runs: what the second one finds is the controller's wheel.

    A run of one host fetches none, as nobody waits for it: it is put there by the same code, after
    `uninstall.py`, which removes the wheels that the host built.
    """
    product, name = built(), result().host
    wheel = wheel_of(name, decode(BuildProduct, product))
    assert isinstance(wheel, SharedWheel), wheel
    kept = (Path(LAYOUT.current).resolve() / WHEELS / wheel.name).read_bytes()
    gone = measure.uninstall()
    assert gone.returncode == 0 and not Path(LAYOUT.prefix).exists(), gone.output
    with WheelStore(measure.SHARED).incoming(product["key"], wheel) as coming:
        coming.add(kept)
    run = deploy(accelerator="cuda", build_sharing="wheel")
    assert run.returncode == 0, run.output
    found, taken = result(), built()
    record("shared wheel", run_s=round(run.seconds, 1), job_s=taken["wall_s"], cpu_s=taken["cpu_s"])
    assert found.verdict == "PASS" and f"wheel of {name}" in run.output, run.output
    assert taken["shared_from"] == name and taken["key"] == product["key"]
    assert taken["libraries"] == product["libraries"]


@pytest.mark.skipif(
    bool(measure.WHEELHOUSE) and not measure.OLDEST_WHEELHOUSE,
    reason="LLAMAFLEET_GPU_WHEELHOUSE_OLDEST is not given",
)
def test_the_oldest_release_passes_and_is_red_without_gpus(tmp_path: Path) -> None:
    oldest = releases()[-1].version
    run = deploy(accelerator="cuda", llama_version=oldest, wheelhouse=measure.OLDEST_WHEELHOUSE)
    assert run.returncode == 0, run.output
    found = result()
    record(f"oldest release {oldest}", **summary(found, run.seconds), output=run.output[-3000:])
    assert found.verdict == "PASS" and found.build.llama_cpp_python == oldest
    hidden = verify(tmp_path, env={"CUDA_VISIBLE_DEVICES": ""}, inputs=SMALL)
    planted(f"oldest release {oldest}, gpus hidden", hidden, "gpus_visible")
