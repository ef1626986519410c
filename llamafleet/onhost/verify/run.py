"""Prove on the host that a build works on its GPUs, and measure it.

Evidence counts, not exit codes: every check says what was found and what was expected, and a
control run on the CPU must turn the offload check red. llama.cpp runs in child processes only, so
that a broken library, an abort or a hang is a red check and there is always a result.

`verify --config FILE`: exit 0 for PASS, CPU ONLY, and BUSY where the settings allow it; 1 for FAIL
and any other BUSY, 2 for a bad configuration or the wrong account, 75 where another verification
runs.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from llamafleet.onhost.job import EXIT_BUSY, JobFailed, locked, make_folder
from llamafleet.onhost.rights import root_problem
from llamafleet.onhost.verify import metrics
from llamafleet.onhost.verify.evidence import Faults
from llamafleet.onhost.verify.session import Verification
from llamafleet.protocol.job import (
    LOCK,
    STAMP,
    Stamp,
    machine_id,
    read_json,
    write_json,
    write_stamp,
)
from llamafleet.protocol.result import Result
from llamafleet.protocol.verify import LATEST, PROM, ConfigError, VerifyConfig, load

EXIT_OK, EXIT_FAIL, EXIT_CONFIG = 0, 1, 2


def main(argv: Sequence[str] | None = None) -> int:
    """Run one verification; the exit status is in the module's docstring."""
    parser = argparse.ArgumentParser(prog="verify", description=__doc__.splitlines()[0])
    parser.add_argument("--config", type=Path, required=True, metavar="FILE")
    faults = parser.add_argument_group("planted faults, to see a check go red")
    faults.add_argument("--n-gpu-layers", default="", metavar="N|half", type=_layers)
    faults.add_argument(
        "--abort-in", default="", choices=["generate", "logits", "control", "context", "bench"]
    )
    options = parser.parse_args(argv)
    try:
        config = load(options.config)
    except ConfigError as error:
        _forget_latest(options.config)
        print(error, file=sys.stderr)
        return EXIT_CONFIG
    if problem := root_problem(config, "verify"):
        print(problem, file=sys.stderr)
        return EXIT_CONFIG
    return verify(config, Faults(options.n_gpu_layers, options.abort_in))


def verify(config: VerifyConfig, faults: Faults) -> int:
    """Verify unless another verification runs on this host: two would measure each other."""
    os.umask(0o022)
    job = Path(config.job)
    try:
        make_folder(job)
        with locked(job / LOCK, f"verify {config.inputs.fingerprint}") as holder:
            if not holder:
                return _verify(config, faults)
    except (JobFailed, OSError) as error:
        print(f"no place for the verification: {error}; next: deploy again", file=sys.stderr)
        return EXIT_CONFIG
    print(
        f"verify: found another verification on this host ({holder}); expected one at a time; "
        "next: run the same command again when it has ended",
        file=sys.stderr,
    )
    return EXIT_BUSY


def _verify(config: VerifyConfig, faults: Faults) -> int:
    """Verify, write the result, print it. An old latest.json is gone before anything is done."""
    latest, stale, stamp = config.latest, config.stale, Path(config.job, STAMP)
    reported = read_json(stale)
    try:
        for file in (latest, stamp):
            file.parent.mkdir(parents=True, exist_ok=True)
            file.unlink(missing_ok=True)
    except OSError as error:
        print(f"no place for the result: {error}; deploy makes the folders", file=sys.stderr)
        return EXIT_CONFIG
    metrics.keep(config, None)
    run = Verification(config, faults)
    try:
        run.run()
    finally:
        run.progress.phase("result")
        run.close()
        result = run.result()
        name = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime(run.started))
        file = Path(config.results, f"{name}-{result.fingerprint}.json")
        write_json(file, asdict(result))
        # A driver that changed meanwhile has been reported: this verdict is not on that one.
        if read_json(stale) in (reported, None):
            write_json(latest, asdict(result))
            stale.unlink(missing_ok=True)
            metrics.keep(config, result)
    ok = result.good
    ended = Stamp(
        kind="verify",
        key=result.key,
        ok=ok,
        started=result.started,
        finished=result.finished,
        inputs=asdict(result.inputs),
        machine_id=machine_id(),
    )
    write_stamp(Path(config.job), ended, None)
    print(f"{result.verdict}{_of_gpus(result)}: {config.host}, result in {file}", flush=True)
    return EXIT_OK if ok else EXIT_FAIL


def _of_gpus(result: Result) -> str:
    """As " (1 of 2 GPUs)" where the settings leave one out."""
    count = len(result.gpus)
    return f" ({count} of {count + len(result.left_out)} GPUs)" if result.left_out else ""


def _forget_latest(path: Path) -> None:
    """With a bad configuration too, no old verdict may be taken for today's."""
    data = read_json(path) or {}
    results = data.get("results")
    if isinstance(results, str) and results.startswith("/") and _owned(Path(results)):
        Path(results, LATEST).unlink(missing_ok=True)
        Path(results, PROM).unlink(missing_ok=True)


def _owned(folder: Path) -> bool:
    """A folder of this very account: root follows nothing through that of another one."""
    try:
        return folder.stat().st_uid == os.geteuid()
    except OSError:
        return False


def _layers(text: str) -> str:
    """Argument type: a whole number or half."""
    if text in {"", "half"} or text.isdigit():
        return text
    raise argparse.ArgumentTypeError(f"found {text!r}, expected a number or half")
