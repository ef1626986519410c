"""Faults in a build job at random times, drawn from a seed."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from random import Random

from tests.faults.host import MORE_THAN_ANY_S, Host, processes, wait_until_gone

SIZE_MB = 160
"""Of the file system of its own that disks are filled on."""


@dataclass
class Tally:
    """What came of the faults."""

    faults: Counter[str] = field(default_factory=Counter)
    late: Counter[str] = field(default_factory=Counter)
    """The job had ended before the fault came."""
    lost: list[str] = field(default_factory=list)
    """What was not as it must be: fault, and what was found."""

    def table(self) -> str:
        kinds = "\n".join(
            f"{kind:<28} {count:>5} {self.late[kind]:>5}" for kind, count in self.faults.items()
        )
        total, late = sum(self.faults.values()), sum(self.late.values())
        return (
            f"{'fault':<28} {'count':>5} {'late':>5}\n{kinds}\n{'all':<28} {total:>5} {late:>5}\n"
            f"lost or not converged: {len(self.lost)}"
        )


def kill_all(host: Host, process: subprocess.Popen[bytes], random: Random) -> None:
    """As a machine that goes down: everything at once."""
    for number in (signal.SIGSTOP, signal.SIGKILL):
        for pid in [*processes(host.root), process.pid]:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)


def kill_runner(host: Host, process: subprocess.Popen[bytes], random: Random) -> None:
    """As the kernel that is out of memory: one process, whose children live on."""
    process.kill()


def kill_a_child(host: Host, process: subprocess.Popen[bytes], random: Random) -> None:
    """One of the others: a compiler, pip."""
    others = [pid for pid in processes(host.root) if pid != process.pid]
    with contextlib.suppress(ProcessLookupError):
        os.kill(random.choice(others or [process.pid]), signal.SIGKILL)


def terminate(host: Host, process: subprocess.Popen[bytes], random: Random) -> None:
    """As systemd at a shutdown."""
    process.terminate()


def stop_and_go(host: Host, process: subprocess.Popen[bytes], random: Random) -> None:
    """Frozen for a while, in which somebody else starts the same job."""
    os.kill(process.pid, signal.SIGSTOP)
    second = host.runner.run(*host.runner.command(host.folder))
    os.kill(process.pid, signal.SIGCONT)
    if second.returncode not in (0, 75):
        raise AssertionError(f"a second one beside it ended with {second.returncode}")


def kill_at_a_write(host: Host, process: subprocess.Popen[bytes], random: Random) -> None:
    """While a file is there under its temporary name, which lasts a few microseconds."""
    end = time.monotonic() + 10
    while process.poll() is None and time.monotonic() < end:
        if any(path.name.startswith(".") for path in host.folder.iterdir()):
            process.kill()
            break
    kill_all(host, process, random)


def cut_files(host: Host, process: subprocess.Popen[bytes], random: Random) -> None:
    """As a loss of power: what was not yet on the disk is empty or half."""
    kill_all(host, process, random)
    process.wait()
    for name in ("progress.json", "build.log", "requirements.txt"):
        path = host.folder / name
        if path.is_file() and random.random() < 0.7:
            os.truncate(path, random.randrange(path.stat().st_size + 1))


def fill_disk(host: Host, process: subprocess.Popen[bytes], random: Random) -> None:
    """Full but for a little; made free once the job has ended."""
    filler = host.root / "filler"
    left = random.choice((0, 0, 4096, 1 << 16, 1 << 20))
    try:
        with filler.open("wb") as file:
            state = os.statvfs(host.root)
            size = max(1, state.f_bavail * state.f_frsize - left)
            with contextlib.suppress(OSError):
                os.posix_fallocate(file.fileno(), 0, size)
        process.wait(timeout=MORE_THAN_ANY_S)
    finally:
        filler.unlink(missing_ok=True)


Fault = Callable[[Host, "subprocess.Popen[bytes]", Random], None]
KILLS: tuple[Fault, ...] = (
    kill_all,
    kill_runner,
    kill_a_child,
    terminate,
    stop_and_go,
    kill_at_a_write,
    cut_files,
)


@contextlib.contextmanager
def file_system(folder: Path) -> Iterator[bool]:
    """A small file system at `folder`; False where this account can't mount one."""
    options = ["-t", "tmpfs", "-o", f"size={SIZE_MB}m,mode=755", "tmpfs", str(folder)]
    mounted = (
        os.geteuid() == 0
        and not subprocess.run(["mount", *options], capture_output=True, check=False).returncode
    )
    try:
        yield mounted
    finally:
        if mounted:
            subprocess.run(["umount", "--lazy", str(folder)], check=True)


def loop(
    root: Path, count: int, seed: int, say: Callable[[str], object] = lambda line: None
) -> Tally:
    """`count` faults, one after the other, below `root`."""
    random, tally = Random(seed), Tally()
    with file_system(root) as own:
        host = Host(root)
        begun = time.monotonic()
        if problem := host.converge():
            raise AssertionError(f"no build to begin with: {problem}")
        whole_s = time.monotonic() - begun
        before = host.files()
        kinds = (*KILLS, fill_disk) if own else KILLS
        for number in range(count):
            kind = kinds[number % len(kinds)]
            when = random.uniform(0, whole_s)
            name = kind.__name__.replace("_", " ")
            late, wrong = _faulted(host, kind, when, random)
            wrong += _healed(host, before)
            tally.faults[name] += 1
            tally.late[name] += late
            tally.lost += [f"{number} {name} after {when:.2f} s: {one}" for one in wrong]
            for one in wrong:
                say(f"{number} {name} after {when:.2f} s: {one}")
            if number % 10 == 9:
                say(f"{number + 1} of {count} faults, {len(tally.lost)} lost")
    return tally


def _faulted(host: Host, kind: Fault, when: float, random: Random) -> tuple[bool, list[str]]:
    """A build with one fault: whether it had ended before, and what was wrong after it."""
    wrong = []
    used = host.current.resolve()
    _, process = host.start()
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(timeout=when)
    late = process.returncode is not None
    if not late:
        try:
            kind(host, process, random)
            process.wait(timeout=MORE_THAN_ANY_S)
        except (AssertionError, subprocess.TimeoutExpired) as error:
            wrong.append(str(error))
            kill_all(host, process, random)
            process.wait()
    fault = host.fault(used) if host.current.resolve() == used else "is another one"
    if fault:
        wrong.append(f"the build in use: {fault}")
    return late, wrong + host.claims()


def _healed(host: Host, before: dict[str, int]) -> list[str]:
    """The run after it; what was wrong."""
    problem = host.converge()
    wrong = [problem] if problem else []
    if left := wait_until_gone(host.root):
        wrong.append(f"processes {left} are left")
    after = host.files()
    if after != before:
        changed = sorted(set(after.items()) ^ set(before.items()))
        wrong.append(f"what is there is not what was: {changed[:6]}")
    return wrong + host.claims()
