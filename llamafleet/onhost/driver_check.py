"""Is the loaded driver still the one that the last deploy planned for?

A driver update changes what a verdict and a benchmark say. This runs at each boot: with another
driver, or none, the last verdict is removed and stale.json says why, until a deploy verifies again.

`driver-check --config FILE`: exit 0 when the check itself worked, whatever it found, 2 for a bad
configuration or results that can't be written; with --exit-stale, 3 where the verdict is stale.
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from llamafleet.onhost import verify_config
from llamafleet.onhost.job import write_json
from llamafleet.onhost.verify_config import Config, ConfigError

EXIT_OK, EXIT_CONFIG, EXIT_STALE = 0, 2, 3
STALE = "stale.json"
SMI_LIMIT_S = 10.0
NEXT = "on the controller, pyinfra -y inventory deploy.py"

# 535.261.03 in "NVRM version: NVIDIA UNIX x86_64 Kernel Module  535.261.03  Tue Jun  3 ...".
_VERSION = re.compile(r"(?<![\w.])\d+\.\d+(?:\.\d+)?(?![\w.])")


def main(argv: Sequence[str] | None = None) -> int:
    """Run one check; the exit status is in the module's docstring."""
    parser = argparse.ArgumentParser(prog="driver-check", description=__doc__.splitlines()[0])
    parser.add_argument("--config", type=Path, required=True, metavar="FILE")
    parser.add_argument("--exit-stale", action="store_true", help="exit 3 where it is stale")
    options = parser.parse_args(argv)
    try:
        config = verify_config.load(options.config)
        was = _planned(options.config, config)
    except ConfigError as error:
        print(f"{options.config}: {'; '.join(error.errors)}; next: {NEXT}", file=sys.stderr)
        return EXIT_CONFIG
    if was is None:
        print("no driver is planned for (CPU backend): nothing to check")
        return EXIT_OK
    try:
        fresh = _check(config, was)
    except OSError as error:
        print(
            f"{config.results}: found no folder to write to ({error}); expected the one that "
            f"deploy makes; next: {NEXT}",
            file=sys.stderr,
        )
        return EXIT_CONFIG
    return EXIT_STALE if options.exit_stale and not fresh else EXIT_OK


def loaded_driver(root: Path) -> tuple[str | None, str]:
    """(version of the driver that is loaded, where it was read); (None, why there is none)."""
    modules = (root / "sys/module/nvidia/version", root / "proc/driver/nvidia/version")
    for file in modules:
        try:
            match = _VERSION.search(file.read_text(encoding="utf-8", errors="replace"))
        except OSError:
            continue
        if match:
            return match[0], str(file)
    version, why = _ask_smi(float(os.environ.get("LLAMAFLEET_SMI_LIMIT") or SMI_LIMIT_S))
    if version:
        return version, "nvidia-smi"
    return None, f"no {' and no '.join(map(str, modules))}, and {why}"


def _planned(path: Path, config: Config) -> str | None:
    """The driver of the last deploy; None for the CPU backend."""
    driver = config.inputs.get("driver", "")
    if driver is None or (isinstance(driver, str) and _VERSION.fullmatch(driver)):
        return driver
    found = repr(driver) if driver else "nothing"
    raise ConfigError(path, [f"inputs.driver: found {found}, expected a version or null"])


def _check(config: Config, was: str) -> bool:
    """Whether the driver is the planned one; if not, the last verdict goes. Raises OSError."""
    stale = config.results / STALE
    now, source = loaded_driver(Path(os.environ.get("LLAMAFLEET_ROOT") or "/"))
    if now == was:
        stale.unlink(missing_ok=True)
        print(f"driver {was} is the one that was planned for ({source})")
        return True
    # First, so that nothing that follows can leave an old verdict in place.
    (config.results / "latest.json").unlink(missing_ok=True)
    reason = (
        f"the driver changed from {was} to {now} ({source})"
        if now
        else f"driver {was} is gone: {source}"
    )
    write_json(stale, {"at": time.time(), "was": was, "now": now, "reason": reason})
    print(f"{reason}; the last verdict was removed; next: {NEXT}")
    return False


def _ask_smi(limit_s: float) -> tuple[str | None, str]:
    """(the driver's version, ""); (None, why nvidia-smi does not tell it)."""
    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace"
        )
    except OSError as error:
        return None, f"nvidia-smi does not start ({error.strerror})"
    try:
        output, _ = process.communicate(timeout=limit_s)
    except subprocess.TimeoutExpired:
        # Not waited for: a process that hangs in the driver does not die before the driver lets go.
        process.kill()
        return None, f"nvidia-smi did not answer within {limit_s:g} s"
    # One line per GPU, all with the same version.
    first = output.strip().split("\n")[0].strip()
    if process.returncode == 0 and _VERSION.fullmatch(first):
        return first, ""
    return None, f"nvidia-smi ended with {process.returncode} and {first!r}"
