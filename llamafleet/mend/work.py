"""The jobs of a mending, by the engine that hosts are built with: toolkit, build, verification."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from hashlib import sha256
from pathlib import Path
from subprocess import DEVNULL, Popen

from llamafleet.facts.environment import NoAnswer, Said, describe, look
from llamafleet.facts.host import HostSnapshot
from llamafleet.mend.machine import NO_TRACES, Machine, run
from llamafleet.onhost.job import EXIT_BUSY, end_session
from llamafleet.plans.mend.judge import Facts
from llamafleet.plans.mend.plan import Scheme
from llamafleet.plans.plan import JobPlan, Plan
from llamafleet.plans.verify import verification_inputs
from llamafleet.protocol.environment import MODULE, Environment
from llamafleet.protocol.fingerprint import fingerprint
from llamafleet.protocol.job import (
    BuildProduct,
    JobConfig,
    PipConfig,
    Stamp,
    machine_id,
    read_json,
    status,
    write_json,
)
from llamafleet.protocol.result import Result
from llamafleet.protocol.verify import VerifyConfig
from llamafleet.received import received_result
from llamafleet.settings import Settings
from llamafleet.tables.pinned import HOST, pins, pip_line

TOOLS_S = 600.0
POLL_S = 1.0
FOR_BUILDS = ("cmake", "ninja", "packaging", "pathspec", "scikit-build-core")
"""Of the pinned packages those that a verification does without."""
AS_STARTED = ("CUDA_VISIBLE_DEVICES", "LD_LIBRARY_PATH")
"""Variables of the caller's that a verification of what is there must have: without them it may
say the opposite of what the user sees."""


class Failed(Exception):
    """A step that did not do what it should: found X; expected Y; next: command."""


@dataclass(frozen=True)
class Worker:
    """What all steps need."""

    here: Machine
    settings: Settings
    snapshot: HostSnapshot
    quiet: bool
    """Nothing but the answer is said on stdout."""

    def say(self, line: str) -> None:
        print(line, file=sys.stderr if self.quiet else sys.stdout, flush=True)

    def job(self, job: JobPlan, config: JobConfig) -> Stamp:
        """Run one of the zipapp's jobs, or wait for the one that runs. Raises Failed."""
        if isinstance(config, PipConfig) and config.find_links and self.settings.wheelhouse:
            # The folder itself: nothing is copied on one machine.
            config = replace(config, find_links=self.settings.wheelhouse)
        told = Path(job.config)
        write_json(told, asdict(config))
        argv = ["job", "--kind", job.kind, "--config", str(told), "--dir", job.folder]
        folder = Path(job.folder)
        while self._zipapp(job.python, argv) == EXIT_BUSY:
            # It was begun before and goes on.
            self.say(f"{job.kind}: one that was begun before runs still; waiting for it")
            while status(folder).state == "running":
                time.sleep(POLL_S)
        ended = status(folder)
        if ended.state != "ok" or ended.stamp is None:
            raise Failed(_why(job, ended.stamp, ended.unreadable))
        return ended.stamp

    def _zipapp(self, python: str, argv: list[str]) -> int:
        """Run a command of the zipapp with the account's rights; its exit status."""
        words = [*self.here.as_account, python, "-I", self.here.layout.zipapp, *argv]
        out = sys.stderr if self.quiet else None
        process = Popen(
            words,
            stdin=DEVNULL,
            stdout=out,
            env=self.here.clean,
            start_new_session=True,
            encoding="utf-8",
        )
        try:
            return process.wait()
        finally:
            end_session(process)

    def needs(self, prefix: str) -> tuple[str, ...]:
        """What the llama-cpp-python of a build needs, as the build's interpreter tells.

        Names of packages; raises Failed.
        """

        def ask(argv: Sequence[str], seconds: float, _: Mapping[str, str] | None) -> Said:
            return run([*self.here.as_account, *argv], seconds, self.here.clean)

        python = f"{prefix}/bin/python"
        try:
            there = {one.name for one in describe(python, ask).distributions}
            copies = [copy for copy in look(python, ask).copies if copy.folder.startswith(prefix)]
        except NoAnswer as problem:
            raise Failed(str(problem)) from problem
        if not copies:
            raise Failed(
                f"{prefix}: found no {MODULE} in it; expected the one that was built; "
                "next: run the same command again"
            )
        # Of what is for other Pythons only the name is known.
        return tuple(name for name in copies[0].requires if name in there)

    def pack(self, prefix: str) -> Path:
        """The wheel of a build, made by the account that builds. Raises Failed."""
        layout = self.here.layout
        made = Path(layout.state, "wheel")
        argv = ["pack", "--prefix", prefix, "--to", str(made)]
        words = [*self.here.as_account, f"{prefix}/bin/python", "-I", layout.zipapp, *argv]
        said = run(words, TOOLS_S, self.here.clean)
        path = Path(said.output.strip().rpartition("\n")[2])
        if said.status != 0 or path.parent != made:
            raise Failed(
                f"wheel: found that it can't be packed ({said.error.strip()[-300:]}); expected the "
                "files that were built; next: run the same command again"
            )
        return path


def _why(job: JobPlan, stamp: Stamp | None, unreadable: str) -> str:
    """Of a job that failed, in its own words."""
    error = stamp.error if stamp else None
    if error is None:
        found = unreadable or "it came to no end"
        return f"{job.kind}: found that {found}; expected a stamp; next: read {job.folder}"
    said = error.lines[0] if error.lines else "it says no more"
    cause = f" ({error.cause})" if error.cause else ""
    fix = error.fix or f"read {error.log}"
    return f"{job.kind} failed in phase {error.phase}: {said}{cause}; next: {fix}"


