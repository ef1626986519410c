"""Installing with the package manager, and a CUDA Toolkit from packages.

Nothing of the driver may come, change or go with it. A repository of ours is limited to the
toolkit's own packages; and the package manager is asked first what it would do.
"""

from __future__ import annotations

import os
import pwd
import re
from collections.abc import Callable, Iterable
from pathlib import Path

from llamafleet.onhost.download import Network
from llamafleet.onhost.environment import environment
from llamafleet.onhost.job import STOPPER, Job, JobFailed
from llamafleet.onhost.toolkit import repository as repositories
from llamafleet.onhost.toolkit.changes import Changes, refuse, unknown
from llamafleet.onhost.toolkit.managers import MANAGERS, Apt, PackageManager
from llamafleet.protocol.job import (
    INSTALL,
    ManagerConfig,
    PackagesConfig,
    RepositoryConfig,
    ToolkitProduct,
)

CERTIFICATES = Path("/etc/ssl/certs/ca-certificates.crt")


def manager_of(job: Job, config: ManagerConfig, tmp: Path) -> PackageManager:
    """The package manager, asked in a clean environment."""
    asking = {
        "DEBIAN_FRONTEND": "noninteractive",
        # It would restart services, or ask.
        "NEEDRESTART_SUSPEND": "1",
        # Root's own, as packages' scripts know it; some rpm keep their database there.
        "HOME": pwd.getpwuid(os.geteuid()).pw_dir,
    }
    env = environment(config, asking, Path("/usr"), tmp)
    # Programs of other users take part, as apt's _apt, who can't write there.
    del env["TMPDIR"]
    return MANAGERS[config.manager](job, env)


def toolkit(job: Job, config: PackagesConfig, tmp: Path) -> ToolkitProduct:
    """Install a toolkit's packages. Raises JobFailed."""
    manager = manager_of(job, config, tmp)

    def set_up() -> None:
        if config.repository:
            _set_up(job, config, config.repository, manager)

    with repositories.taken_back(config.repository):
        changes = judged(job, config, manager, "or set toolkit_method = 'runfile'", set_up)
    keys = _keys(manager)
    try:
        found = install(job, config, manager, changes)
    finally:
        _remember(config.record, _keys(manager) - keys)
    return ToolkitProduct(packages=found)


def judged(
    job: Job,
    config: ManagerConfig,
    manager: PackageManager,
    otherwise: str,
    set_up: Callable[[], None] = lambda: None,
) -> Changes:
    """What the installation would do, where nothing speaks against it. Raises JobFailed.

    `set_up`: adds a repository; `otherwise`: what else a person may do.
    """
    job.phase("index")
    manager.refresh()
    set_up()
    job.phase("simulate")
    changes = manager.simulate(config.packages)
    refuse(changes, config.packages, f"read {job.log_path} on the host, {otherwise}")
    missing = unknown(changes, config.packages, manager.versions(config.packages))
    if missing:
        raise manager.lacking(missing)
    return changes


def install(
    job: Job, config: ManagerConfig, manager: PackageManager, changes: Changes
) -> tuple[str, ...]:
    """Run the package manager to its end, whoever asks the job to stop; names and versions.

    Ended halfway it would leave packages that only a person sets right. Raises JobFailed, also
    where the manager says that all is well and what was wanted is not there.
    """
    job.phase(INSTALL)
    # Before: what was installed when the host went down must be known too.
    _remember(config.record, set(config.packages) & set(changes.new))
    with STOPPER.hold():
        manager.install(config.packages)
    there = manager.versions(config.packages)
    missing = [name for name in config.packages if name not in there]
    if missing:
        raise JobFailed(
            f"{config.manager} ended well: found no installed package {' '.join(missing)}; "
            f"expected it; next: read {job.log_path} on the host, then {manager.by_hand(missing)}"
        )
    return tuple(f"{name} {there[name]}".strip() for name in config.packages)


def _set_up(
    job: Job, config: PackagesConfig, repository: RepositoryConfig, manager: PackageManager
) -> None:
    """Add the repository; with apt, read its index too. Raises JobFailed where a pin misses it."""
    job.phase("repository")
    network = Network.of(config)
    if not isinstance(manager, Apt):
        # Without skip_if_unavailable a repository that fails ends every command of dnf.
        repositories.set_up(job, repository, network)
        return
    if repository.url.startswith("https:") and not CERTIFICATES.exists():
        manager.install(["ca-certificates"])
    network = repositories.with_proxies_of_apt(network, manager.asked("apt-config", "dump"))
    repositories.set_up(job, repository, network)
    manager.update_from(repository.source)
    refuse_unpinned("\n".join(manager.asked("apt-cache", "policy")), repository.url)


def refuse_unpinned(policy: str, url: str) -> None:
    """Raise JobFailed unless apt gives nothing of `url` unasked; `policy`: of apt-cache policy."""
    rows = re.findall(r"^ *(-?[0-9]{1,9}) (\S+)", policy, re.MULTILINE)
    priorities = [int(priority) for priority, source in rows if source.startswith(url.rstrip("/"))]
    if priorities and max(priorities) < 0:
        return
    found = f"priority {max(priorities)}" if priorities else "no packages"
    raise JobFailed(
        f"{url}: found {found} in `apt-cache policy`; expected a negative one, by the pin on the "
        "label 'NVIDIA CUDA' in /etc/apt/preferences.d/; next: serve a mirror with the label of "
        "NVIDIA's own Release file"
    )


def _remember(record: str, names: Iterable[str]) -> None:
    """Note what llamafleet installed, for whoever uninstalls it."""
    lines = "".join(f"{name}\n" for name in sorted(names))
    if not lines:
        return
    flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW | os.O_CLOEXEC
    with os.fdopen(os.open(record, flags, 0o644), "a", encoding="utf-8") as file:
        file.write(lines)
        file.flush()
        os.fsync(file.fileno())


def _keys(manager: PackageManager) -> set[str]:
    """Keys that rpm trusts. It keeps each as a package, and dnf adds the repository's."""
    return set() if isinstance(manager, Apt) else set(manager.asked("rpm", "-qa", "gpg-pubkey*"))
