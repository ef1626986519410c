"""What a verification reads: logs, libraries, models, and what the driver's library answers."""

from __future__ import annotations

import struct
from functools import cache
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

from hypothesis import strategies as st

from llamafleet.onhost import elf
from llamafleet.onhost.verify import fatbin, llama_log, modelfile, sampling, weights
from llamafleet.onhost.verify.checks.control import judge_control
from llamafleet.onhost.verify.checks.health import judge_health
from llamafleet.onhost.verify.checks.offload import graph_of, judge_offload
from llamafleet.onhost.verify.child import Children, Outcome, TaskProblem
from llamafleet.onhost.verify.conditions import Watch
from llamafleet.onhost.verify.evidence import Evidence, Faults
from llamafleet.onhost.verify.gpu import Nvml, NvmlUnavailable
from llamafleet.onhost.verify.measuring import judged
from llamafleet.onhost.verify.sampling import Recording
from llamafleet.onhost.verify.shape import shape_of
from llamafleet.onhost.verify.synth import ModelError
from llamafleet.protocol import oom
from llamafleet.protocol.decode import decode
from llamafleet.protocol.fit import Gpu, Room, needs
from llamafleet.protocol.result import Benchmark, Rates
from llamafleet.protocol.serve import Placement
from llamafleet.protocol.verify import VerifyConfig
from tests.fuzz import Target
from tests.fuzz.material import binaries, objects, texts, words
from tests.fuzz.targets.jobs import DATA, VERIFY, lines_of
from tests.onhost.verify.graphs import HALF, card, sent, w160m

OOMS = [
    path.read_text(encoding="utf-8")
    for path in sorted((Path(__file__).parents[2] / "protocol/data/oom").glob("*.log"))
]
LOGS = lines_of(
    *(f"logs/{name}.log" for name in ("cuda-full", "cuda-two-gpus", "cuda-init-error", "cpu-160m"))
)


def _log(text: str, _: Path) -> object:
    placement = llama_log.parse(text)
    return [
        placement,
        placement.layers_per_device,
        placement.cuda_model_mib,
        llama_log.listed(placement.model_mib),
        llama_log.last_words(text),
    ]


FATBINS = [path.read_bytes() for path in sorted((DATA / "fatbin").glob("*.so"))]


def _fatbin(data: bytes, folder: Path) -> object:
    path = folder / "lib.so"
    path.write_bytes(data)
    found = fatbin.read(path)
    return [len(found.units), list(map(str, found.codes))]


def _elf(data: bytes, folder: Path) -> object:
    path = folder / "lib.so"
    path.write_bytes(data)
    found = elf.read(path)
    return [found, elf.wrong_path(found, "/opt/cuda-13.0/lib64")]


@cache
def gguf(layers: int = 2) -> bytes:
    """A model of one tensor, as llama.cpp's own writer makes it, small enough to change."""

    def text(value: str) -> bytes:
        return struct.pack("<Q", len(value)) + value.encode()

    def number(key: str, value: int) -> bytes:
        return text(key) + struct.pack("<II", 4, value)

    names = {"block_count": layers, "embedding_length": 64, "attention.head_count": 4}
    pairs = [text("general.architecture") + struct.pack("<I", 8) + text("llama")]
    pairs += [number(f"llama.{key}", value) for key, value in names.items()]
    # Of each layer one figure.
    pairs.append(text("llama.attention.head_count_kv") + struct.pack("<IIQII", 9, 4, 2, 2, 2))
    tensor = text("token_embd.weight") + struct.pack("<IQQIQ", 2, 64, 2, 0, 0)
    head = b"GGUF" + struct.pack("<IQQ", 3, 1, len(pairs)) + b"".join(pairs) + tensor
    head += b"\0" * (-len(head) % 32)
    return head + b"\0" * (64 * 2 * 4)


UINT, TEXT = (struct.pack("<I", kind) for kind in (4, 8))
"""Kinds of a value."""


