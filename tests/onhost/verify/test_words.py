"""Every judgement to the letter: what was found, what was expected, what to type.

LLAMAFLEET_UPDATE_GOLDEN=1 rewrites the file; read the diff: does each line help who reads it?
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from llamafleet.onhost.verify.checks.benchmark import judge_benchmark
from llamafleet.onhost.verify.checks.busy import judge_busy
from llamafleet.onhost.verify.checks.control import judge_control
from llamafleet.onhost.verify.checks.gpus_visible import judge_gpu, judge_gpus, judge_missing
from llamafleet.onhost.verify.checks.health import judge_health
from llamafleet.onhost.verify.checks.library_cuda import judge_cuda
from llamafleet.onhost.verify.checks.library_origin import judge_origin, judge_package
from llamafleet.onhost.verify.checks.logits import Limit, LogitsDifference, judge_logits
from llamafleet.onhost.verify.checks.machine_code import judge_machine_code
from llamafleet.onhost.verify.checks.model import judge_room
from llamafleet.onhost.verify.checks.offload import judge_offload
from llamafleet.onhost.verify.checks.vram import judge_unified, judge_vram
from llamafleet.onhost.verify.fatbin import Code, MachineCode
from llamafleet.onhost.verify.freedom import Finding
from llamafleet.onhost.verify.gpu import Gpu
from llamafleet.onhost.verify.graph import UNSEEN, Seen
from llamafleet.onhost.verify.imported import Imported
from llamafleet.onhost.verify.llama_log import Placement, parse
from llamafleet.onhost.verify.present import Missing
from llamafleet.protocol.conditions import Health
from llamafleet.protocol.result import Benchmark, Check, Rates
from tests.onhost.verify.graphs import (
    HALF,
    ON_CPU,
    ON_GPU,
    ON_TWO,
    card,
    graph_of,
    tiny,
    w160m,
)

DATA = Path(__file__).parents[1] / "data"
GOLDEN = DATA / "checks.txt"
GPU, OTHER = "NVIDIA GeForce RTX 4090, 8.9", "NVIDIA RTX A2000, 8.6"
NEWER = "driver version is insufficient for CUDA runtime version"
UNKNOWN = "out of memory"
LOG_OF = "ggml_cuda_init: failed to initialize CUDA: {}\n"


def gpus_visible() -> Iterator[Check]:
    yield judge_gpus([GPU], None, [GPU], None)
    yield judge_gpus([GPU, OTHER], None, [GPU, OTHER], "0,1")
    yield judge_gpus([], "NVML does not start", [], None)
    yield judge_gpus([], None, [], "")
    yield judge_gpus([GPU], None, [], None)
    yield judge_gpus([GPU], None, [], "")
    yield judge_gpus([GPU, OTHER], None, [GPU], None)
    yield judge_gpus([GPU, OTHER], None, [GPU], "0")
    yield judge_gpus([GPU], None, [GPU, OTHER], None)
    yield judge_gpus([GPU], None, [GPU], None, left_out=["NVIDIA RTX A2000 GPU-b"])
    yield judge_gpus([GPU], None, [GPU], None, missing=["0000:02:00.0"])
    first, second = "0000:01:00.0", "0000:02:00.0"
    yield judge_gpu(GPU, first, [first, second], there=True, why=None)
    yield judge_gpu(GPU, "", None, there=True, why=None)
    yield judge_gpu(GPU, first, [second], there=False, why=None)
    why = ("its compute mode is Prohibited: it takes no process", "sudo nvidia-smi -i 1 -c DEFAULT")
    yield judge_gpu(GPU, first, [], there=False, why=why)
    gone = Gpu(-1, "NVIDIA H200", "GPU-c", second, "", 0)
    yield judge_missing(Missing(gone, "NVML does not list it", "nvidia-smi -L"))
    nameless = Gpu(-1, "GPU 2 of NVML", "", "", "", 0)
    yield judge_missing(Missing(nameless, "NVML counts it", "nvidia-smi -L"))


def library_origin() -> Iterator[Check]:
    own = {"/v/f00/lib/libllama.so": "a" * 64, "/v/f00/lib/libggml.so": "b" * 64}
    stamp = {"lib/libllama.so": "a" * 64, "lib/libggml.so": "b" * 64}
    yield judge_origin(own, "/v/f00", stamp, "stamp.json")
    yield judge_origin(own, "/v/f00/", stamp, "stamp.json")
    yield judge_origin(own, "/v/f00", None, "stamp.json")
    yield judge_origin({}, "/v/f00", stamp, "stamp.json")
    elsewhere = {"/usr/lib/libllama.so": "a" * 64, "/opt/libggml.so": "b" * 64}
    yield judge_origin(own | elsewhere, "/v/f00", stamp, "stamp.json")
    yield judge_origin(own, "/v/f00", {"lib/libllama.so": "c" * 64}, "stamp.json")


def packages() -> Iterator[Check]:
    file, own = "/mine/llama_cpp/__init__.py", Path("/v/f00/lib/python3.12/site-packages/llama_cpp")
    told = {"PYTHONPATH": "/none:/mine"}
    yield judge_package(Imported(file, "/mine", "PYTHONPATH", told), own)
    yield judge_package(Imported(file, "/mine", "/v/f00/lib/mine.pth"), own)
    yield judge_package(Imported(file, "/mine", "/v/f00/pyvenv.cfg"), own)
    yield judge_package(Imported("/mine/llama_cpp.py"), own)


def model() -> Iterator[Check]:
    yield judge_room("m.gguf", 3577.6, 24000, 24564, 1)
    yield judge_room("m.gguf", 30000, 24000, 49128, 2)
    yield judge_room("m.gguf", 50000, 24000, 49128, 2)


def library_cuda() -> Iterator[Check]:
    info = "CUDA : ARCHS = 890 | CPU : AVX = 1 | "
    cuda, cpu = ["/v/lib/libllama.so", "/v/lib/libggml-cuda.so.0"], ["/libggml-cuda/libllama.so"]
    yield judge_cuda(cuda, info, True)
    yield judge_cuda(cuda, info, False)
    yield judge_cuda(cpu, info, True)
    yield judge_cuda(cuda, "CPU : AVX = 1 | CUDA : PEER = 1 | ", True)


def control() -> Iterator[Check]:
    zero, full = placed("zero"), placed("full")
    for graph, log in ((ON_CPU, zero), (ON_CPU, parse("")), (ON_CPU, full), (ON_GPU, full)):
        yield judge_control(graph, log, w160m())
    yield judge_control(UNSEEN, zero, w160m())


def machine_code() -> Iterator[Check]:
    sass, ptx, other = Code(8, 9, False), Code(8, 9, True), Code(7, 5, False)
    yield judge_machine_code(MachineCode((frozenset({sass, ptx}), frozenset({sass}))), ["8.9"])
    yield judge_machine_code(
        MachineCode((frozenset({sass, Code(12, 0, False)}),)), ["12.0", "8.9", "8.9"]
    )
    yield judge_machine_code(MachineCode((frozenset({ptx}), frozenset({sass, ptx}))), ["8.9"])
    yield judge_machine_code(MachineCode((frozenset({ptx}),)), ["12.0", "8.9"])
    yield judge_machine_code(MachineCode((frozenset({sass}), frozenset({other}))), ["8.9"])
    yield judge_machine_code(MachineCode(()), ["8.9"])
    yield judge_machine_code(MachineCode((frozenset({sass}),)), [])


def placed(name: str) -> Placement:
    return parse((DATA / f"logs/cuda-{name}.log").read_text())


def offload() -> Iterator[Check]:
    for name, graph in (("full", ON_GPU), ("two-gpus", ON_TWO), ("half", HALF), ("zero", ON_CPU)):
        yield judge_offload(graph, placed(name), w160m())
    for name in ("half", "init-error"):
        yield judge_offload(ON_GPU, placed(name), w160m())
    yield judge_offload(ON_GPU, placed("full"), replace(w160m(), device_bytes=2 * 68012544))
    yield judge_offload(ON_GPU, placed("full"), w160m(), (card(0), card(1)))
    for text in ("", LOG_OF.format(NEWER), LOG_OF.format(UNKNOWN)):
        yield judge_offload(ON_GPU, parse(text), w160m())
        yield judge_offload(UNSEEN, parse(text), w160m())
    yield judge_offload(graph_of("zero-64-tokens"), parse(""), tiny())
    refused = Seen("3", "refused", "CUDA_Host", 1, 0, ("SSM_SCAN node_7",))
    yield judge_offload(replace(ON_GPU, seen=(*ON_GPU.seen, refused)), parse(""), w160m())


def vram() -> Iterator[Check]:
    yield judge_vram(1000, 900, 2000, 1800)
    yield judge_vram(1000, 899, 2000, 1800)
    yield judge_vram(1000, 900, 2000, 1799)
    yield judge_unified("1")


def busy() -> Iterator[Check]:
    yield judge_busy([0.0, 1.0])
    yield judge_busy([0.0, 0.0])
    yield judge_busy([])


def logits() -> Iterator[Check]:
    allowed = {"q4_0": Limit(0.05, 0.02), "iq3_s": Limit(0.2, 0.05)}
    good, edge = LogitsDifference(0.02, 0.005, 0.5, 1.0, 8), LogitsDifference(0.1, 0.01, 0.5, 1, 8)
    garbage = LogitsDifference(6.0, 1.4, 1.0, 0.125, 8)
    yield judge_logits({"q4_0": good, "iq3_s": edge}, allowed)
    yield judge_logits({"q4_0": good, "iq3_s": garbage}, allowed)
    yield judge_logits({"q4_0": LogitsDifference(0.0, 0.0, 0.0, 1.0, 8), "iq3_s": good}, allowed)
    yield judge_logits({"q4_0": good, "iq3_s": "llama.cpp can't load it"}, allowed)
    yield judge_logits({"q4_0": good}, allowed)


def benchmark() -> Iterator[Check]:
    whole = Rates(512, median_ts=11000.5, stdev_ts=12.25, samples_ts=(1.0,) * 5)
    short = Rates(128, median_ts=150.5, stdev_ts=0.125, samples_ts=(1.0,) * 4)
    yield judge_benchmark(Benchmark(whole, whole, load_s=1.5), 5)
    yield judge_benchmark(Benchmark(whole, short, load_s=1.5), 5)
    yield judge_benchmark(Benchmark(short, whole, load_s=None), 5)
    load = Finding("busy", "another process on GPU 0: pid 7 (bob, train.py)", "end pid 7 of bob")
    cap = Finding("busy", "the power limit of GPU 0 is 300 W", "`sudo nvidia-smi -pl 450`")
    link = Finding("warn", "PCIe of GPU 0 under load: x4 of x16", "seat the card again")
    note = Finding("note", "GPU 0 drives a display")
    yield judge_benchmark(Benchmark(whole, whole, load_s=1.5, attempts=3), 5, [load, cap, link])
    yield judge_benchmark(Benchmark(whole, whole, load_s=1.5), 5, [link, note])
    yield judge_benchmark(Benchmark(whole, whole, load_s=1.5), 5, [note])
    yield judge_benchmark(Benchmark(whole, short, load_s=1.5), 5, [load])


def health() -> Iterator[Check]:
    yield judge_health(Health(ecc_uncorrected=0, rows_pending=False), "0000:01:00.0")
    yield judge_health(Health(ecc_uncorrected=2, recovery_action=2), "")
    yield judge_health(Health(rows_failed=True, rows_pending=True), "0000:01:00.0")
    yield judge_health(Health(silent="GPU is lost"), "0000:01:00.0")


JUDGEMENTS = (
    *(gpus_visible, library_origin, library_cuda, control, machine_code, offload, vram, busy),
    *(logits, benchmark, health, packages, model),
)


def written(check: Check) -> str:
    return (
        f"{check.status}  {check.name}\n  found     {check.found}\n  expected  {check.expected}\n"
        f"  next      {check.next}\n"
    )


def test_every_judgement_says_what_it_said() -> None:
    text = "\n".join(written(check) for judgement in JUDGEMENTS for check in judgement())
    if os.environ.get("LLAMAFLEET_UPDATE_GOLDEN"):
        GOLDEN.write_text(text, encoding="utf-8")
    assert text == GOLDEN.read_text(encoding="utf-8")
