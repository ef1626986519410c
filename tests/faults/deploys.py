"""Whole deployments on this machine, in a home of their own, killed at random times.

The source archive is one that holds the package that LLAMAFLEET_TEST_PYTHON names, compiled long
ago: what is killed is the deployment's own code, which a compilation would only hold up.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from random import Random

from llamafleet.layout import Layout
from llamafleet.onhost.build import proof
from llamafleet.onhost.product import library_hashes
from llamafleet.protocol.job import BUILD, read_json
from llamafleet.wheelhouse.manifest import MANIFEST, sha256_of
from tests.e2e.runs import PYINFRA, checkout, environment, write_inventory
from tests.faults import archive
from tests.faults.host import processes, wait_until_gone
from tests.faults.loop import Tally
from tests.onhost import llama

PACKAGE_BACKEND = """
import subprocess, sys, time, zipfile
from pathlib import Path

SOURCE, PACKAGE = Path(__file__).parent, Path("@PACKAGE@")


def say(line):
    print(line, flush=True)
    time.sleep(0.1)


def prepare_metadata_for_build_wheel(metadata_directory, config_settings=None):
    info = Path(metadata_directory, "llama_cpp_python-@VERSION@.dist-info")
    info.mkdir()
    (info / "METADATA").write_bytes((SOURCE / "PKG-INFO").read_bytes())
    return info.name


def build_wheel(wheel_directory, config_settings=None, metadata_directory=None):
    tree = Path(config_settings["build-dir"])
    say("*** Configuring CMake...")
    tree.mkdir(parents=True, exist_ok=True)
    (tree / "CMakeCache.txt").write_text("CMAKE_BUILD_TYPE:STRING=Release\\n")
    say("*** Building project with Ninja...")
    say("[1/1] cc -o libllama.so")
    (tree / ".ninja_log").write_text("# ninja log v5\\n0\\t1\\t0\\tlibllama.so\\t0\\n")
    say("*** Installing project into wheel...")
    name = "llama_cpp_python-@VERSION@"
    info = f"{name}.dist-info"
    wheel = Path(wheel_directory, f"{name}-py3-none-any.whl")
    with zipfile.ZipFile(wheel, "w") as file:
        for path in sorted(PACKAGE.rglob("*")):
            if path.suffix in (".py", ".so") and path.is_file():
                file.write(path, f"llama_cpp/{path.relative_to(PACKAGE)}")
        tag = "Wheel-Version: 1.0\\nRoot-Is-Purelib: true\\nTag: py3-none-any\\n"
        file.writestr(f"{info}/WHEEL", tag)
        file.writestr(f"{info}/METADATA", (SOURCE / "PKG-INFO").read_bytes())
        file.writestr(f"{info}/RECORD", "")
    return wheel.name
