"""The jobs of a host, run where an image is built, and what of it the image gets."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from llamafleet.layout import Layout
from llamafleet.onhost import elf
from llamafleet.plans.container import BUILD_ONLY, CONFIG, MODELS, ImagePlan, states
from llamafleet.plans.plan import JobPlan
from llamafleet.protocol.job import JobConfig, JobStatus, status
from llamafleet.zipapps import host_zipapp, pip_zipapp

CODE, STATE = "code", "state"
"""Below the folder of `gather`: copied to / and to the state folder by Dockerfile.rtx4090."""


class ImageError(Exception):
    """Why there is no image; the text says what was found and what to do."""


@dataclass(frozen=True)
class Maker:
    """Carries out the plan of one image on this machine."""

    plan: ImagePlan
    layout: Layout

    def tools(self) -> None:
        """Put the job runner and pip where the jobs of hosts have them."""
        for path, data in (
            (self.layout.zipapp, host_zipapp()),
            (self.layout.pip, pip_zipapp()),
        ):
            Path(path).parent.mkdir(parents=True, exist_ok=True)
            Path(path).write_bytes(data)

    def toolkit(self) -> str:
        """Install the toolkit; a line that says which. Raises ImageError."""
        toolkit = self.plan.toolkit
        if toolkit is None:
            return "toolkit: none, for the CPU"
        if toolkit.job and toolkit.config:
            self._run(toolkit.job, toolkit.config)
        return f"toolkit: CUDA {toolkit.version} at {toolkit.root}"

    def build(self) -> str:
        """Build llama-cpp-python, and bring the server's packages; a line that says which.

        Raises ImageError.
        """
        build = self.plan.build
        self._run(self.plan.libraries_job, self.plan.libraries)
        if build.job:
            self._run(build.job, build.config)
        return f"build: {build.fingerprint} at {build.config.prefix}"

    def _run(self, job: JobPlan, config: JobConfig) -> None:
        """One job in the foreground, as a host runs it. Raises ImageError."""
        folder = Path(job.folder)
        folder.mkdir(parents=True, exist_ok=True)
        told = folder / "config.json"
        told.write_text(json.dumps(asdict(config)), encoding="utf-8")
        argv = [job.python, "-I", self.layout.zipapp, "job", "--kind", job.kind]
        done = subprocess.run(
            [*argv, "--config", str(told), "--dir", job.folder],
            env={"PATH": os.environ.get("PATH", os.defpath), "LC_ALL": "C.UTF-8"},
            check=False,
        )
        if done.returncode:
            raise ImageError("\n".join(_why(job, status(folder), done.returncode)))

    def gather(self, root: Path) -> list[str]:
        """Copy what a container needs to below `root`: to CODE what is root's there, to STATE what
        it writes. Lines that say how large the toolkit's part is. Raises ImageError, OSError.
        """
        layout, build = self.layout, self.plan.build
        root, state = root / CODE, root / STATE
        self._without_build_tools()
        version = root / build.config.prefix[1:]
        shutil.copytree(build.config.prefix, version, symlinks=True)
        shutil.copytree(self.plan.libraries.root, root / self.plan.libraries.root[1:])
        (root / layout.current[1:]).symlink_to(build.config.prefix)
        shutil.copy2(layout.zipapp, root / layout.zipapp[1:])
        libraries = list(self._libraries())
        for library in libraries:
            target = root / str(library)[1:]
            target.parent.mkdir(parents=True, exist_ok=True)
            # Under the name that it is asked for by; the wheels have no other.
            shutil.copy2(library, target)
        config = root / f"{layout.etc}/{CONFIG}"[1:]
        config.parent.mkdir(parents=True, exist_ok=True)
        text = json.dumps(asdict(self.plan.container), indent=1, sort_keys=True)
        config.write_text(f"{text}\n", encoding="utf-8")
        for path in states(layout):
            (state / Path(path).relative_to(layout.state)).mkdir(parents=True)
        (root / MODELS[1:]).mkdir()
        sizes = {str(path): path.stat().st_size for path in libraries}
        return [f"{size / 2**20:8.1f} MiB {path}" for path, size in sizes.items()]

    def _without_build_tools(self) -> None:
        """Take out of the environment what only the build needed. Raises ImageError."""
        python = f"{self.plan.build.config.prefix}/bin/python"
        argv = [python, "-I", self.layout.pip, "--disable-pip-version-check", "uninstall", "--yes"]
        done = subprocess.run([*argv, *BUILD_ONLY], capture_output=True, text=True, check=False)
        if done.returncode:
            raise ImageError(f"pip uninstall ended with {done.returncode}: {done.stderr.strip()}")

    def _libraries(self) -> Iterator[Path]:
        """Of the toolkit, those that the build's libraries need, and what these need in turn.

        The driver's own is none of them, whatever lies there: that of the host comes at run time.
        """
        if self.plan.toolkit is None:
            return
        folder = Path(self.plan.toolkit.libdir)
        package = Path(self.plan.build.config.prefix).glob("lib/python*/site-packages/llama_cpp")
        todo = [file for one in package for file in one.rglob("lib*.so*") if file.is_file()]
        seen: set[Path] = set()
        while todo:
            for name in elf.read(todo.pop()).needed:
                found = folder / name
                if name.startswith(elf.DRIVER) or found in seen:
                    continue
                if found.is_file():
                    seen.add(found)
                    todo.append(found)
        yield from sorted(seen)


def _why(job: JobPlan, told: JobStatus, code: int) -> Iterator[str]:
    """Lines about a job that failed: what it said last, cause and fix where they are known."""
    error = told.stamp.error if told.stamp else None
    if error is None:
        yield f"{job.kind}: found that its job ended with status {code} and said nothing more"
        return
    yield from error.lines
    yield (
        f"{job.kind} failed in phase {error.phase}: cause: {error.cause or 'not known'}; "
        f"next: {error.fix or 'read the lines above'}"
    )
