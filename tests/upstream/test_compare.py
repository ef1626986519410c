"""What a release changed, by extracts of two real ones, and of one with a planted change."""

from __future__ import annotations

from pathlib import Path

import pytest

from llamafleet.upstream import archive, c, cmake
from llamafleet.upstream.archive import LLAMA_CPP, ArchiveError
from llamafleet.upstream.compare import compare
from llamafleet.upstream.source import BINDINGS, Source, of
from llamafleet.upstream.used import used

RELEASES = Path(__file__).parent / "releases"
LLAMA_H = f"{LLAMA_CPP}include/llama.h"
GGML_H = f"{LLAMA_CPP}ggml/include/ggml.h"
BACKEND_H = f"{LLAMA_CPP}ggml/include/ggml-backend.h"
GGML_CMAKE = f"{LLAMA_CPP}ggml/CMakeLists.txt"
MODEL = f"{LLAMA_CPP}src/llama-model.cpp"
CUDA = f"{LLAMA_CPP}ggml/src/ggml-cuda/ggml-cuda.cu"


def files(version: str) -> dict[str, str]:
    return archive.read(RELEASES / f"llama_cpp_python-{version}.tar.xz")


@pytest.fixture(scope="module")
def older() -> dict[str, str]:
    return files("0.3.34")


@pytest.fixture(scope="module")
def old(older: dict[str, str]) -> Source:
    return of(older, "0.3.34")


def changes(old: Source, new: dict[str, str]) -> tuple[list[str], list[str]]:
    """(of what is used here, others)."""
    found = compare(old, of(new, "new"), used())
    return [one.text for one in found if one.ours], [one.text for one in found if not one.ours]


def test_two_real_releases(old: Source) -> None:
    """use_mmap is what a model's outline was read without, up to 0.3.34."""
    ours, others = changes(old, files("0.3.35"))
    assert ours == ["field llama_model_params.use_mmap: gone"]
    assert "option GGML_HIP_ROCWMMA_FATTN: gone, default OFF" in others
    assert "option LLAMA_BUILD_IS_DEV: new, default ON" in others
    assert "header LLAMA_LOAD_MODE_NONE: new" in others
    assert "field llama_model_params.load_mode: new" in others


def test_a_release_and_itself(old: Source, older: dict[str, str]) -> None:
    assert changes(old, older) == ([], [])


@pytest.mark.parametrize(
    ("path", "was", "now", "said"),
    [
        (GGML_CMAKE, "option(GGML_CUDA ", "option(GGML_GPU ", "option GGML_CUDA: gone"),
        ("CMakeLists.txt", "option(LLAVA_BUILD", "option(MT_B", "option LLAVA_BUILD: gone"),
        ("pyproject.toml", ">=0.9.2", ">=2.0", "needs: build requirements: "),
        ("pyproject.toml", '">=3.8"', '">=3.11"', 'needs: Python: ">=3.8" -> ">=3.11"'),
        ("CMakeLists.txt", "VERSION 3.21", "VERSION 4.0", "needs: CMake, by CMakeLists.txt: 3.21"),
        (MODEL, "assigned to device", "goes to", "words of llama_log.layer: gone"),
        (MODEL, "%d/%d layers", "%d of %d layers", "words of llama_log.offloaded: gone"),
        (MODEL, "model buffer size", "weights", "words of llama_log.buffer (model): gone"),
        (CUDA, "failed to initialize", "no", "words of llama_log.init_error: gone"),
        (CUDA, "compute capability", "cc", "words of llama_log.capability: gone"),
        (GGML_H, "int64_t ne[GGML_MAX_DIMS]", "int32_t ne[GGML_MAX_DIMS]", "header ggml_tensor: "),
        (
            GGML_H,
            "define GGML_MAX_SRC            10",
            "define GGML_MAX_SRC 12",
            "header ggml_tensor: ",
        ),
        (GGML_H, "ggml_set_input(", "ggml_flag_input(", "header ggml_set_input: gone"),
        (GGML_H, "GGML_TENSOR_FLAG_INPUT  ", "GGML_TENSOR_FLAG_IN  ", "FLAG_INPUT: gone"),
        (BACKEND_H, "enum ggml_backend_dev_type type;", "", "header ggml_backend_dev_props: - "),
        (BACKEND_H, "USAGE_WEIGHTS = 1", "USAGE_WEIGHTS = 3", "header ggml_backend_buffer_usage: "),
        (LLAMA_H, "llama_attach_threadpool(", "llama_pool(", "llama_attach_threadpool: gone"),
        (BINDINGS, '"llama_decode",', '"llama_step",', "binding llama_decode: gone"),
        (
            BINDINGS,
            "LLAMA_SPLIT_MODE_LAYER = 1",
            "LLAMA_SPLIT_MODE_LAYER = 2",
            "MODE_LAYER: 1 -> 2",
        ),
        (
            BINDINGS,
            '("n_gpu_layers", ctypes.c_int32)',
            '("n_gpu_layers", ctypes.c_int64)',
            "field ",
        ),
        (
            BINDINGS,
            '        ("cb_eval", ',
            '        ("cb_see", ',
            "llama_context_params.cb_eval: gone",
        ),
        (LLAMA_H, "bool no_perf;", "bool no_perf; bool more;", "structure llama_context_params: "),
    ],
)
def test_a_planted_change_of_what_is_used(
    old: Source, older: dict[str, str], *, path: str, was: str, now: str, said: str
) -> None:
    assert was in older[path]
    ours, _ = changes(old, older | {path: older[path].replace(was, now)})
    assert any(said in line for line in ours), ours


