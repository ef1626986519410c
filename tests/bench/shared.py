"""`python -m tests.bench.shared [--hosts N]`: N booted hosts, one build; prints the table.

Each host is a Debian of its own, booted by systemd-nspawn, in a cgroup of its own, by whose CPU
time the whole host is measured; the CPU time of its job is that of its stamp. llama-cpp-python is
real, for the CPU, and each host runs its whole verification. Needs root, systemd-nspawn and
debootstrap; about 10 minutes on two idle cores. Exit status 0: every host is CPU ONLY as the
settings allow, one of them built, and all jobs together took at most LIMIT times the CPU time of
that build.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest.mock import patch

from tests.e2e import booted
from tests.e2e.booted import BootedHost, base_tree, boot, missing_tools
from tests.e2e.runs import checkout, latest, pyinfra, write_inventory

LIMIT = 1.1
CGROUPS = Path("/sys/fs/cgroup/cpuacct")
V2 = Path("/sys/fs/cgroup")


@dataclass(frozen=True)
class Cgroup:
    """One for a host; version 1 or 2, as the machine has it."""

    folder: Path

    @contextmanager
    def entered(self) -> Iterator[None]:
        """What is started meanwhile belongs to it, with all that it starts."""
        old = self.folder.parent / "cgroup.procs"
        (self.folder / "cgroup.procs").write_text(str(os.getpid()))
        try:
            yield
        finally:
            old.write_text(str(os.getpid()))

    @property
    def cpu_s(self) -> float:
        usage = self.folder / "cpuacct.usage"
        if usage.exists():
            return int(usage.read_text()) / 1e9
        told = dict(line.split() for line in (self.folder / "cpu.stat").read_text().splitlines())
        return int(told["usage_usec"]) / 1e6


def cgroup(name: str) -> Cgroup:
    root = CGROUPS if CGROUPS.is_dir() else V2
    folder = root / f"llamafleet-bench-{os.getpid()}-{name}"
    folder.mkdir()
    return Cgroup(folder)


def with_compiler(folder: Path) -> Path:
    """The base tree and g++: a compiler's installation is no part of a build."""
    tree = folder / "base"
    subprocess.run(["cp", "-a", "--reflink=auto", f"{base_tree()}/.", tree], check=True)
    booted._carry_registry_settings(tree)
    for command in ("apt-get -q update", "apt-get -qy install --no-install-recommends g++"):
        subprocess.run(["chroot", tree, *command.split()], check=True, stdout=subprocess.DEVNULL)
    return tree


def job(host: BootedHost) -> dict[str, Any]:
    """The stamp of its only build job."""
    done = host.run("cat /var/lib/llamafleet/build/*/stamp.json")
    return json.loads(done.stdout)  # type: ignore[no-any-return]


def measure(folder: Path, count: int) -> int:
    code = checkout(folder)
    names = [f"gpu-{letter}" for letter in "abcdefgh"[:count]]
    with ExitStack() as stack:
        stack.enter_context(patch.object(booted, "base_tree", lambda suite: tree))
        tree = with_compiler(folder)
        groups = {name: cgroup(name) for name in names}
        hosts = {}
        for name in names:
            with groups[name].entered():
                hosts[name] = boot(name, folder)
            stack.callback(hosts[name].stop)
        data = {
            name: host.data(
                accelerator="cpu", build_sharing="wheel", model="synthetic:tiny-q4_0", jobs=2
            )
            for name, host in hosts.items()
        }
        before = {name: group.cpu_s for name, group in groups.items()}
        run = pyinfra(code, "-y", write_inventory(code, data), "deploy.py", limit=7200)
        print(run.output[-6000:], file=sys.stderr)
        spent = {name: group.cpu_s - before[name] for name, group in groups.items()}
        stamps = {name: job(host) for name, host in hosts.items()}
        verdicts = {name: latest(code, name)["verdict"] for name in names}
        again = pyinfra(code, "-y", "--json", "fleet", "deploy.py", limit=900)
    return report(stamps, verdicts, spent, again.unchanged, run.seconds)


def report(
    stamps: dict[str, dict[str, Any]],
    verdicts: dict[str, str],
    spent: dict[str, float],
    unchanged: bool,
    seconds: float,
) -> int:
    print("| host | its build | job: CPU, wall | whole host: CPU | verdict |")
    print("|---|---|---|---|---|")
    for name, stamp in stamps.items():
        how = f"wheel of {stamp['shared_from']}" if stamp["shared_from"] else "built it"
        print(
            f"| {name} | {how} | {stamp['cpu_s']:.1f} s, {stamp['wall_s']:.1f} s | "
            f"{spent[name]:.1f} s | {verdicts[name]} |"
        )
    built = [stamp["cpu_s"] for stamp in stamps.values() if not stamp["shared_from"]]
    total = sum(stamp["cpu_s"] for stamp in stamps.values())
    ratio = total / built[0]
    print(
        f"\n{len(stamps)} hosts, {len(built)} build: jobs {total / 60:.2f} CPU-minutes, "
        f"{ratio:.3f} times one build ({built[0] / 60:.2f}); whole hosts, with verification, "
        f"{sum(spent.values()) / 60:.2f}; the run took {seconds:.0f} s; "
        f"the second run {'changed nothing' if unchanged else 'CHANGED SOMETHING'}"
    )
    good = set(verdicts.values()) == {"CPU ONLY"} and len(built) == 1 and unchanged
    return 0 if good and ratio <= LIMIT else 1


def main() -> int:
    parser = argparse.ArgumentParser(prog="tests.bench.shared", description=__doc__)
    parser.add_argument("--hosts", type=int, default=4, choices=range(2, 9))
    count = parser.parse_args().hosts
    if missing_tools():
        print(f"to boot a host: found no {', '.join(missing_tools())}", file=sys.stderr)
        return 2
    folder = Path(tempfile.mkdtemp(prefix="llamafleet-bench-"))
    try:
        return measure(folder, count)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        for left in (CGROUPS if CGROUPS.is_dir() else V2).glob(f"llamafleet-bench-{os.getpid()}-*"):
            left.rmdir()


if __name__ == "__main__":
    sys.exit(main())