def _model(data: bytes, folder: Path) -> object:
    path = folder / "m.gguf"
    path.write_bytes(data)
    found = weights.read(path)
    shape = shape_of(modelfile.read(path))
    room = Room((Gpu(24000), Gpu(8000)), 1024)
    needed = [] if shape.unknown else [one.total_mib for one in needs(shape, USUAL, room)]
    return [found.layers, found.total_bytes, found.device_bytes, found.kv_bytes_per_token, needed]


USUAL = Placement(-1, 4096, "q8_0")


def _oom(text: str, _: Path) -> object:
    found = oom.read(text.splitlines())
    return found and [str(found), found.cause, oom.reduced(USUAL, found, 32)]


# -- NVML ------------------------------------------------------------------------------------------


class NVMLError(Exception):
    """As pynvml's."""


class Answers(ModuleType):
    """NVML, each question of which gets the next of these answers; an exception is raised."""

    NVMLError = NVMLError
    NVML_CLOCK_SM = 1
    NVML_TEMPERATURE_GPU = 0
    NVML_FI_DEV_GET_GPU_RECOVERY_ACTION = 230

    def __init__(self, answers: list[Any]) -> None:
        super().__init__("answers")
        self._answers, self._next = answers, 0

    def nvmlInit(self) -> None:
        pass

    def nvmlDeviceGetCount(self) -> int:
        return 2

    def nvmlDeviceGetHandleByIndex(self, index: int) -> int:
        return index

    def __getattr__(self, name: str) -> Any:
        if not name.startswith("nvml"):
            raise AttributeError(name)

        def answer(*_: object) -> Any:
            kinds = KINDS.get(name, ("text",))
            self._next += 1
            number, text, missing = self._answers[self._next % len(self._answers)]
            if missing:
                raise NVMLError(text)
            value = SimpleNamespace(ullVal=number, uiVal=number % 2**32)
            field = SimpleNamespace(nvmlReturn=0, valueType=number % 8, value=value)
            return {
                "text": text,
                "number": number,
                "pair": (number, number),
                "four": (number,) * 4,
                "violation": SimpleNamespace(violationTime=number),
                "fields": [field] * 4,
                "memory": SimpleNamespace(total=number, free=number, used=number),
                "rates": SimpleNamespace(gpu=number),
                "pci": SimpleNamespace(busId=text),
                "processes": [SimpleNamespace(pid=number, usedGpuMemory=number)],
            }[kinds[0]]

        return answer


KINDS = {
    "nvmlSystemGetCudaDriverVersion_v2": ("number",),
    "nvmlDeviceGetCudaComputeCapability": ("pair",),
    "nvmlDeviceGetMemoryInfo": ("memory",),
    "nvmlDeviceGetComputeRunningProcesses": ("processes",),
    **dict.fromkeys(
        (f"nvmlDeviceGet{kind}RunningProcesses" for kind in ("Graphics", "MPSCompute")),
        ("processes",),
    ),
    "nvmlDeviceGetComputeRunningProcesses_v2": ("processes",),
    "nvmlDeviceGetGraphicsRunningProcesses_v2": ("processes",),
    "nvmlDeviceGetMPSComputeRunningProcesses_v2": ("processes",),
    **dict.fromkeys(
        ("nvmlDeviceGetMigMode", "nvmlDeviceGetPowerManagementLimitConstraints"), ("pair",)
    ),
    "nvmlDeviceGetRemappedRows": ("four",),
    "nvmlDeviceGetViolationStatus": ("violation",),
    "nvmlDeviceGetFieldValues": ("fields",),
    **dict.fromkeys(
        (
            *("nvmlDeviceGetPowerManagementLimit", "nvmlDeviceGetEnforcedPowerLimit"),
            *("nvmlDeviceGetPowerManagementDefaultLimit", "nvmlDeviceGetMaxClockInfo"),
            *("nvmlDeviceGetApplicationsClock", "nvmlDeviceGetDefaultApplicationsClock"),
            *("nvmlDeviceGetMaxPcieLinkGeneration", "nvmlDeviceGetMaxPcieLinkWidth"),
            *("nvmlDeviceGetDisplayActive", "nvmlDeviceGetPersistenceMode"),
            *("nvmlDeviceGetTotalEccErrors", "nvmlDeviceGetRetiredPagesPendingStatus"),
        ),
        ("number",),
    ),
    "nvmlDeviceGetMaxMigDeviceCount": ("number",),
    "nvmlDeviceGetComputeMode": ("number",),
    "nvmlDeviceGetCurrPcieLinkGeneration": ("number",),
    "nvmlDeviceGetCurrPcieLinkWidth": ("number",),
    "nvmlDeviceGetUtilizationRates": ("rates",),
    "nvmlDeviceGetClockInfo": ("number",),
    "nvmlDeviceGetPowerUsage": ("number",),
    "nvmlDeviceGetTemperature": ("number",),
    "nvmlDeviceGetCurrentClocksThrottleReasons": ("number",),
    "nvmlDeviceGetPciInfo": ("pci",),
}
"""Shapes of the answers, of C's types: what pynvml can give at all."""

