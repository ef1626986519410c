"""`python -m tests.bench.serve [--example FILE --packages DIR]`: what a server costs its clients.

1, 8 and 32 clients of the `openai` client stream answers of the same model from each server: our
own, llama_cpp.server as it comes, and, where its script is given, llama-cpp-python's
examples/server/server.py (`git show v0.3.35:examples/server/server.py`; `DIR`: a folder with
what its head asks for, made with pip install --target). Prints the table of docs/serving.md. Needs
LLAMAFLEET_TEST_PYTHON; about 6 minutes on two idle cores. Exit status 0: our own lost, cut or
failed no answer.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from math import ceil
from pathlib import Path
from statistics import median
from typing import Any

import openai

from tests.onhost import llama
from tests.ports import free_port
from tests.serving import ALIAS, KEY, Service, libraries, model

CLIENTS = (1, 8, 32)
TOKENS = 32
WORDS = 40
"""Of a prompt, each a token and a blank."""
ROUNDS = 2
"""Answers of each client."""
CONTEXT = 4096
NO_VISION = """import sys, types
module = types.ModuleType("llama_cpp.mtmd_cpp")
module.__getattr__ = lambda name: object
sys.modules[module.__name__] = module
"""
"""The example imports the vision library, which builds of llamafleet lack: LLAVA_BUILD=OFF."""
SLOTS = 32
"""Sequences that a server with batches computes at once: the context is shared by them."""


@dataclass
class Answer:
    """One stream, as its client saw it."""

    first_s: float | None = None
    tokens: int = 0
    whole: bool = False
    error: str = ""


@dataclass
class Row:
    server: str
    clients: int
    answers: list[Answer] = field(default_factory=list)
    wall_s: float = 0.0
    mib: float = 0.0

    def __str__(self) -> str:
        firsts = sorted(one.first_s for one in self.answers if one.first_s is not None)
        cut = sum(1 for one in self.answers if not one.whole and not one.error)
        failed = sum(1 for one in self.answers if one.error)
        worst = firsts[ceil(0.95 * len(firsts)) - 1] if firsts else float("nan")
        rate = sum(one.tokens for one in self.answers) / self.wall_s
        return (
            f"| {self.server} | {self.clients} | {median(firsts or [float('nan')]):.2f} | "
            f"{worst:.2f} | {rate:.0f} | {cut} | {failed} | {self.mib:.0f} |"
        )


HEAD = (
    "| server | clients | first token, median s | 95 % s | tokens/s in all | cut | failed | MiB |\n"
    "|---|---|---|---|---|---|---|---|"
)


def ask(port: int, number: int) -> Answer:
    client = openai.OpenAI(
        base_url=f"http://127.0.0.1:{port}/v1", api_key=KEY, max_retries=0, timeout=600
    )
    prompt = " ".join(f"w{300 + (number * 7 + word) % 600}" for word in range(WORDS))
    answer, start = Answer(), time.monotonic()
    try:
        for piece in client.completions.create(
            model=ALIAS, prompt=prompt, max_tokens=TOKENS, temperature=0, stream=True
        ):
            if not piece.choices:
                continue
            if piece.choices[0].text:
                answer.tokens += 1
                answer.first_s = answer.first_s or time.monotonic() - start
            answer.whole = answer.whole or piece.choices[0].finish_reason is not None
    except openai.OpenAIError as error:
        answer.error = str(error)
    return answer


def measured(server: str, port: int, pid: int) -> Iterator[Row]:
    """A row for each number of clients."""
    ask(port, 999)  # what the first request starts is not counted
    for clients in CLIENTS:
        row, start = Row(server, clients), time.monotonic()
        with ThreadPoolExecutor(clients) as pool:
            row.answers = list(pool.map(lambda n: ask(port, n), range(clients * ROUNDS)))
        row.wall_s = time.monotonic() - start
        row.mib = resident(pid)
        yield row


def resident(pid: int) -> float:
    """MiB of a process and its children."""
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    status = Path(f"/proc/{pid}/status").read_text()
    own = int(status.partition("VmRSS:")[2].split()[0]) / 1024
    return own + sum(resident(int(child)) for child in children)


@contextmanager
def started(argv: Sequence[str | Path], port: int, *packages: Path) -> Iterator[int]:
    """Another server, once it answers; its pid."""
    env = os.environ | {"PYTHONPATH": ":".join(map(str, packages))}
    with tempfile.TemporaryFile() as log:
        process = subprocess.Popen(argv, env=env, stdout=log, stderr=log)
        try:
            end = time.monotonic() + 120
            while ask(port, 999).error:
                if process.poll() is not None or time.monotonic() > end:
                    log.seek(0)
                    raise SystemExit(log.read().decode(errors="replace")[-3000:])
                time.sleep(0.5)
            yield process.pid
        finally:
            process.terminate()
            process.wait(30)


def ours(folder: Path, gguf: Path) -> Iterator[Row]:
    placement = {"n_gpu_layers": -1, "n_ctx": CONTEXT}
    service = Service(folder, gguf, placement=placement, flash_attention=False)
    with service.running():
        assert service.process
        yield from measured("llamafleet serve", service.port, service.process.pid)


def plain(gguf: Path, n_gpu_layers: int = 0) -> Iterator[Row]:
    port = free_port()
    options = {"model": gguf, "model_alias": ALIAS, "n_ctx": CONTEXT, "port": port}
    options |= {"n_gpu_layers": n_gpu_layers}
    argv = [llama.PYTHON, "-m", "llama_cpp.server"]
    argv += [word for name, value in options.items() for word in (f"--{name}", str(value))]
    with started(argv, port, libraries(llama.PYTHON)) as pid:
        yield from measured("llama_cpp.server as it comes", port, pid)


def example(
    folder: Path, gguf: Path, script: Path, *packages: Path, n_gpu_layers: int = 0
) -> Iterator[Row]:
    port = free_port()
    config: dict[str, Any] = {
        "server": {"host": "127.0.0.1", "port": port},
        "model": {
            **{"alias": ALIAS, "path": str(gguf), "n_ctx": CONTEXT, "n_seq_max": SLOTS},
            **{"n_batch": 512, "n_ubatch": 512, "kv_unified": True, "max_output_tokens": TOKENS},
            "n_gpu_layers": n_gpu_layers,
        },
    }
    file = folder / "example.json"
    file.write_text(json.dumps(config))
    (folder / "sitecustomize.py").write_text(NO_VISION)
    with started([llama.PYTHON, script, "-C", file], port, folder, *packages) as pid:
        yield from measured("examples/server/server.py", port, pid)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--example", type=Path)
    parser.add_argument("--packages", type=Path)
    parser.add_argument("--shape", default="160m")
    options = parser.parse_args()
    rows: list[Row] = []
    print(HEAD, flush=True)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        gguf = model(folder, options.shape, "q4_0")
        servers = [ours(folder, gguf), plain(gguf)]
        if options.example:
            servers.append(example(folder, gguf, options.example, options.packages))
        for server in servers:
            for row in server:
                rows.append(row)
                print(row, flush=True)
    for error in sorted({one.error for row in rows for one in row.answers if one.error}):
        print(error[:300], file=sys.stderr)
    own = [one for row in rows if row.server == "llamafleet serve" for one in row.answers]
    return 0 if all(one.whole and not one.error for one in own) else 1


if __name__ == "__main__":
    sys.exit(main())
