"""The libraries job: the server's own Python packages in a folder of their own.

Beside a build and not in it: a build's environment is what was verified.
"""

from __future__ import annotations

import shutil
from dataclasses import asdict
from pathlib import Path

from llamafleet.onhost.build import sync_file_system
from llamafleet.onhost.environment import environment
from llamafleet.onhost.job import Job
from llamafleet.onhost.pip import WHEELS_ONLY, own_pip, pip_install, pip_run
from llamafleet.protocol.job import (
    WHOLE,
    LibrariesConfig,
    LibrariesProduct,
    read_json,
    sync_folder,
    write_json,
)

PARTIAL = ".partial"
"""Behind the name of a folder that is being filled."""


def done(config: LibrariesConfig) -> bool:
    return whole(Path(config.root))


def whole(folder: Path) -> bool:
    """All is there that was to be installed into it."""
    return read_json(folder / WHOLE) is not None


def work(job: Job, config: LibrariesConfig) -> LibrariesProduct:
    """Install them beside, and put them in place at once. Raises JobFailed."""
    root, tmp = Path(config.root), job.folder / "tmp"
    partial = root.with_name(root.name + PARTIAL)
    for left in (tmp, partial):
        shutil.rmtree(left, ignore_errors=True)
    tmp.mkdir()
    try:
        _install(job, config, partial, tmp)
        product = LibrariesProduct(packages=packages(partial))
        sync_file_system(partial)
        write_json(partial / WHOLE, asdict(product))
        shutil.rmtree(root, ignore_errors=True)
        partial.rename(root)
        sync_folder(root.parent)
        return product
    finally:
        shutil.rmtree(tmp, ignore_errors=True)
        shutil.rmtree(partial, ignore_errors=True)


def _install(job: Job, config: LibrariesConfig, partial: Path, tmp: Path) -> None:
    job.phase("install")
    requirements = job.folder / "requirements.txt"
    requirements.write_text(config.requirements, encoding="utf-8")
    pip = pip_install(own_pip(config, tmp), config.python)
    wanted = [*WHEELS_ONLY, "--no-deps", "--target", str(partial), "-r", str(requirements)]
    pip_run(job, [*pip, *wanted], environment(config, {}, tmp, tmp))


def packages(folder: Path) -> tuple[str, ...]:
    """Names and versions of what pip installed there."""
    suffix = ".dist-info"
    return tuple(sorted(path.name.removesuffix(suffix) for path in folder.glob(f"*{suffix}")))
