"""What a check says of a failure that is known: the cause, and what to do on this host."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from llamafleet.onhost.verify import gpu, known
from llamafleet.onhost.verify.child import Outcome
from llamafleet.onhost.verify.evidence import task_failed
from llamafleet.onhost.verify.gpu import Nvml
from llamafleet.protocol.result import Check
from llamafleet.tables import failures
from tests.onhost.llama import models
from tests.onhost.verify.test_child import children
from tests.onhost.verify.test_session import Host, every, host, log, said, status

__all__ = ["host", "models"]


def died(folder: Path, code: str) -> Check:
    """The check of a task whose llama_cpp is `code`."""
    return task_failed("library_cuda", children(folder, code).run("probe"))


def raised(folder: Path, error: str) -> Check:
    return died(folder, f"raise RuntimeError({error!r})\n")


def killed(folder: Path, line: str, signum: str) -> Check:
    text = line.encode()
    return died(
        folder, f"import os, signal\nos.write(2, {text!r})\nos.kill(os.getpid(), signal.{signum})\n"
    )


def test_rows_that_the_code_names_are_in_the_table() -> None:
    ids = {row["id"] for row in failures.rows()}
    assert {*known.OUT_OF_MEMORY, known.LIBRARY_NOT_FOUND} <= ids


def test_what_is_not_known_is_in_the_log(tmp_path: Path) -> None:
    check = raised(tmp_path, "something else")
    assert "known as" not in check.found
    assert check.next == f"read {tmp_path}/worker-probe.log"


@pytest.mark.parametrize(
    ("error", "id"),
    [
        ("libcublas.so.13: cannot open shared object file: Permission denied", "cuda-runtime"),
        ("/x/libcublasLt.so.13: file too short", "cuda-runtime"),
        ("libnvidia-ml.so.1: cannot open shared object file: No such file", "libcuda"),
        ("libcuda.so.1: invalid ELF header", "libcuda"),
        ("libgomp.so.1: cannot open shared object file: No such file", "library-missing"),
        ("No module named 'llama_cpp'", "another-interpreter"),
    ],
)
def test_an_import_that_fails_is_explained(tmp_path: Path, error: str, id: str) -> None:
    check = raised(tmp_path, error)
    assert error in check.found and f"known as import-{id}: " in check.found


@pytest.mark.parametrize("there", [True, False])
def test_a_library_that_is_on_this_host_is_shown(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, there: bool
) -> None:
    folder = tmp_path / "cuda-13.0" / "lib64"
    folder.mkdir(parents=True)
    (folder / ("libcublas.so.13" if there else "libcudart.so.13")).touch()
    monkeypatch.setattr(known, "TOOLKITS", (f"{tmp_path}/cuda*/lib64",))
    error = "Failed to load shared library '/v/libllama.so': libcublas.so.13: cannot open shared "
    check = raised(tmp_path, f"{error}object file: No such file or directory")
    assert (f"libcublas.so.13 is in {folder}: deploy again" in check.next) is there
    assert "deploy again" in check.next and "/etc/ld.so.conf.d" in check.next


@pytest.mark.parametrize(
    ("line", "signum", "advice"),
    [
        ("can't be used with preferred buffer type AMX, using CPU", "SIGSEGV", "-mno-amx-tile"),
        ("load_tensors: CPU_Mapped", "SIGSEGV", "worker-probe.log"),
        ("can't be used with preferred buffer type AMX, using CPU", "SIGABRT", "worker-probe.log"),
        ("load_tensors: CPU_Mapped", "SIGILL", "GGML_NATIVE"),
    ],
)
def test_code_for_another_cpu_is_explained(
    tmp_path: Path, line: str, signum: str, advice: str
) -> None:
    check = killed(tmp_path, line, signum)
    assert signum in check.found and advice in check.next


@pytest.mark.parametrize(
    ("line", "id"),
    [
        ("CUDA error: no kernel image is available for execution on the device", "no-kernel-image"),
        ("CUDA error: out of memory", "oom-weights"),
        ("CUDA error: misaligned address", "illegal-memory-access"),
    ],
)
def test_an_error_of_cuda_is_explained(tmp_path: Path, line: str, id: str) -> None:
    where = "\n  current device: 0, in function x at ggml-cuda.cu:98\n  cudaStreamSynchronize(s)\n"
    assert f"known as {id}: " in killed(tmp_path, line + where, "SIGABRT").found


# -- in a whole verification ---------------------------------------------------------------------


@pytest.mark.parametrize(
    ("error", "id", "advice"),
    [
        ("no CUDA-capable device is detected", "no-cuda-device", "CUDA_VISIBLE_DEVICES"),
        ("CUDA driver version is insufficient for CUDA runtime", "driver-too-old", "the driver"),
        ("CUDA driver is a stub library", "stub-library", "stubs"),
        ("unknown error", "uvm-race-at-boot", "nvidia-modprobe"),
    ],
)
def test_why_cuda_did_not_start_is_explained(host: Host, error: str, id: str, advice: str) -> None:
    answers, run = host
    text = log("cuda-init-error").replace("no CUDA-capable device is detected", error)
    answers.answers["generate"] = (answers.answers["generate"][0], text)
    assert f"known as {id}: " in said(run(), "offload") and advice in said(run(), "offload")
    reply, _ = answers.answers["probe"]
    answers.answers["probe"] = ((reply or {}) | {"devices": []}, text)
    result = run()
    seen = [check for check in every(result) if check["name"] == "gpus_visible"]
    assert [check["status"] for check in seen] == ["fail", "fail"], "the host's and the GPU's"
    assert all(f"known as {id}: " in check["found"] for check in seen)
    assert all(advice in check["next"] for check in seen)


def test_a_variable_that_hides_gpus_is_the_better_answer(host: Host) -> None:
    answers, run = host
    reply, _ = answers.answers["probe"]
    answers.answers["probe"] = ((reply or {}) | {"devices": []}, log("cuda-init-error"))
    result = run(environment={"CUDA_VISIBLE_DEVICES": "7"})
    assert said(result, "gpus_visible").endswith(" unset CUDA_VISIBLE_DEVICES")


@pytest.mark.parametrize(
    ("error", "id"),
    [
        ("Driver/library version mismatch", "nvml-driver-library-mismatch"),
        ("Driver Not Loaded", "nvidia-smi-no-driver"),
    ],
)
def test_why_nvml_does_not_start_is_explained(
    host: Host, monkeypatch: pytest.MonkeyPatch, error: str, id: str
) -> None:
    def refuse() -> Nvml:
        raise gpu.NvmlUnavailable(f"NVML does not start: {error}")

    monkeypatch.setattr(gpu, "Nvml", refuse)
    assert f"known as {id}: " in said(host[1](), "gpus_visible")


@pytest.mark.parametrize(
    ("name", "id"), [("cuda-half", "layers-on-cpu"), ("cuda-zero", "gpu-layers-0")]
)
def test_layers_on_the_cpu_are_explained(host: Host, name: str, id: str) -> None:
    answers, run = host
    answers.answers["generate"] = (answers.answers["generate"][0], log(name))
    assert f"known as {id}: " in said(run(), "offload")


def test_a_model_that_does_not_fit_is_explained(host: Host) -> None:
    """Its layers are assigned, and it dies before their memory is there."""
    answers, run = host
    text = "".join(line for line in log("cuda-full").splitlines(True) if "buffer size" not in line)
    lines = "cudaMalloc failed: out of memory\nllama_model_load: error loading model: unable to\n"
    answers.answers["generate"] = (None, text + lines)
    assert "known as oom-weights: " in said(run(), "offload")


HARMLESS = (
    "ggml_cuda_host_malloc: failed to allocate 96.00 MiB of pinned memory: out of memory\n"
    "ggml_backend_sched_alloc_splits: failed to allocate graph, reserving\n"
)
"""Written at the level of debugging, by runs that go on."""


def test_a_run_that_dies_of_something_else_is_not_out_of_memory(host: Host) -> None:
    answers, run = host
    answers.answers["context"] = (None, HARMLESS + "GGML_ASSERT(n > 0) failed\n")
    text = said(run(), "context")
    assert "known as ggml-assert" in text
    assert "known as oom" not in text and "set context" not in text


def test_a_context_too_large_is_explained(host: Host) -> None:
    answers, run = host
    answers.fits = 500_000
    text = said(run(context=10_000_000), "context")
    assert "known as oom-weights: " in text and "set context = " in text
    answers.fits = 0
    text = said(run(context=10_000_000), "context")
    assert "not even 256" in text and "nvidia-smi" in text and "set context" not in text


def warned(host: Host, task: str, line: str, **inputs: Any) -> set[str]:
    answers, run = host
    answers.answers[task] = (answers.answers[task][0], f"{line}\n")
    result = run(**inputs)
    assert result["verdict"] == "PASS"
    return status(result, "warn")


OVERFLOW = (
    "llama_context: n_ctx_seq (4096) > n_ctx_train (2048) -- possible training context overflow"
)


def test_a_context_beyond_the_model_s_training_is_a_warning(
    host: Host, tmp_path: Path, models: Path
) -> None:
    mine = tmp_path / "mine.gguf"
    mine.symlink_to(models / "synthetic-160m-q4_0.gguf")
    assert warned(host, "context", OVERFLOW) == set(), "a synthetic model was not trained"
    assert warned(host, "context", OVERFLOW, model=str(mine)) == {"context"}


def test_a_benchmark_without_flash_attention_is_a_warning(host: Host) -> None:
    line = "resolve_fused_ops: Flash Attention not supported, set to disabled"
    assert warned(host, "bench", line) == {"benchmark"}
    assert warned(host, "bench", "resolve_fused_ops: Flash Attention enabled") == set()


def test_an_outcome_without_a_problem_is_not_known(tmp_path: Path) -> None:
    assert known.of_task(Outcome("probe", {}, None, "", tmp_path, 1.0)) is None
