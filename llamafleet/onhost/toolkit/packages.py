"""A CUDA Toolkit from packages: of NVIDIA's repository, or of the distribution itself.

Nothing of the driver may come, change or go with it. The repository is limited to the toolkit's own
packages; and the package manager is asked first what it would do.
"""

from __future__ import annotations

import contextlib
import json
import pkgutil
import re
import subprocess
import urllib.request
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from llamafleet.onhost.job import STOPPER, Job, JobFailed
from llamafleet.onhost.toolkit.openpgp import fingerprints
from llamafleet.protocol import managers
from llamafleet.protocol.job import INSTALL, PackagesConfig, RepositoryConfig, ToolkitProduct

APT = (managers.APT.program, "-y", *managers.WAIT_FOR_LOCK)
APT_INSTALL = ("--no-install-recommends", "--no-remove", "install")
DNF = (managers.DNF.program, "--setopt=install_weak_deps=False")

REFUSED = "refused-packages.json"
"""Name of the rule in the zipapp, beside this module; made from tables/driver-packages.yaml."""

ERROR = re.compile(r"E: |Err:|Error: ")
"""How apt and dnf begin what is wrong."""

CERTIFICATES = Path("/etc/ssl/certs/ca-certificates.crt")
KEY_LIMIT = 1 << 20
TIMEOUT_S = 60


@dataclass(frozen=True)
class Changes:
    """What a package manager says it would do."""

    new: tuple[str, ...] = ()
    replaced: tuple[str, ...] = ()
    """Upgraded or downgraded."""
    removed: tuple[str, ...] = ()


def apt(job: Job, config: PackagesConfig, env: dict[str, str]) -> ToolkitProduct:
    """Install with apt. Raises JobFailed."""
    # needrestart would restart services, or ask.
    env = env | {"DEBIAN_FRONTEND": "noninteractive", "NEEDRESTART_SUSPEND": "1"}
    packages, repository = config.packages, config.repository
    job.phase("index")
    # A broken source of somebody else's must not stand in the way; what is missing shows below.
    _tried(job, [*APT, "update"], env)
    # Left behind, a source that fails stands in the way of each later update.
    with _taken_back(repository):
        if repository:
            job.phase("repository")
            _apt_repository(job, repository, env)
        job.phase("simulate")
        changes = apt_changes(_command(job, [*APT, "--simulate", *APT_INSTALL, *packages], env))
        refuse(changes)
    _install(job, config, [*APT, *APT_INSTALL, *packages], env, changes)
    query = ["dpkg-query", "-W", "-f=${Package} ${Version}\n", *packages]
    return ToolkitProduct(packages=tuple(_output(query, env).splitlines()))


def dnf(job: Job, config: PackagesConfig, env: dict[str, str]) -> ToolkitProduct:
    """Install with dnf. Raises JobFailed."""
    packages, repository = config.packages, config.repository
    # Without skip_if_unavailable a repository that does not answer ends every command of dnf.
    with _taken_back(repository):
        if repository:
            job.phase("repository")
            _install_repository(job, repository, lambda: _download(repository.key_url))
        job.phase("simulate")
        changes = _dnf_simulated(job, packages, env)
        refuse(changes)
    keys = _keys(env)
    try:
        _install(job, config, [*DNF, "-y", "install", *packages], env, changes)
    finally:
        _remember(config, _keys(env) - keys)
    query = ["rpm", "-q", "--qf", "%{NAME} %{VERSION}\n", *packages]
    return ToolkitProduct(packages=tuple(_output(query, env).splitlines()))


def _apt_repository(job: Job, repository: RepositoryConfig, env: dict[str, str]) -> None:
    """Set the repository up and read its index. Raises JobFailed where the pin misses it."""
    if repository.url.startswith("https:") and not CERTIFICATES.exists():
        _command(job, [*APT, *APT_INSTALL, "ca-certificates"], env)
    target = job.folder / "tmp" / "key"
    helper = ["/usr/lib/apt/apt-helper", "download-file", repository.key_url, str(target)]
    _install_repository(job, repository, lambda: _download_by(job, helper, env, target))
    ours = ["-o", f"Dir::Etc::sourcelist={repository.source}"]
    ours += ["-o", "Dir::Etc::sourceparts=-", "-o", "APT::Get::List-Cleanup=0"]
    _command(job, [*APT, *ours, "update"], env)
    refuse_unpinned(_output(["apt-cache", "policy"], env), repository.url)


