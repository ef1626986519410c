"""Out of memory, in llama.cpp's own words.

data/oom holds what 0.3.36 wrote on GPUs that only account (tests/fit): all but the line of
cudaMalloc is llama.cpp's, and that is a copy of ggml-cuda.cu:888.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from llamafleet.onhost.verify import modelfile
from llamafleet.onhost.verify.shape import shape_of
from llamafleet.protocol.diagnose import causes, signatures_from
from llamafleet.protocol.fit import Gpu, Room, Use, by_header, fits
from llamafleet.protocol.oom import LONGEST, OutOfMemory, read, reduced
from llamafleet.protocol.serve import Placement
from llamafleet.protocol.shape import Shape
from llamafleet.tables import failures
from tests.fit import ggufs

DATA = Path(__file__).parent / "data/oom"
MALLOC = (
    "ggml_backend_cuda_buffer_type_alloc_buffer: allocating {} MiB on device {}: "
    "cudaMalloc failed: {}"
)
POOL = """\
CUDA error: out of memory
  current device: 1, in function alloc at /tmp/x/ggml-cuda.cu:583
  cuMemCreate(&handle, reserve_size, &prop, 0)
/tmp/x/ggml-cuda.cu:104: CUDA error"""
CUBLAS = """\
CUDA error: the resource allocation failed
  current device: 0, in function cublas_handle at /tmp/x/common.cuh:1534
  cublasCreate_v2(&cublas_handles[device][curr_stream_no])"""
USE = Placement(-1, 16384)


def logged(name: str) -> list[str]:
    return (DATA / f"{name}.log").read_text(encoding="utf-8").splitlines()


@pytest.fixture(scope="module")
def dense(tmp_path_factory: pytest.TempPathFactory) -> Shape:
    path = tmp_path_factory.mktemp("model") / "dense.gguf"
    return shape_of(modelfile.read(ggufs.write(path, ggufs.MODELS["dense"])))


@pytest.mark.parametrize(
    ("name", "asked", "device"),
    [("weights", 664, 0), ("context", 512, 0), ("compute", 255, 0), ("retried-in-vain", 255, 1)],
)
def test_what_had_no_room_is_named_with_its_numbers(name: str, asked: int, device: int) -> None:
    found = read(logged(name))
    assert found is not None
    assert found.phase == ("compute" if name.startswith("retried") else name)
    assert (found.asked_mib, found.device, found.host) == (asked, device, False)
    assert f"GPU {device} has no room" in str(found) and f"{asked} MiB" in str(found)


def test_what_llama_cpp_made_up_for_is_no_fault() -> None:
    assert read(logged("retried")) is None


@pytest.mark.parametrize(("text", "device"), [(POOL, 1), (CUBLAS, 0)])
def test_memory_that_cuda_asks_for_in_use(text: str, device: int) -> None:
    found = read(text.splitlines())
    assert found is not None
    assert (found.phase, found.device, found.asked_mib) == ("use", device, None)


@pytest.mark.parametrize(
    "line",
    [
        "CUDA error 2 at /x/ggml-cuda.cu:6301: out of memory",
        "CUDA error: CUBLAS_STATUS_ALLOC_FAILED",
        "cuBLAS error 3 at /x/ggml-cuda.cu:100: the resource allocation failed",
        "Feb 21 01:41:02 host python[4024]: CUDA error: out of memory",
        "1.06.520.077 E " + MALLOC.format("51748.72", 1, "out of memory"),
        "alloc_tensor_range: failed to allocate CUDA0 buffer of size 695377920",
        "llama_model_load: error loading model: unable to allocate CUDA0 buffer",
    ],
)
def test_older_and_dressed_lines(line: str) -> None:
    assert read([line]) is not None


@pytest.mark.parametrize(
    "line",
    [
        "ggml_cuda_host_malloc: failed to allocate 512.00 MiB of pinned memory: out of memory",
        "CUDA pool[0]: alloc of 12.00 MiB failed, flushing 3.00 MiB of cached buffers and retrying",
        "CUDA error: an illegal memory access was encountered",
        MALLOC.format("1.00", 0, "initialization error"),
        "llama_kv_cache: not enough cells in kv cache",
        "load_tensors:        CUDA0 model buffer size =   663.16 MiB",
        "",
    ],
)
def test_what_is_no_lack_of_gpu_memory(line: str) -> None:
    assert read([line]) is None


def test_the_hosts_own_memory_is_told_apart() -> None:
    found = read(
        [
            "ggml_backend_cpu_buffer_type_alloc_buffer: failed to allocate buffer of size "
            "137438953472",
            "alloc_tensor_range: failed to allocate CPU buffer of size 137438953472",
            "llama_init_from_model: failed to initialize the context: failed to allocate buffer "
            "for kv cache",
        ]
    )
    assert found is not None and found.host
    assert (found.phase, found.asked_mib, found.cause) == ("context", 131072, "oom-host")


@pytest.mark.parametrize("name", ["CPU", "CUDA_Host", "CPU_Mapped"])
def test_a_buffer_of_the_host_is_none_of_a_gpu(name: str) -> None:
    found = read([f"alloc_tensor_range: failed to allocate {name} buffer of size 1048576"])
    assert found is not None
    assert (found.host, found.device, found.cause) == (True, None, "oom-host")


def test_a_long_or_foul_line_is_bounded() -> None:
    found = read(["\x1b[2J" + MALLOC.format("1.00", 0, "out of memory" + "x" * 10**5)])
    assert found is not None
    assert len(found.line) <= LONGEST and found.line.isprintable()


@pytest.mark.parametrize("name", ["weights", "context", "compute"])
def test_the_catalogue_of_failures_says_the_same(name: str) -> None:
    lines = logged(name)
    found = read(lines)
    told = causes(signatures_from(failures.rows()), "\n".join(lines))
    assert found is not None and found.cause == next(m.id for m in told if m.rank == "cause")


def oom(phase: str, asked: int | None = None, device: int | None = 0) -> OutOfMemory:
    return OutOfMemory(phase, device, asked, "x")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("phase", "was", "now"),
    [
        ("weights", USE, Placement(24, 16384)),
        ("weights", Placement(1, 512), None),
        ("context", USE, Placement(-1, 16384, "q8_0")),
        ("context", Placement(-1, 16384, "q8_0"), Placement(-1, 8192, "q8_0")),
        ("compute", USE, Placement(-1, 16384, n_batch=128)),
        ("use", Placement(-1, 512, "q8_0", 128), Placement(24, 512, "q8_0", 128)),
        ("context", Placement(1, 512, "q4_0"), None),
    ],
)
def test_one_step_down_where_nothing_is_known(
    phase: str, was: Placement, now: Placement | None
) -> None:
    assert reduced(was, oom(phase), 32) == now


def test_layers_stay_where_their_number_is_not_known() -> None:
    assert reduced(USE, oom("weights"), None) is None


@pytest.mark.parametrize("free", [24000, 8000, 6000, 3000])
def test_what_is_proposed_fits_and_is_less(free: int, dense: Shape) -> None:
    there = Room((Gpu(free),), 1024)
    found = reduced(USE, oom("context", 2048), dense.layers, dense, there)
    assert found is not None and found != USE
    assert fits(by_header(dense, there), found, there)


def test_nothing_is_proposed_where_nothing_fits(dense: Shape) -> None:
    assert reduced(USE, oom("weights", 4000), 32, dense, Room((Gpu(1100),), 1024)) is None


def test_an_account_that_was_wrong_is_not_believed_again(dense: Shape) -> None:
    """It said that all fits, and CUDA found 600 MiB missing: so much must be saved."""
    there = Room((Gpu(24000),), 0)
    count = by_header(dense, there)
    assert fits(count, USE, there)
    found = reduced(USE, oom("use", 600), 32, dense, there)
    assert found is not None
    assert count(USE)[0].total_mib - count(found)[0].total_mib >= 600


def test_less_weights_on_gpus_are_no_help_to_the_host() -> None:
    host = replace(oom("weights", device=None), host=True)
    assert reduced(USE, host, 32) is None
    assert reduced(USE, replace(host, phase="context"), 32) == Placement(-1, 16384, "q8_0")


@pytest.mark.parametrize("phase", ["weights", "context", "compute", "use"])
def test_without_flash_attention_the_context_stays_in_f16(phase: str, dense: Shape) -> None:
    """llama.cpp takes no other type then, so that what was proposed would never load."""
    use = Use(flash_attention=False)
    was, found = Placement(-1, 8192, n_batch=128), oom(phase, 100)
    by_steps = reduced(was, found, 32, use=use)
    by_account = reduced(was, found, 32, dense, Room((Gpu(5000),), 0, use))
    assert by_steps and by_steps.kv_type == "f16"
    assert by_account and by_account.kv_type == "f16"


def test_a_buffer_of_the_host_is_not_said_to_be_cudas() -> None:
    line = (
        "ggml_backend_cpu_buffer_type_alloc_buffer: failed to allocate buffer of size 68719476736"
    )
    found = read([line])
    assert found and str(found).startswith("the host has no room for 65536 MiB of a buffer: ggml_")