@pytest.mark.parametrize(
    ("path", "was", "now"),
    [
        (GGML_CMAKE, "option(GGML_HIP ", "option(GGML_AMD "),
        (LLAMA_H, "llama_adapter_lora_init(", "llama_lora(\n"),
        (GGML_H, "struct ggml_object;", "struct ggml_object; // a comment about ggml_tensor"),
        (BINDINGS, '"llama_state_get_size"', '"llama_state_size"'),
    ],
)
def test_a_planted_change_of_something_else(
    old: Source, older: dict[str, str], *, path: str, was: str, now: str
) -> None:
    assert was in older[path]
    assert changes(old, older | {path: older[path].replace(was, now)})[0] == []


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"llama_cpp/__init__.py": ""}, "found no version"),
        ({BINDINGS: "def ("}, "is no Python"),
    ],
)
def test_sources_of_another_kind(older: dict[str, str], change: dict[str, str], said: str) -> None:
    with pytest.raises(ArchiveError, match=said):
        of(older | change, "new")


def test_what_is_no_archive(tmp_path: Path) -> None:
    file = tmp_path / "a.tar.gz"
    file.write_bytes(b"<html>")
    with pytest.raises(ArchiveError, match="no archive that can be read"):
        archive.read(file)
    whole = (RELEASES / "llama_cpp_python-0.3.34.tar.xz").read_bytes()
    file.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ArchiveError):
        archive.read(file)


def test_options_are_read_as_cmake_reads_them() -> None:
    text = """
    # option(GGML_NOT "a comment" ON)
    #[[ option(GGML_NEITHER "one of several lines" ON)
    ]]
    option(GGML_ONE "with (brackets) and # a sign" ${DEFAULT})
    option(GGML_TWO "no default")
    cmake_dependent_option(GGML_THREE "ggml" ON "A;NOT B" OFF)
    set(LLAMA_FOUR "a;b" CACHE STRING "llama: (which)")
    set(GGML_LOCAL OFF)
    set(OTHER ON CACHE BOOL "not llama.cpp's")
    """
    assert cmake.declared({"CMakeLists.txt": text}) == {
        "GGML_ONE": "${DEFAULT}",
        "GGML_TWO": "OFF",
        "GGML_THREE": 'ON "A;NOT B" OFF',
        "LLAMA_FOUR": '"a;b" (set)',
    }


def test_texts_as_they_come_out() -> None:
    text = r"""
    #define NAME "CUDA"
    LOG("%s: %10s KV buffer size = %8.2f MiB\n", f, g, 1.0); // "not this one, a comment"
    LOG("failed to initialize " NAME ": %s\n", e);
    LOG("in two " /* parts */ "lines, %" PRId64 " of 100 %%");
    """
    said = set(c.said(text, c.text_macros(text)))
    assert "CUDA0:      CUDA0 KV buffer size =    12.50 MiB\n" in said
    assert {"failed to initialize CUDA: CUDA0\n", "in two lines, 12 of 100 %"} < said
    assert not any("not this one" in one for one in said)