def _dnf_simulated(job: Job, packages: Sequence[str], env: dict[str, str]) -> Changes:
    """What dnf would do. Raises JobFailed where that is nothing, for want of a package."""
    # It ends with 1 also where all is well, since nobody said yes.
    said = _tried(job, [*DNF, "--assumeno", "install", *packages], env)
    changes = dnf_changes(said)
    if not changes.new and "Nothing to do." not in said:
        first = next((n for n, line in enumerate(said) if ERROR.match(line)), 0)
        found = " ".join(" ".join(said[first:]).split()) or "no answer"
        raise JobFailed(
            f"dnf would install nothing: found {found}; expected {' '.join(packages)}; "
            f"next: dnf info {packages[0]} on the host"
        )
    return changes


def apt_changes(lines: Iterable[str]) -> Changes:
    """Of `apt-get --simulate`: lines as "Inst name [old] (new ...)" and "Remv name [old]"."""
    new, replaced, removed = [], [], []
    for line in lines:
        found = re.match(r"(Inst|Remv) (\S+?)(?::\S+)?( \[)?(?: |$)", line)
        if not found:
            continue
        if found[1] == "Remv":
            removed.append(found[2])
        elif re.match(r"Inst \S+ \[", line):
            replaced.append(found[2])
        else:
            new.append(found[2])
    return Changes(tuple(new), tuple(replaced), tuple(removed))


def dnf_changes(lines: Iterable[str]) -> Changes:
    """Of dnf's table of a transaction: a heading, then lines that begin with a blank and a name.

    What does not fit beside a long name follows on a line of more blanks.
    """
    found: dict[str, list[str]] = {"new": [], "replaced": [], "removed": []}
    kind = None
    for line in lines:
        if heading := re.match(r"(\w+)[\w ]*:\s*$", line):
            kind = {
                "Installing": "new",
                "Upgrading": "replaced",
                "Downgrading": "replaced",
                "Reinstalling": "replaced",
                "Removing": "removed",
            }.get(heading[1])
        elif kind and (row := re.match(r" (\S+)", line)):
            found[kind].append(row[1])
        elif kind and (row := re.match(r" +replacing +([^ .]+)", line)):
            found["replaced"].append(row[1])
        elif line.startswith("Transaction Summary"):
            kind = None
    return Changes(**{name: tuple(names) for name, names in found.items()})


@cache
def refused() -> re.Pattern[str]:
    """What matches, whole, the names of packages that must not come or change.

    Raises JobFailed where the zipapp came without it: unguarded, nothing is installed.
    """
    try:
        data = pkgutil.get_data(__package__, REFUSED)
    except OSError:
        data = None
    if not data:
        raise JobFailed(
            f"found no {REFUSED} beside {__name__}; expected the names of the driver's packages, "
            "which no install may touch; next: run this from llamafleet's zipapp"
        )
    return re.compile(json.loads(data))


def refuse(changes: Changes) -> None:
    """Raise JobFailed where a package would go, or one of the driver would come or change."""
    touched = [name for name in (*changes.new, *changes.replaced) if refused().fullmatch(name)]
    found = [f"install or replace {' '.join(touched)}"] if touched else []
    found += [f"remove {' '.join(changes.removed)}"] if changes.removed else []
    if found:
        raise JobFailed(
            f"found that it would {' and '.join(found)}; expected the toolkit alone, without a "
            "change to the driver; next: read the log, or set toolkit_method = 'runfile'"
        )


def refuse_unpinned(policy: str, url: str) -> None:
    """Raise JobFailed unless apt gives nothing of `url` unasked; `policy`: of apt-cache policy."""
    rows = re.findall(r"^ *(-?\d+) (\S+)", policy, re.MULTILINE)
    priorities = [int(priority) for priority, source in rows if source.startswith(url.rstrip("/"))]
    if priorities and max(priorities) < 0:
        return
    found = f"priority {max(priorities)}" if priorities else "no packages"
    raise JobFailed(
        f"{url}: found {found} in `apt-cache policy`; expected a negative one, by the pin on the "
        "label 'NVIDIA CUDA' in /etc/apt/preferences.d/; next: serve a mirror with the label of "
        "NVIDIA's own Release file"
    )


