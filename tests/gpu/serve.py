"""`python -m tests.gpu.serve OUT [STEP...]`: a service on real GPUs, and every way in which one can
fail it.

Run by the interpreter of a build for CUDA (also LLAMAFLEET_TEST_PYTHON), with the packages of
tables/serve-requirements.txt and `openai` on PYTHONPATH. The proof that the gate asks for is made
up for the GPUs that are there; all else is real. Writes OUT/serve.md and OUT/serve.json. 5 minutes
of two H100. Exit status 0: all is as expected.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from llamafleet.onhost import driver
from llamafleet.onhost.verify.gpu import Nvml
from llamafleet.protocol.result import PASS, GpuRow, Result
from tests.bench.serve import HEAD, example, measured, plain
from tests.gpu.fit import holding
from tests.onhost import llama
from tests.serving import Service, model, proof

PLACED = {"n_gpu_layers": -1, "n_ctx": 8192}
LONG = "w300 " * 600
"""Some 3000 tokens."""


class Told:
    """What was found: steps with what they told, rows of the table."""

    def __init__(self, out: Path) -> None:
        self.out = out
        self.steps: list[dict[str, Any]] = []
        self.rows: list[str] = []

    def step(self, name: str, good: object, **found: Any) -> None:
        self.steps.append({"step": name, "good": bool(good), **found})
        print("good" if good else "BAD ", name, found, flush=True)
        (self.out / "serve.json").write_text(json.dumps(self.steps, indent=1))

    def table(self, rows: Iterator[Any]) -> None:
        for row in rows:
            self.rows.append(str(row))
            print(row, flush=True)
            (self.out / "serve.md").write_text("\n".join([HEAD, *self.rows]) + "\n")


def proven() -> Result:
    """As if each GPU of this machine had passed."""
    nvml = Nvml()
    rows = tuple(
        GpuRow(g.uuid, g.bus_id, g.name, g.compute_capability, g.vram_mib, PASS)
        for g in nvml.gpus()
    )
    nvml.close()
    return proof(str(llama.prefix()), driver.loaded_driver()[0], rows)


def used_mib(uuid: str) -> float:
    nvml = Nvml()
    gpu = next(one for one in nvml.gpus() if one.uuid == uuid)
    used = nvml.moment(gpu).used_mib or 0.0
    nvml.close()
    return used


def main() -> int:
    os.environ["CUDA_DEVICE_ORDER"] = "PCI_BUS_ID"
    out = Path(sys.argv[1])
    told = Told(out)
    with tempfile.TemporaryDirectory(dir=os.environ.get("TMPDIR")) as text:
        folder = Path(text)
        gguf = model(folder, os.environ.get("SHAPE", "1b"), "q4_0")
        made = proven()
        for name in sys.argv[2:] or STEPS:
            step, root = STEPS[name], folder / name.replace(" ", "-")
            root.mkdir()
            try:
                step(told, root, gguf, made)
            except (Exception, SystemExit) as error:
                told.step(name, False, error=f"{type(error).__name__}: {error}"[-1500:])
    return 0 if all(one["good"] for one in told.steps) else 1


def one(root: Path, gguf: Path, made: Result, **changed: Any) -> Service:
    """A service on the first GPU alone."""
    placement = changed.pop("placement", PLACED)
    return Service(root, gguf, made, gpus=[made.gpus[0].uuid], placement=placement, **changed)


def serves(told: Told, root: Path, gguf: Path, made: Result) -> None:
    before = used_mib(made.gpus[0].uuid)
    service = one(root, gguf, made)
    with service.running():
        status = service.status()
        more = used_mib(made.gpus[0].uuid) - before
        told.step("ready on one GPU", more > 300, load_s=status["load_s"], vram_mib=round(more))
        alone = [service.complete(f"w{n} w{n + 1}")["choices"] for n in range(300, 316)]
        again = [service.complete(f"w{n} w{n + 1}")["choices"] for n in range(300, 316)]
        told.step("the same answer again", alone == again)
        assert service.process
        told.table(measured(f"llamafleet serve, {gguf.stem}", service.port, service.process.pid))
        page = service.ask("/metrics")[1]["text"]
        (told.out / "metrics.txt").write_text(page)
        start = time.monotonic()
        told.step("drained", service.stop() == 0, seconds=round(time.monotonic() - start, 2))


def others(told: Told, root: Path, gguf: Path, made: Result) -> None:
    os.environ["CUDA_VISIBLE_DEVICES"] = made.gpus[0].uuid
    told.table(plain(gguf, n_gpu_layers=-1))
    script, packages = os.environ.get("EXAMPLE"), os.environ.get("PYTHONPATH", "")
    if script:
        folders = [Path(one) for one in packages.split(":") if one]
        told.table(example(root, gguf, Path(script), *folders, n_gpu_layers=-1))


def two(told: Told, root: Path, gguf: Path, made: Result) -> None:
    service = Service(root, gguf, made, placement=PLACED)
    before = [used_mib(gpu.uuid) for gpu in made.gpus]
    with service.running():
        more = [used_mib(gpu.uuid) - b for gpu, b in zip(made.gpus, before, strict=True)]
        service.complete()
        told.step("both GPUs hold the model", min(more) > 200, vram_mib=[round(m) for m in more])


def never_on_the_cpu(told: Told, root: Path, gguf: Path, made: Result) -> None:
    """llama.cpp finds no GPU and would answer from the CPU: CUDA maps far more than it may here."""
    service = one(root, gguf, made)
    service.before = ("prlimit", "--as=9000000000")
    code = service.start().wait(120)
    reason = service.status()["reason"]
    told.step("no GPU is a failure", code == 1 and "CUDA" in reason, code=code, reason=reason)


def another_driver(told: Told, root: Path, gguf: Path, made: Result) -> None:
    old = proof(made.prefix, "570.10.01", made.gpus)
    service = one(root, gguf, old)
    code, status = service.start().wait(60), service.status()
    good = (code, status["state"]) == (69, "held")
    told.step("held after a driver update", good, code=code, reason=status["reason"])


def no_room(told: Told, root: Path, gguf: Path, made: Result) -> None:
    """Another process leaves too little for the context."""
    placement = {"n_gpu_layers": -1, "n_ctx": 262144}
    with holding(5000):
        service = one(root, gguf, made, placement=placement)
        code = service.start().wait(180)
        reason = service.status()["reason"]
        told.step("no room: stop", code == 2 and "no room for" in reason, code=code, reason=reason)
        service.config["on_oom"] = "reduce"
        with service.running():
            status = service.status()
            service.complete()
            page = service.ask("/metrics")[1]["text"]
            good = "llamafleet_reduced 1.0" in page and status["placement"] != placement
            told.step("no room: reduce", good, reason=status["reason"])


def no_room_in_use(told: Told, root: Path, _: Path, made: Result) -> None:
    """Nothing is left after the start, and a long prompt has cuBLAS take what it works with."""
    placement = {"n_gpu_layers": -1, "n_ctx": 4096}
    service = one(root, model(root, "160m", "f16"), made, placement=placement)
    with service.running(), holding(0):
        answer: object = None
        with contextlib.suppress(OSError, http.client.HTTPException):
            answer = service.ask("/v1/completions", {"prompt": LONG, "max_tokens": 8})[:2]
        assert service.process
        code = service.process.wait(60)
        reason = service.status()["reason"]
        good = code == 1 and "no room for" in reason
        told.step("no room in use", good, code=code, reason=reason, answer=answer)


def killed(told: Told, root: Path, gguf: Path, made: Result) -> None:
    service = one(root, gguf, made)
    with service.running():
        os.kill(service.child(), 6)
        assert service.process
        code = service.process.wait(60)
        reason = service.status()["reason"]
        told.step("a dead child is told", code == 1 and "SIGABRT" in reason, reason=reason)


STEPS: dict[str, Callable[[Told, Path, Path, Result], None]] = {
    "serves": serves,
    "two": two,
    "never on the cpu": never_on_the_cpu,
    "another driver": another_driver,
    "no room": no_room,
    "no room in use": no_room_in_use,
    "killed": killed,
    "others": others,
}

if __name__ == "__main__":
    sys.exit(main())
