"""pip as a job runs it: hashes required, from one folder or one index."""

from __future__ import annotations

import contextlib
import re
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

from llamafleet.onhost.job import Job, JobFailed
from llamafleet.protocol.job import PipConfig

AnyPip = TypeVar("AnyPip", bound=PipConfig)

HASHES = "--require-hashes"
WHEELS_ONLY = ("--progress-bar=off", "--only-binary", ":all:")
AS_SOURCE = "--no-compile"
"""For pip: byte code is made by other means."""
NO_FILE = "No matching distribution found for "
NOT_FETCHED = re.compile(r"Could not fetch URL .* Error|HTTP error \d")
FROM_SOURCE = (
    "--progress-bar=off",
    "--no-build-isolation",
    "--no-binary",
    "llama-cpp-python",
    "--no-deps",
)


def own_pip(config: AnyPip, tmp: Path) -> AnyPip:
    """The same with a pip of this job alone: the host's may be replaced while it runs."""
    return replace(config, pip=unpacked(config.pip, tmp / "pip"))


def unpacked(pip: str, folder: Path) -> str:
    """`folder`, with what is in the archive `pip`: of that, Python compiles all modules anew at
    each start. Raises JobFailed, and OSError of a full disk."""
    try:
        with zipfile.ZipFile(pip) as archive:
            archive.extractall(folder)
    except zipfile.BadZipFile as error:
        raise JobFailed(
            f"{pip}: found no archive that can be unpacked ({error}); expected pip's; "
            "next: run the same command again"
        ) from error
    return str(folder)


def pip_run(
    job: Job,
    argv: Sequence[str],
    env: dict[str, str],
    on_line: Callable[[str], object] = lambda line: None,
    keep: Callable[[str], bool] = lambda line: True,
) -> None:
    """Run a pip of `pip_install`; where it finds no file, also why the index gave none.

    Raises JobFailed, the cause then being in the log.
    """
    missing = False

    def follow(line: str) -> None:
        nonlocal missing
        missing = missing or NO_FILE in line
        on_line(line)

    try:
        job.command(argv, env=env, on_line=follow, keep=keep)
    except JobFailed:
        if missing:
            # pip says an HTTP status only here, among thousands of lines.
            with contextlib.suppress(JobFailed):
                job.command(
                    [*argv, "-vv", "--retries", "0", "--dry-run"], env=env, keep=NOT_FETCHED.search
                )
        raise


def pip_install(config: PipConfig, python: str) -> list[str]:
    """`pip install` with hashes required, from one folder alone or from its environment's index.

    To be run in the job's `environment`.
    """
    argv = [python, "-I", config.pip, "--disable-pip-version-check", "--no-input", "install"]
    argv += ["--no-cache-dir", HASHES]
    if config.find_links:
        argv += ["--no-index", "--find-links", config.find_links]
    return argv
