"""How many GPUs are looked at side by side, and how: bounded by cores and free memory."""

from __future__ import annotations

import os
import re
import resource
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from pathlib import Path
from queue import SimpleQueue
from typing import TypeVar

from llamafleet.onhost.driver import root
from llamafleet.onhost.verify.bench import physical_cores

T = TypeVar("T")
KIB = 1 << 10
FACTOR = 2
"""A worker with a model may take this many times what one took that only looked. Measured on two
H200: 480 MiB, and 3,956 MiB with the 7B model, of which 3,648 MiB are its file, mapped."""


def shares(count: int, cores: Sequence[int], fitting: int) -> list[frozenset[int]]:
    """The cores of each worker that runs beside others; none: one after the other.

    `count`: GPUs; `cores`: those that may be used; `fitting`: workers that memory has room for. A
    worker keeps one core busy. It gets its share of them all: it takes a thread for each core that
    it sees, and more threads than cores wait for one another.
    """
    width = min(count, len(cores), fitting)
    if width < 2:
        return []
    return [frozenset(cores[number::width]) for number in range(width)]


def usable_cores() -> list[int]:
    """One number of each core; of one with hyper-threads the first."""
    cpus = sorted(os.sched_getaffinity(0))
    return cpus[: physical_cores()]


def room(model_bytes: int) -> int:
    """How many workers with this model fit into the free memory; its file is read but once."""
    taken = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * KIB
    return fitting(available_bytes(), model_bytes, taken)


def fitting(available: int, model: int, worker: int) -> int:
    """`worker`: the most that one of the workers so far had in memory; 0: none ran. In bytes."""
    return max(1, (available - model) // (FACTOR * worker)) if worker else 1


def available_bytes() -> int:
    """Memory that can be had without swapping: of the machine, and of this process's cgroups."""
    told = re.search(r"^MemAvailable: +(\d+) kB", _text(root() / "proc/meminfo"), re.MULTILINE)
    free = [int(told[1]) * KIB] if told else [0]
    for line in _text(root() / "proc/self/cgroup").splitlines():
        number, _, path = line.partition(":")
        if number == "0":
            folder = root() / "sys/fs/cgroup" / path.rpartition(":")[2].lstrip("/")
            free += _left(folder)
    return min(free)


def _left(folder: Path) -> list[int]:
    """Of a cgroup and those above it: limit less use, without what can be given back."""
    top = root() / "sys/fs/cgroup"
    result = []
    while folder == top or top in folder.parents:
        limit, used = _text(folder / "memory.max").strip(), _text(folder / "memory.current").strip()
        cache = re.search(r"^inactive_file (\d+)$", _text(folder / "memory.stat"), re.MULTILINE)
        if limit.isdigit() and used.isdigit():
            result.append(int(limit) - int(used) + (int(cache[1]) if cache else 0))
        folder = folder.parent
    return result


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="ascii", errors="replace")
    except OSError:
        return ""


def side_by_side(
    jobs: Sequence[T], shares: Sequence[frozenset[int]], work: Callable[[T, frozenset[int]], None]
) -> None:
    """Do all jobs, as many at once as there are shares of the cores; without any in turn.

    What one of them raises is raised when all have ended.
    """
    if not shares:
        for job in jobs:
            work(job, frozenset())
        return
    free: SimpleQueue[frozenset[int]] = SimpleQueue()
    for share in shares:
        free.put(share)

    def one(job: T) -> None:
        cores = free.get()
        try:
            work(job, cores)
        finally:
            free.put(cores)

    with ThreadPoolExecutor(len(shares), thread_name_prefix="gpu") as pool:
        done = [pool.submit(one, job) for job in jobs]
        wait(done)
    for each in done:
        each.result()
