"""Does the last verdict speak of the driver and the GPUs that this host has now?

A driver update changes what a verdict and a benchmark say. This runs at each boot and after each
change of packages: a verdict on another driver is removed and stale.json says why. Where the driver
works and runs the build's toolkit the unit starts a verification; else, and where other GPUs are in
the host, a person must act.

`driver-check --config FILE`: exit 0 where the verdict stands, 4 where the host should be verified
now, 3 where something else must come first, 5 where that is a reboot, 2 for a bad configuration,
the wrong account or results that can't be written.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from llamafleet.onhost import driver
from llamafleet.onhost.rights import root_problem
from llamafleet.onhost.verify import gpu, metrics
from llamafleet.onhost.verify.present import as_planned, chosen
from llamafleet.protocol.decode import DecodeError, decode
from llamafleet.protocol.job import alive, read_json, read_progress, write_json
from llamafleet.protocol.result import VerdictOn
from llamafleet.protocol.verify import ConfigError, VerifyConfig, load

ANSWER_S = 40.0
"""For NVML: the unit has a minute."""
EXIT_OK, EXIT_CONFIG, EXIT_STALE, EXIT_VERIFY, EXIT_REBOOT = 0, 2, 3, 4, 5
DEPLOY = "on the controller, pyinfra -y inventory deploy.py"
REBOOT = (
    "sudo reboot; if they differ still, on the controller, pyinfra --dry inventory deploy.py, "
    "which names the packages that disagree"
)

RESTART = "sudo dmesg | grep -iE 'nvrm|xid'; sudo reboot"


def main(argv: Sequence[str] | None = None) -> int:
    """Run one check; the exit status is in the module's docstring."""
    parser = argparse.ArgumentParser(prog="driver-check", description=__doc__.splitlines()[0])
    parser.add_argument("--config", type=Path, required=True, metavar="FILE")
    options = parser.parse_args(argv)
    try:
        config = load(options.config)
    except ConfigError as error:
        print(f"{options.config}: {'; '.join(error.errors)}; next: {DEPLOY}", file=sys.stderr)
        return EXIT_CONFIG
    if problem := root_problem(config, "driver-check"):
        print(problem, file=sys.stderr)
        return EXIT_CONFIG
    planned = config.inputs.driver
    if planned is None:
        print("no driver is planned for (CPU backend): nothing to check")
        return EXIT_OK
    try:
        return _check(config, planned)
    except OSError as error:
        print(
            f"{config.results}: found no folder to write to ({error}); expected the one that "
            f"deploy makes; next: {DEPLOY}",
            file=sys.stderr,
        )
        return EXIT_CONFIG


def _check(config: VerifyConfig, planned: str) -> int:
    """The exit status. Raises OSError."""
    latest, stale = config.latest, config.stale
    # Before the verdict is read: one that ends just now has written it by then.
    progress = read_progress(Path(config.job))
    verifying = progress is not None and alive(progress)
    now, source = driver.loaded_driver()
    library = driver.library_driver()
    halves = now is not None and library not in (None, now)
    current = now is not None and not halves and _verified(latest, config) == now
    if not current:
        # First, so that nothing that follows can leave an old verdict in place: NVML may hang.
        _forget(config)
    if now is None:
        return _stale(stale, planned, now, f"driver {planned} is gone: {source}", DEPLOY)
    if halves:
        found = f"reboot needed: loaded kernel module {now}, library {library}"
        _stale(stale, planned, now, found, REBOOT)
        return EXIT_REBOOT
    answer = _ask(config)
    if answer.hangs:
        _forget(config)
        return _stale(stale, planned, now, f"driver {now} is ill: {answer.problem}", RESTART)
    if others := _other_gpus(config, answer):
        _forget(config)
        return _stale(stale, planned, now, others, DEPLOY)
    if current and answer.problem:
        # It proves no GPU that can't be asked. One that only comes late is proven again.
        _forget(config)
        found = f"driver {now} does not answer: {answer.problem}"
        _stale(stale, planned, now, found, "a verification")
        return EXIT_VERIFY
    if current:
        stale.unlink(missing_ok=True)
        print(f"driver {now} is the one that was verified ({source})")
        return EXIT_OK
    return _unverified(config, answer, planned, now, source=source, verifying=verifying)


def _unverified(
    config: VerifyConfig, answer: _Answer, planned: str, now: str, *, source: str, verifying: bool
) -> int:
    """The exit status where the driver that is loaded has no verdict."""
    stale = config.stale
    changed = f"the driver changed from {planned} to {now} ({source})"
    if now == planned:
        changed = f"driver {now} is the planned one and has no verdict ({source})"
    if verifying:
        print(f"{changed}; it is being verified")
        return EXIT_OK
    hindrance = _hindrance(config, answer)
    if hindrance:
        return _stale(stale, planned, now, f"{changed}; {hindrance}", DEPLOY)
    if now == planned:
        stale.unlink(missing_ok=True)
        print(f"{changed}; next: a verification")
    else:
        _stale(stale, planned, now, changed, "a verification")
    return EXIT_VERIFY


def _forget(config: VerifyConfig) -> None:
    config.latest.unlink(missing_ok=True)
    metrics.keep(config, None)


def _verified(latest: Path, config: VerifyConfig) -> str | None:
    """The driver that the last verdict on this build speaks of."""
    try:
        inputs = decode(VerdictOn, read_json(latest)).inputs
    except DecodeError:
        return None
    return inputs.driver if inputs.fingerprint == config.inputs.fingerprint else None


@dataclass(frozen=True)
class _Answer:
    """What NVML says."""

    gpus: tuple[str, ...] = ()
    """Those that the settings choose."""
    cuda: str = ""
    problem: str = ""
    """Why it says nothing."""
    hangs: bool = False
    """It gave no answer."""


def _ask(config: VerifyConfig) -> _Answer:
    try:
        nvml = gpu.Nvml(answer_s=ANSWER_S)
    except gpu.NvmlUnavailable as error:
        return _Answer(problem=str(error), hangs=isinstance(error, gpu.NvmlHangs))
    gpus = chosen(nvml.gpus(), config)
    planned = config.inputs.gpus
    answer = _Answer(tuple(as_planned(one, planned) for one in gpus), nvml.cuda())
    nvml.close()
    return answer


def _other_gpus(config: VerifyConfig, answer: _Answer) -> str:
    """How the GPUs differ from those of the last deploy; "": they don't, or they can't be asked."""
    planned, now = config.inputs.gpus, answer.gpus
    if answer.problem or sorted(now) == sorted(planned):
        return ""
    return f"the GPUs changed: found {', '.join(now) or 'none'}; expected {', '.join(planned)}"


def _hindrance(config: VerifyConfig, answer: _Answer) -> str:
    """Why a verification would be in vain; "": nothing is known to stand in its way."""
    if answer.problem:
        return f"it does not answer: {answer.problem}"
    cuda = answer.cuda
    if cuda and config.toolkit and _numbers(config.toolkit) > _numbers(cuda):
        return (
            f"it runs CUDA up to {cuda}, and the build's toolkit is {config.toolkit}: "
            "a new run is needed, for another toolkit and build"
        )
    return ""


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split("."))


def _stale(path: Path, was: str, now: str | None, reason: str, advice: str) -> int:
    """Say why there is no verdict, in stale.json and in the journal."""
    # Once for each reason: a verification that runs takes another text for another driver.
    if (read_json(path) or {}).get("reason") != reason:
        data = {"at": time.time(), "was": was, "now": now, "reason": reason, "next": advice}
        write_json(path, data)
    print(f"{reason}; the last verdict does not count; next: {advice}")
    return EXIT_STALE