_c_text = st.binary(max_size=20) | words
_answer = st.tuples(st.integers(0, 2**63 - 1), _c_text, st.booleans())


def _nvml(answers: list[Any], _: Path) -> object:
    nvml = Nvml(Answers(answers))
    sample = nvml.sample(1)
    found = [nvml.driver(), nvml.cuda(), *nvml.gpus(), sampling.summary([sample]), nvml.free_mib()]
    listed = nvml.gpus()[:1]
    watch = Watch(nvml, listed, sleep=lambda _: None)
    marks = {name: nvml.sample(1, listed) for name in ("measuring", "pp", "pp done", "measured")}
    told = watch.ended(Recording([sample], marks, pid=1))
    rates = Rates(1, 1.0, 0.0)
    found += [*judged(Benchmark(rates, rates, conditions=told), listed).findings]
    found += [judge_health(one.health, "") for one in told]
    nvml.close()
    return found


# -- what a worker replies -------------------------------------------------------------------------

REPLY = {
    "libraries": ["/lib/a.so", "/lib/b.so (deleted)"],
    "devices": [{"name": "CUDA0", "description": "RTX", "bus_id": "0000:01:00.0"}],
    "imported": {"file": "/v/llama_cpp/__init__.py", "entry": "/v", "variables": {"GGML_X": "1"}},
}


class Replies(Children):
    """Each task gets this reply."""

    def __init__(self, folder: Path, reply: Any) -> None:
        super().__init__(folder, None)
        self.reply = reply

    def run(self, task: str, name: str = "", gpu: Any = None, **request: Any) -> Outcome:
        imported = (self.reply or {}).get("imported")
        return Outcome(task, self.reply, None, "", Path("x.log"), 0.0, imported=imported)


def _reply(data: Any, folder: Path) -> object:
    evidence = Evidence(
        decode(VerifyConfig, {**VERIFY, "results": str(folder), "stamp": str(folder / "none")}),
        Faults(),
        Replies(folder, data if isinstance(data, dict) else None),
        None,
    )
    told = evidence.imported()
    found = [evidence.libraries(), evidence.cuda_devices(), evidence.cuda_bus_ids()]
    return [*found, told, evidence.foreign(), evidence.variables()]


GRAPH = {"graph": sent(HALF) | {"seen": sent(HALF)["seen"][:6]}}


def _graph(data: Any, _: Path) -> object:
    graph = graph_of(data if isinstance(data, dict) else None)
    placement = llama_log.parse("")
    return [
        judge_offload(graph, placement, w160m(), (card(0), card(1))),
        judge_control(graph, placement, w160m()),
    ]


