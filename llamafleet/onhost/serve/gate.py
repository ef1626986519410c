"""May this build serve on these GPUs now? Asked before anything is loaded, at each start.

The proof is the last verification of the very build that asks: latest.json where verify.json speaks
of that build. While another build is being proven, or after one was gone back from, it is the
newest result of this build among the older ones. Beside the proof the host is looked at as it is
now: driver, GPUs, the library's files. Nothing is written and nothing of llama.cpp is loaded.

`serve-gate --config FILE`: exit 0 where it may serve, 69 where it is held, 2 for bad settings.
"""

from __future__ import annotations

import argparse
import os
import stat
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from llamafleet.onhost import driver
from llamafleet.onhost.cards import memory_problem
from llamafleet.onhost.place import changed
from llamafleet.onhost.verify import conditions, gpu
from llamafleet.onhost.verify.checks.health import judge_health
from llamafleet.onhost.verify.present import DEPLOY
from llamafleet.onhost.wheel import sha256_of
from llamafleet.protocol.decode import DecodeError, decode
from llamafleet.protocol.job import alive, machine_id, read_json, read_progress
from llamafleet.protocol.place import PROOF
from llamafleet.protocol.result import BUSY, CPU_ONLY, PASS, Result, upgraded
from llamafleet.protocol.serve import ServeConfig
from llamafleet.protocol.verify import ConfigError, VerifyConfig, load

EXIT_OK, EXIT_CONFIG, EXIT_HELD = 0, 2, 69
"""EX_UNAVAILABLE of sysexits(3): systemd starts the unit again, less and less often."""
ANSWER_S = 20.0
"""For NVML, in all."""
AHEAD_S = 300.0
"""By which the clock of a result may be ahead of this one."""
MOST_RESULTS = 200
"""Files of older results that are looked through, the newest first."""
VERIFY = "a verification: sudo systemctl start llamafleet-verify.service"


@dataclass(frozen=True)
class Verdict:
    """Whether it may serve, and why."""

    allowed: bool
    reason: str = ""
    """Held: found, expected, next. Allowed: what should be said all the same."""
    proof: Result | None = None
    gpus: tuple[str, ...] = ()
    """UUIDs of the GPUs to use; empty: the CPU."""


class Held(Exception):
    """Why a service may not start."""

    def __init__(self, found: str, expected: str, advice: str) -> None:
        super().__init__(f"found {found}; expected {expected}; next: {advice}")


def main(argv: Sequence[str] | None = None) -> int:
    """Judge once; the exit status is in the module's docstring."""
    parser = argparse.ArgumentParser(prog="serve-gate", description=__doc__.splitlines()[0])
    parser.add_argument("--config", type=Path, required=True, metavar="FILE")
    options = parser.parse_args(argv)
    try:
        config = decode(ServeConfig, read_json(options.config))
    except DecodeError as error:
        print(f"{options.config}: {error}; next: {DEPLOY}", file=sys.stderr)
        return EXIT_CONFIG
    verdict = judge(config)
    told = verdict.reason or "proven"
    print(f"{config.profile}: {'may serve' if verdict.allowed else 'held'}: {told}")
    return EXIT_OK if verdict.allowed else EXIT_HELD


def judge(config: ServeConfig, prefix: Path | None = None) -> Verdict:
    """`prefix`: folder of the build that is to serve; None: that of this interpreter."""
    build = (prefix or Path(sys.prefix)).resolve()
    try:
        verify = _settings(config)
        proof = _proof(verify, build)
        _verdict(proof, verify)
        gpus = _gpus(config, proof)
        _library(proof, build)
        _model(config)
        if proof.inputs.driver is not None:
            _driver(proof)
            _cards(gpus)
    except Held as held:
        return Verdict(False, str(held))
    note = f"the last verdict is {BUSY}: offload is proven, the figures are not"
    return Verdict(True, note if proof.verdict == BUSY else "", proof, gpus)


def _settings(config: ServeConfig) -> VerifyConfig:
    try:
        verify = load(Path(config.verify))
    except ConfigError as error:
        raise Held("; ".join(error.errors), "the verification's settings", DEPLOY) from error
    if os.path.lexists(verify.stale):
        stale = read_json(verify.stale) or {}
        reason, advice = stale.get("reason"), stale.get("next")
        raise Held(
            f"no verdict that counts: {reason or verify.stale}",
            "a verification since then",
            str(advice or VERIFY),
        )
    return verify


def _proof(verify: VerifyConfig, build: Path) -> Result:
    """The last verification of this build."""
    _own(Path(verify.results))
    if _same(verify.prefix, build):
        if (proof := _result(verify.latest)) and _same(proof.prefix, build):
            return proof
        progress = read_progress(Path(verify.job))
        if progress is not None and alive(progress):
            raise Held("a verification that runs", "its end", "wait: it starts the services")
        raise Held(f"no proof of {build.name} in {verify.latest}", "a PASS of this build", VERIFY)
    for file in sorted(Path(verify.results).glob("*Z-*.json"), reverse=True)[:MOST_RESULTS]:
        if (proof := _result(file)) and _same(proof.prefix, build):
            _past(file, proof)
            return proof
    raise Held(
        f"no result of {build.name} among those in {verify.results}", "a PASS of this build", DEPLOY
    )