"""

LIMIT_S = 600


class Machine:
    """This one, as a host whose home is below `root`."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.home = root / "home"
        self.home.mkdir()
        self.layout = Layout.user(str(self.home))
        self.versions, self.current = Path(self.layout.versions), Path(self.layout.current)
        self.folder = checkout(root)
        self.wheelhouse = root / "wheelhouse"
        self._collect()
        self.number = 0

    def _collect(self) -> None:
        """A wheelhouse whose source archive is ours."""
        python = ".".join(map(str, _version_of(llama.PYTHON)))
        command = [str(Path(PYINFRA).with_name("llamafleet")), "wheelhouse", "build"]
        subprocess.run(
            [*command, str(self.wheelhouse), "--python", python],
            cwd=self.folder,
            env=environment(self.folder),
            check=True,
            stdout=subprocess.DEVNULL,
        )
        package = llama.library_folder().parent
        backend = PACKAGE_BACKEND.replace("@PACKAGE@", str(package))
        files = archive.FILES | {"backend.py": backend.replace("@VERSION@", archive.VERSION)}
        made = archive.write_archive(self.wheelhouse, files)
        manifest = json.loads((self.wheelhouse / MANIFEST).read_text("utf-8"))
        manifest["files"][made.name] |= {"sha256": sha256_of(made), "bytes": made.stat().st_size}
        manifest["llama"]["sha256"] = sha256_of(made)
        (self.wheelhouse / MANIFEST).write_text(json.dumps(manifest))

    def ask_for_another(self) -> None:
        """An inventory that asks for a build that was never made."""
        self.number += 1
        write_inventory(
            self.folder,
            {
                "@local": {
                    "scope": "user",
                    "accelerator": "cpu",
                    "wheelhouse": str(self.wheelhouse),
                    "cmake_options": {f"FAULT_{self.number}": "ON"},
                    "model": "synthetic:tiny-q4_0",
                    "bench_prompt": 32,
                    "bench_gen": 4,
                    "bench_repetitions": 2,
                    "context": 512,
                    "verify_schedule": None,
                }
            },
        )

    def start(self, log: Path) -> subprocess.Popen[bytes]:
        with log.open("wb") as said:
            return subprocess.Popen(
                [PYINFRA, "-y", "fleet", "deploy.py"],
                cwd=self.folder,
                env=environment(self.folder, HOME=str(self.home)),
                stdout=said,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def converge(self) -> str:
        """A whole run; "" or what is wrong."""
        log = self.root / "run.log"
        process = self.start(log)
        try:
            code = process.wait(timeout=LIMIT_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            return f"no end after {LIMIT_S} s: {_tail(log)}"
        if code:
            return f"the next run ended with {code}: {_tail(log)}"
        if fault := self.fault():
            return f"the next run ended well, and the build in use: {fault}"
        return ""

    def fault(self) -> str:
        """Why the build in use is not whole; "": it is."""
        if not self.current.exists():
            return "there is none"
        prefix = self.current.resolve()
        product = proof(prefix, prefix.name.partition("-")[0])
        if product is None:
            return "no proof"
        if library_hashes(prefix) != product.libraries:
            return "its libraries are not as stamped"
        return ""

    def claims(self) -> list[str]:
        """Proofs that are not borne out."""
        wrong = []
        for prefix in self.versions.iterdir() if self.versions.is_dir() else ():
            product = proof(prefix, prefix.name.partition("-")[0])
            stamp = read_json(prefix / BUILD)
            if product and library_hashes(prefix) != product.libraries:
                wrong.append(f"{prefix.name}: not as stamped: {stamp}")
        return wrong

    def strays(self) -> list[str]:
        """Files of half-done work: temporary and partial ones, and builds without a proof."""
        found = [
            str(path.relative_to(self.home))
            for pattern in ("*.partial", ".*.json.*", ".removed-*", "INCOMPLETE", "tmp/*")
            for path in self.home.rglob(pattern)
            if "site-packages" not in path.parts
        ]
        proven = [path for path in self.versions.iterdir() if (path / BUILD).is_file()]
        return found + [path.name for path in self.versions.iterdir() if path not in proven]


def _version_of(python: str) -> tuple[int, int]:
    program = "import sys; print(*sys.version_info[:2])"
    said = subprocess.run([python, "-c", program], check=True, capture_output=True, text=True)
    major, minor = said.stdout.split()
    return int(major), int(minor)


def _tail(log: Path) -> str:
    return " | ".join(log.read_text("utf-8", errors="replace").splitlines()[-15:])


def kill_controller(machine: Machine, process: subprocess.Popen[bytes]) -> None:
    """The jobs go on."""
    process.kill()


def interrupt_controller(machine: Machine, process: subprocess.Popen[bytes]) -> None:
    """As by Ctrl-C, then by a second one."""
    process.send_signal(signal.SIGINT)
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(timeout=10)
    process.kill()


def kill_jobs(machine: Machine, process: subprocess.Popen[bytes]) -> None:
    """What runs on the host; the controller watches."""
    for pid in processes(machine.home):
        if pid != process.pid:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)


def kill_both(machine: Machine, process: subprocess.Popen[bytes]) -> None:
    """As when the machine goes down on which both run."""
    process.kill()
    kill_jobs(machine, process)


KINDS = (kill_controller, kill_both, kill_jobs, interrupt_controller)


def loop(
    root: Path, count: int, seed: int, say: Callable[[str], object] = lambda line: None
) -> Tally:
    """`count` faults, one after the other."""
    random, tally = Random(seed), Tally()
    machine = Machine(root)
    machine.ask_for_another()
    begun = time.monotonic()
    if problem := machine.converge():
        raise AssertionError(f"no deployment to begin with: {problem}")
    whole_s = time.monotonic() - begun
    say(f"a whole deployment takes {whole_s:.0f} s")
    for number in range(count):
        kind = KINDS[number % len(KINDS)]
        when = random.uniform(0.5, whole_s)
        name = kind.__name__.replace("_", " ")
        used = machine.current.resolve()
        machine.ask_for_another()
        process = machine.start(root / "faulted.log")
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(timeout=when)
        late = process.returncode is not None
        if not late:
            kind(machine, process)
            process.wait(timeout=LIMIT_S)
        wrong = [fault] if (fault := machine.fault()) else []
        if machine.current.resolve() != used and not (used / BUILD).is_file():
            wrong.append("the build that was in use is gone")
        wrong += machine.claims()
        if problem := machine.converge():
            wrong.append(problem)
        wrong += machine.claims()
        if left := wait_until_gone(machine.home):
            wrong.append(f"processes {left} are left")
        if strays := machine.strays():
            wrong.append(f"left behind: {strays[:6]}")
        tally.faults[name] += 1
        tally.late[name] += late
        told = [f"{number} {name} after {when:.1f} s: {one}" for one in wrong]
        tally.lost += told
        say("\n".join(told) or f"{number} {name} after {when:.1f} s: converged")
    return tally