def _install_repository(
    job: Job, repository: RepositoryConfig, download: Callable[[], bytes]
) -> None:
    """Write the key, once it is proven to be the one that is pinned, then the files."""
    wanted = repository.fingerprint
    key = repository.key.encode() if repository.key else download()
    try:
        found = fingerprints(key)
    except ValueError as error:
        found = [str(error)]
    if not repository.key and found != [wanted]:
        raise JobFailed(
            f"key of {repository.url}: found {', '.join(found)}; expected {wanted} and no "
            "other; next: do not trust this mirror, or set toolkit_key to the key it signs with"
        )
    job.log(f"key {', '.join(found)}")
    files = {path: text.encode() for path, text in repository.files.items()}
    for path, content in {repository.keyring: key, **files}.items():
        target = Path(path)
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(content)
        target.chmod(0o644)


@contextlib.contextmanager
def _taken_back(repository: RepositoryConfig | None) -> Iterator[None]:
    """Remove the repository's files where the job fails or is stopped within."""
    try:
        yield
    except BaseException:
        for path in (repository.keyring, *repository.files) if repository else ():
            Path(path).unlink(missing_ok=True)
        raise


def _download(url: str) -> bytes:
    try:
        with urllib.request.urlopen(url, timeout=TIMEOUT_S) as answer:
            return bytes(answer.read(KEY_LIMIT))
    except OSError as error:
        raise JobFailed(
            f"{url}: found no answer ({error}); expected the repository's key; next: curl -I {url} "
            "on the host, or set toolkit_url to a mirror"
        ) from error


def _download_by(job: Job, argv: Sequence[str], env: dict[str, str], target: Path) -> bytes:
    """By apt's own downloader, which knows the proxy of apt's configuration."""
    _command(job, argv, env)
    return target.read_bytes()[:KEY_LIMIT]


def _command(job: Job, argv: Sequence[str], env: dict[str, str]) -> list[str]:
    """Run a package manager; its output. Raises JobFailed with its own words for what is wrong."""
    lines: list[str] = []

    def follow(line: str) -> None:
        lines.append(line)
        job.progress.step(0, 0, line.strip())

    try:
        job.command(argv, env=env, on_line=follow)
    except JobFailed as error:
        wrong = [line for line in lines if ERROR.match(line)]
        raise JobFailed(
            f"{error}: found {' '.join(wrong) or 'no word of an error'}; expected status 0; "
            f"next: on the host, {' '.join(argv)}"
        ) from error
    return lines


def _tried(job: Job, argv: Sequence[str], env: dict[str, str]) -> list[str]:
    """Output of a command whose status does not decide."""
    lines: list[str] = []
    try:
        job.command(argv, env=env, on_line=lines.append)
    except JobFailed as error:
        job.log(str(error))
    return lines


def _install(
    job: Job, config: PackagesConfig, argv: Sequence[str], env: dict[str, str], changes: Changes
) -> None:
    """Run the package manager to its end, whoever asks the job to stop.

    Ended halfway it would leave packages that only a person sets right.
    """
    job.phase(INSTALL)
    # Before: what was installed when the host went down must be known too.
    _remember(config, set(config.packages) & set(changes.new))
    with STOPPER.hold():
        _command(job, argv, env)


def _remember(config: PackagesConfig, names: Iterable[str]) -> None:
    """Note what llamafleet installed, for whoever uninstalls it."""
    if lines := "".join(f"{name}\n" for name in sorted(names)):
        with Path(config.record).open("a", encoding="utf-8") as record:
            record.write(lines)


def _keys(env: dict[str, str]) -> set[str]:
    """Keys that rpm trusts. It keeps each as a package, and dnf adds the repository's."""
    return set(_output(["rpm", "-qa", "gpg-pubkey*"], env).split())


def _output(argv: Sequence[str], env: dict[str, str]) -> str:
    done = subprocess.run(
        argv, capture_output=True, encoding="utf-8", errors="replace", env=env, check=False
    )
    return done.stdout