# -- verifications ---------------------------------------------------------------------------------


def tools(work: Worker, environment: Environment, needed: Sequence[str]) -> str:
    """Folder of what a verification needs beside llama-cpp-python and the environment lacks.

    It goes onto the path of the verification alone. `needed`: what llama-cpp-python itself needs is
    not there, or nobody would see that it is missing. Raises Failed.
    """
    there = {one.name for one in environment.distributions}
    unwanted = {*there, *FOR_BUILDS, *needed}
    wanted = [pin for pin in pins(HOST) if pin.requirement.name.lower() not in unwanted]
    text = "".join(pip_line(str(pin.requirement), pin.sha256) for pin in wanted)
    folder = Path(work.here.layout.state, f"tools-{fingerprint({'text': text})}")
    if (folder / "whole").is_file() or not wanted:
        return str(folder)
    requirements = Path(work.here.layout.configs, "tools.txt")
    requirements.write_text(text, encoding="utf-8")
    argv = [environment.executable, "-I", work.here.layout.pip, "--disable-pip-version-check"]
    argv += ["install", "--no-input", "--no-cache-dir", "--only-binary", ":all:", "--no-deps"]
    argv += ["--require-hashes", "--upgrade", "--target", str(folder), "-r", str(requirements)]
    env = work.here.clean | index(work.settings, argv)
    said = run([*work.here.as_account, *argv], TOOLS_S, env)
    if said.status != 0:
        lines = [line for line in said.error.splitlines() if line.startswith("ERROR")]
        raise Failed(
            f"verification: found that its packages can't be fetched ({' '.join(lines[-1:])}); "
            "expected the index or --set wheelhouse=FOLDER; next: the same command with a network"
        )
    run([*work.here.as_account, "touch", str(folder / "whole")], 10, work.here.clean)
    return str(folder)


def index(settings: Settings, argv: list[str]) -> dict[str, str]:
    """Where pip looks, as the settings say: options of `argv` and variables."""
    env = {"PIP_CONFIG_FILE": "/dev/null"}
    if settings.wheelhouse:
        argv += ["--no-index", "--find-links", settings.wheelhouse]
    elif settings.index_url:
        env["PIP_INDEX_URL"] = settings.index_url
    if settings.proxy:
        env |= {"HTTPS_PROXY": settings.proxy, "HTTP_PROXY": settings.proxy}
    return env


def verify_build(work: Worker, plan: Plan) -> Result:
    """Of the new build, by itself. Raises Failed."""
    assert plan.verify is not None
    config = replace(plan.verify.config, busy_minutes=0, allow_busy=True)
    return verify(work, config, f"{config.prefix}/bin/python")


def verify_in_place(work: Worker, facts: Facts, site: str, scheme: Scheme) -> Result:
    """Of what lies in the environment. Raises Failed."""
    environment, here = facts.environment, work.here
    place = Path(site).resolve()
    stamp = _stamp_of(here, place)
    variables = {name: here.environ[name] for name in AS_STARTED if name in here.environ}
    variables |= NO_TRACES
    own = facts.own or facts.imported
    needed = own.requires if own else ()
    paths = [tools(work, environment, needed), *([str(place)] if scheme == "user site" else [])]
    backend = facts.plan.backend
    inputs = verification_inputs(work.settings, work.snapshot, backend, "environment")
    config = VerifyConfig(
        version=1,
        host=work.snapshot.hostname or "this machine",
        inputs=inputs,
        backend=backend,
        toolkit=None,
        prefix=str(place.parent),
        stamp=str(stamp),
        job=here.layout.job("verify", "in-place"),
        results=here.layout.results,
        models=here.layout.models,
        compute_capabilities=(),
        allow_cpu_only=True,
        busy_minutes=0,
        allow_busy=True,
        environment={**variables, "PYTHONPATH": ":".join(paths)},
    )
    told = {**NO_TRACES, "PYTHONPATH": ":".join(paths)}
    return verify(work, config, environment.executable, told)


def _stamp_of(here: Machine, site: Path) -> Path:
    """A stamp of what is there now, for the checks of where libraries are from."""
    libraries = {
        f"{site.name}/{path.relative_to(site)}": sha256(path.read_bytes()).hexdigest()
        for path in sorted((site / MODULE).rglob("lib*.so*"))
        if path.is_file()
    }
    stamp = Stamp(kind="build", key="environment", ok=True, machine_id=machine_id())
    product = BuildProduct(
        wheel_bytes=None,
        wheel_sha256=None,
        libraries=libraries,
        units=0,
        llama_cpp_python="",
        system_info="",
        import_s=0.0,
    )
    file = Path(here.layout.configs, "in-place.json")
    write_json(file, asdict(stamp) | asdict(product))
    return file


def verify(
    work: Worker, config: VerifyConfig, python: str, variables: Mapping[str, str] | None = None
) -> Result:
    """Run a verification with `python`; its result. Raises Failed."""
    here = work.here
    told = Path(here.layout.configs, "verify.json")
    write_json(told, asdict(config))
    words = [*here.as_account, python, "-s", here.layout.zipapp, "verify", "--config", str(told)]
    seconds = work.settings.verify_minutes * 60.0
    begun = time.time()
    said = run(words, seconds, {**here.clean, **(variables or {})})
    found = received_result(read_json(config.latest))
    if not isinstance(found, Result) or found.finished < begun:
        last = (said.error.strip() or said.output.strip()).splitlines()[-1:]
        raise Failed(
            f"verification: found no result ({' '.join(last)}, status {said.status}); expected one "
            f"in {config.latest}; next: read {config.job}/verify.log"
        )
    return found