TARGETS = (
    Target(
        "llama.cpp's log",
        ("onhost.verify.llama_log:parse", "onhost.verify.llama_log:last_words"),
        texts(LOGS),
        _log,
        known=(
            "load_tensors: layer " + "9" * 5000 + " assigned to device CUDA0",
            "load_tensors: layer ² assigned to device CUDA0",
            "offloaded " + "9" * 5000 + "/1 layers to GPU",
            "CUDA0 model buffer size = 1.2.3 MiB",
            "CUDA0 model buffer size = . MiB",
            "CUDA0 KV buffer size = " + "9" * 400 + " MiB",
            "CUDA0 model buffer size =" + " " * 40_000,
            "Device 0: " + ", compute capability" * 4000,
            "a" * 100_000,
            "Device 0: " * 10_000,
            "failed to initialize CUDA: \x1b[2Jx",
        ),
    ),
    Target(
        "an out of memory of llama.cpp",
        ("protocol.oom:read",),
        texts(OOMS),
        _oom,
        known=(
            "allocating " + "9" * 5000 + " MiB on device 0: cudaMalloc failed: out of memory",
            "allocating 9.9.9 MiB on device 0: cudaMalloc failed: out of memory",
            "failed to allocate CUDA" + "9" * 5000 + " buffer of size " + "9" * 5000,
            "CUDA error 1 at " + "x" * 100_000 + ": out of memory",
            "current device: ²",
            "CUDA error: \x1b[2Jout of memory",
        ),
    ),
    Target(
        "a library's machine code",
        ("onhost.verify.fatbin:read",),
        binaries(FATBINS),
        _fatbin,
        (fatbin.FatbinError,),
        known=(
            b"\x7fELF\x02\x01" + b"\xff" * 100,
            b"\x7fELF\x02\x01" + b"\0" * 100,
            FATBINS[0][:64],
        ),
    ),
    Target(
        "where a library looks for others",
        ("onhost.elf:read", "onhost.elf:wrong_path"),
        binaries(FATBINS),
        _elf,
        (elf.ElfError,),
        known=(
            b"\x7fELF\x02\x01" + b"\xff" * 100,
            b"\x7fELF\x02\x01" + b"\0" * 100,
            FATBINS[0][:200],
            *(data.replace(b"libstdc++", b"\x01ibstdc++") for data in FATBINS),
        ),
    ),
    Target(
        "a model's file",
        (
            "onhost.verify.weights:read",
            "onhost.verify.gguffile:read",
            "onhost.verify.modelfile:read",
            "onhost.verify.shape:shape_of",
        ),
        binaries([gguf(), gguf(0), gguf(2**31)], head=len(gguf())),
        _model,
        (ModelError,),
        known=(
            b"",
            b"GGUF",
            gguf()[:100],
            gguf().replace(struct.pack("<II", 4, 2), struct.pack("<II", 4, 0)),
            gguf().replace(b"embedding_length" + UINT, b"embedding_length" + TEXT),
            gguf().replace(b"head_count" + UINT, b"head_count" + TEXT),
            gguf()[:8] + b"\xff" * 16 + gguf()[24:],
            gguf()[:-1],
            gguf().replace(b"general.architecture", b"x" * 20),
            # A list of more texts than the file has bytes, and of as many as it may have.
            gguf().replace(struct.pack("<IIQ", 9, 4, 2), struct.pack("<IIQ", 9, 8, 2**61)),
            gguf().replace(struct.pack("<IIQ", 9, 4, 2), struct.pack("<IIQ", 9, 8, 2**28))
            + b"\0" * 2**22,
            *(gguf()[:4] + struct.pack(">I", version) + gguf()[8:] for version in (1, 2, 3)),
            *(b"version https://git-lfs", b"<html>", b"{}", b"PK\x03\x04", b"\0" * 600, b"\x1b[2J"),
        ),
    ),
    Target(
        "NVML's answers",
        (
            *("onhost.verify.gpu:Nvml", "onhost.verify.sampling:summary"),
            *("onhost.verify.conditions:Watch", "onhost.verify.freedom:judge"),
        ),
        st.lists(_answer, min_size=1, max_size=6),
        _nvml,
        (NvmlUnavailable,),
        known=([(1, b"\xff\xfe", False)], [(2**63 - 1, "\x1b[2J", False)]),
    ),
    Target(
        "a worker's reply",
        ("onhost.verify.evidence:Evidence", "onhost.verify.child:Children"),
        objects([REPLY]),
        _reply,
        (TaskProblem,),
        known=({"devices": [{}]}, {"libraries": [5]}, {"devices": 5}, {"devices": [5]}),
        printable=False,
    ),
    Target(
        "a worker's graph",
        ("onhost.verify.checks.offload:graph_of",),
        objects([GRAPH]),
        _graph,
        known=({"graph": {"seen": [{**GRAPH["graph"]["seen"][0], "layer": "\u00b2"}]}},),
        printable=False,
    ),
)
