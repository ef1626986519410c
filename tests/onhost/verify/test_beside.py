"""How many GPUs are looked at side by side, by cores and memory, and what that does."""

from __future__ import annotations

import os
import sys
import threading
from pathlib import Path

import pytest

from llamafleet.onhost.verify import beside
from llamafleet.onhost.verify.beside import available_bytes, fitting, shares, side_by_side
from llamafleet.onhost.verify.child import Children
from llamafleet.onhost.verify.evidence import once

GIB = 1 << 30


@pytest.mark.parametrize(
    ("gpus", "cores", "memory", "width"),
    [
        (8, 64, 99, 8),
        (8, 4, 99, 4),
        (8, 64, 3, 3),
        (2, 2, 99, 2),
        (2, 1, 99, 0),
        (2, 16, 1, 0),
        (1, 16, 99, 0),
        (0, 16, 99, 0),
    ],
)
def test_as_many_as_cores_and_memory_bear(gpus: int, cores: int, memory: int, width: int) -> None:
    made = shares(gpus, range(cores), memory)
    assert len(made) == width
    if made:
        assert frozenset.union(*made) == set(range(cores)) and sum(map(len, made)) == cores
        assert max(map(len, made)) - min(map(len, made)) <= 1


@pytest.mark.parametrize(
    ("available", "model", "worker", "workers"),
    [
        (64 * GIB, 4 * GIB, GIB, 30),
        (8 * GIB, 4 * GIB, GIB, 2),
        (4 * GIB, 4 * GIB, GIB, 1),
        (2 * GIB, 4 * GIB, GIB, 1),
        (64 * GIB, 0, 0, 1),
    ],
)
def test_memory_holds_the_model_once_and_each_worker(
    available: int, model: int, worker: int, workers: int
) -> None:
    assert fitting(available, model, worker) == workers


def test_free_memory_is_the_least_of_machine_and_cgroups(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LLAMAFLEET_ROOT", str(tmp_path))
    assert available_bytes() == 0
    for name, text in {
        "proc/meminfo": "MemTotal: 99 kB\nMemAvailable:   16777216 kB\n",
        "proc/self/cgroup": "1:cpu:/x\n0::/system.slice/a.service\n",
        "sys/fs/cgroup/system.slice/a.service/memory.max": "max\n",
        "sys/fs/cgroup/system.slice/a.service/memory.current": "1\n",
    }.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    assert available_bytes() == 16 * GIB
    limited = tmp_path / "sys/fs/cgroup/system.slice"
    (limited / "memory.max").write_text(f"{8 * GIB}\n")
    (limited / "memory.current").write_text(f"{6 * GIB}\n")
    (limited / "memory.stat").write_text(f"anon 5\ninactive_file {GIB}\n")
    assert available_bytes() == 3 * GIB
    (tmp_path / "sys/fs/cgroup/memory.max").write_text(f"{2 * GIB}\n")
    (tmp_path / "sys/fs/cgroup/memory.current").write_text(f"{GIB}\n")
    assert available_bytes() == GIB, "a container's own"


def test_of_this_machine() -> None:
    assert available_bytes() > 0 and beside.usable_cores()


def test_without_shares_in_turn_and_on_all_cores() -> None:
    done: list[tuple[int, frozenset[int], int]] = []
    side_by_side(
        [1, 2],
        [],
        lambda job, cores: done.append((job, cores, threading.get_ident())),
    )
    here = threading.get_ident()
    assert done == [(1, frozenset(), here), (2, frozenset(), here)]


def test_all_at_once_where_there_are_shares_for_all() -> None:
    """Each waits for the other: in turn they would never meet."""
    met = threading.Barrier(2, timeout=10)
    side_by_side([1, 2], shares(2, range(4), 9), lambda job, cores: None if met.wait() < 2 else 1)


def test_never_two_on_the_same_cores() -> None:
    lock, busy, most = threading.Lock(), set[int](), [0]
    turn = threading.Event()

    def work(job: int, cores: frozenset[int]) -> None:
        with lock:
            assert not busy & cores
            busy.update(cores)
            most[0] = max(most[0], len(busy))
        turn.wait(0.01)
        with lock:
            busy.difference_update(cores)

    side_by_side(range(6), shares(6, range(4), 2), work)
    assert most == [4], "two at a time, of two cores each"


def test_what_one_raises_is_raised_when_the_others_have_ended() -> None:
    done: list[int] = []

    def work(job: int, cores: frozenset[int]) -> None:
        if job == 0:
            raise ZeroDivisionError
        done.append(job)

    with pytest.raises(ZeroDivisionError):
        side_by_side(range(3), shares(3, range(4), 2), work)
    assert sorted(done) == [1, 2]


def test_who_comes_second_waits_for_the_first_one_s_answer() -> None:
    class Slow:
        asked = 0

        @once
        def answer(self) -> int:
            self.asked += 1
            entered.set()
            go.wait(10)
            return self.asked

    entered, go, slow = threading.Event(), threading.Event(), Slow()
    answers: list[int] = []
    threads = [threading.Thread(target=lambda: answers.append(slow.answer())) for _ in "ab"]
    threads[0].start()
    entered.wait(10)
    threads[1].start()
    go.set()
    for thread in threads:
        thread.join(10)
    assert answers == [1, 1]


@pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="one core: nothing to choose from")
def test_a_worker_keeps_to_its_cores(tmp_path: Path) -> None:
    """Before it imports anything: its threads are as many as it sees cores."""
    (tmp_path / "llama_cpp.py").write_text(
        "import os; raise ImportError(f'cores {sorted(os.sched_getaffinity(0))}')"
    )
    children = Children(tmp_path, None, {"PYTHONPATH": str(tmp_path)})
    core = max(os.sched_getaffinity(0))
    outcome = children.run("probe", cores=frozenset({core}))
    assert f"cores [{core}]" in str(outcome.problem), sys.executable
    assert f"cores {sorted(os.sched_getaffinity(0))}" in str(children.run("probe").problem)
