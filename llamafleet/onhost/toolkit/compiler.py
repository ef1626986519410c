"""The packages job: what a source build needs of the distribution, a C++ compiler above all."""

from __future__ import annotations

import shutil
from pathlib import Path

from llamafleet.onhost.job import Job, JobFailed
from llamafleet.onhost.toolkit import packages
from llamafleet.onhost.toolkit.account import Account, bench
from llamafleet.protocol.job import CHECK, PATH, CompilerConfig, PackagesProduct
from llamafleet.protocol.managers import MANAGERS

ANSWER_S = 60.0
"""For a compiler to tell its version."""


def done(config: CompilerConfig) -> bool:
    """Never: to ask again costs nothing, and what was there may have gone."""
    return False


def work(job: Job, config: CompilerConfig) -> PackagesProduct:
    """Install, and see that a compiler runs. Raises JobFailed."""
    account = Account.named(config.account)
    tmp = job.folder / "tmp"
    shutil.rmtree(tmp, ignore_errors=True)
    tmp.mkdir()
    try:
        manager = packages.manager_of(job, config, tmp)
        changes = packages.judged(job, config, manager, f"or {manager.by_hand(config.packages)}")
        found = packages.install(job, config, manager, changes)
        check(job, config, account, tmp)
        return PackagesProduct(packages=found)
    finally:
        shutil.rmtree(tmp, ignore_errors=True)


def check(job: Job, config: CompilerConfig, account: Account, tmp: Path) -> None:
    """One of the compilers tells its version, to the account that will build with it."""
    job.phase(CHECK)
    failed: list[str] = []
    with bench(job, account, tmp) as tried:
        for name in config.compilers:
            path = shutil.which(name, path=PATH)
            if path is None:
                failed.append(f"{name}: not there")
                continue
            try:
                tried.run([path, "--version"], tried.environment(), ANSWER_S)
            except JobFailed as error:
                failed.append(str(error))
            else:
                return
    by_hand = MANAGERS[config.manager].install_by_hand(*config.packages)
    raise JobFailed(
        f"compiler: found {'; '.join(failed) or 'none'}; expected one that runs, of the packages "
        f"{' '.join(config.packages)}, which are installed; next: on the host, {by_hand}"
    )