def _past(file: Path, proof: Result) -> None:
    """By its name it is the newest: of a clock that was ahead it would be that for years."""
    ahead_s = proof.finished - time.time()
    if ahead_s > AHEAD_S:
        raise Held(
            f"{file} of a time {ahead_s:.0f} s ahead of now",
            "a result of the past, as the newest one counts",
            f"timedatectl; {VERIFY}",
        )


def _own(path: Path) -> None:
    """What another account can write proves nothing."""
    try:
        found = path.stat()
    except OSError:
        return  # what is not there is missed by whoever reads it
    account = os.geteuid() or path.parent.stat().st_uid
    if found.st_uid not in (0, account) or found.st_mode & stat.S_IWOTH:
        raise Held(
            f"{path} of uid {found.st_uid}, mode {stat.S_IMODE(found.st_mode):o}",
            f"what uid {account} and root alone can write",
            f"ls -ld {path}; remove it, then {DEPLOY}",
        )


def _same(prefix: str, build: Path) -> bool:
    return bool(prefix) and Path(prefix).resolve() == build


def _result(file: Path) -> Result | None:
    """None: there is none that can be understood."""
    _own(file)
    try:
        return decode(Result, upgraded(read_json(file) or {}))
    except (DecodeError, KeyError, TypeError, AttributeError):
        return None


def _verdict(proof: Result, verify: VerifyConfig) -> None:
    """What it says of the build, wherever it was verified."""
    wanted = [CPU_ONLY] if proof.inputs.driver is None else [PASS, BUSY]
    if proof.verdict == CPU_ONLY and not verify.allow_cpu_only:
        wanted = [PASS, BUSY]
    if proof.verdict not in wanted or proof.red:
        red = "; ".join(f"{where} {check.name}: {check.found}" for where, check in proof.red[:3])
        raise Held(
            f"the verdict {proof.verdict}{f' ({red.strip()})' if red else ''}",
            " or ".join(wanted),
            proof.red[0][1].next if proof.red else VERIFY,
        )
    if proof.machine_id != machine_id():
        raise Held("a proof of another machine", "one of this machine", VERIFY)


def _gpus(config: ServeConfig, proof: Result) -> tuple[str, ...]:
    """Those that are to be used: each is proven by itself."""
    if proof.inputs.driver is None:
        return ()
    proven = tuple(row.uuid for row in proof.gpus if row.verdict in (PASS, BUSY))
    wanted = config.gpus or proven
    if missing := [uuid for uuid in wanted if uuid not in proven] or (not wanted and ["any GPU"]):
        raise Held(
            f"no proof of {', '.join(missing)}", f"one of {', '.join(proven) or 'a GPU'}", DEPLOY
        )
    return wanted


def _library(proof: Result, build: Path) -> None:
    """The files that would be loaded are those that were in the verification's process."""
    libraries = proof.system.libraries
    odd = list(_altered(libraries, build)) if libraries else ["no list of libraries in the proof"]
    if odd:
        raise Held("; ".join(odd[:3]), "the libraries that were verified", DEPLOY)


def _model(config: ServeConfig) -> None:
    """One that a job brought is as it was checked then."""
    folder = Path(config.model).parent
    if (folder / PROOF).exists() and (found := changed(folder)):
        raise Held(found, "the model as it was checked when it came", DEPLOY)


def _altered(libraries: dict[str, str], build: Path) -> Iterator[str]:
    for name, digest in libraries.items():
        file = Path(name)
        try:
            found = sha256_of(file)
        except OSError as error:
            yield f"{file}: {error.strerror}"
            continue
        if found != digest:
            yield f"{file} has changed since"
        elif not file.resolve().is_relative_to(build):
            yield f"{file} lies outside of {build}"


def _driver(proof: Result) -> None:
    now, source = driver.loaded_driver()
    if now != proof.inputs.driver:
        found = f"driver {now} ({source})" if now else f"no driver: {source}"
        raise Held(found, f"driver {proof.inputs.driver}, as it was verified with", VERIFY)
    library = driver.library_driver()
    if library not in (None, now):
        found = f"kernel module {now} and library {library}"
        raise Held(found, "both of one driver", "sudo reboot")


def _cards(gpus: Sequence[str]) -> None:
    """Each answers NVML, and its driver asks for no recovery of it."""
    if problem := memory_problem():
        raise Held(problem, "a device file that CUDA can open", "sudo nvidia-modprobe -u -c=0")
    try:
        nvml = gpu.Nvml(answer_s=ANSWER_S)
    except gpu.NvmlUnavailable as error:
        raise Held(str(error), "an NVML that answers", "nvidia-smi") from error
    there = {one.uuid: one for one in nvml.gpus()}
    missing = [uuid for uuid in gpus if uuid not in there]
    red = [
        f"GPU {one.index} {uuid}: {check}"
        for uuid, one in there.items()
        if uuid in gpus
        and (check := judge_health(conditions.health(nvml, one), one.bus_id)).status == "fail"
    ]
    nvml.close()
    if missing:
        found = f"{', '.join(missing)} not among {', '.join(there) or 'no GPU'}"
        raise Held(found, "the GPUs that were verified", "nvidia-smi -L; sudo dmesg | grep -i xid")
    if red:
        found, _, rest = red[0].partition("; expected ")
        expected, _, advice = rest.partition("; next: ")
        raise Held(found, expected, advice)
