"""The packages job with a package manager that answers as a host's did."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest

from llamafleet.onhost.job import Job, JobFailed
from llamafleet.onhost.toolkit import changes, compiler, managers
from llamafleet.protocol.job import CompilerConfig, PackagesInputs
from llamafleet.tables import driver_packages
from tests.onhost.toolkit.fake_manager import DPKG_QUERY, Programs, apt

HELD = (
    "E: Could not get lock /var/lib/apt/lists/lock. It is held by process 812 (unattended-upgr)\\n"
    "E: Unable to lock directory /var/lib/apt/lists/"
)
ROOT = os.geteuid() == 0


@pytest.fixture(autouse=True)
def rule(monkeypatch: pytest.MonkeyPatch) -> None:
    pattern = re.compile(driver_packages.expression("refused"))
    monkeypatch.setattr(changes, "refused", lambda: pattern)
    monkeypatch.setattr(managers, "RETRY_S", 0.05)
    monkeypatch.setattr(managers, "LOCK_S", 0.5)


@pytest.fixture
def host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Programs:
    made = Programs(tmp_path)
    made.add("apt-get", apt())
    made.add("dpkg-query", DPKG_QUERY)
    made.add("apt-cache", "echo g++-12; echo g++")
    made.use(monkeypatch)
    return made


def config(tmp_path: Path, **other: object) -> CompilerConfig:
    told: dict[str, object] = {
        "key": "gxx",
        "inputs": PackagesInputs(packages=("g++",)),
        "manager": "apt",
        "packages": ("g++",),
        "record": str(tmp_path / "record"),
        "account": "nobody" if ROOT else None,
        "compilers": ("g++",),
    }
    return CompilerConfig(**told | other)  # type: ignore[arg-type]


def run(tmp_path: Path, **other: object) -> str:
    """What it installed, or why it failed."""
    folder = tmp_path / "job"
    folder.mkdir(exist_ok=True)
    tmp_path.chmod(0o755)
    try:
        made = compiler.work(Job("packages", folder, "gxx"), config(tmp_path, **other))
        return " ".join(made.packages)
    except JobFailed as error:
        return str(error)


@pytest.fixture(autouse=True)
def open_folders(tmp_path: Path) -> None:
    """The account that tries reaches them, as it does below /opt."""
    for folder in [tmp_path, *tmp_path.parents]:
        if str(folder).startswith("/tmp/") and folder.stat().st_uid == os.geteuid():
            folder.chmod(0o755)


def test_a_compiler_is_installed_by_its_exact_name_and_tried(
    host: Programs, tmp_path: Path
) -> None:
    assert run(tmp_path) == "g++ 4:12.2.0-3"
    assert (tmp_path / "record").read_text() == "g++\n"
    installed = next(line for line in host.asked if line.endswith("--no-remove install g++"))
    assert "-o APT::Cmd::Pattern-Only=true" in installed
    assert [line.split()[-1] for line in host.asked if line.startswith("apt-get")] == [
        *("check", "update"),
        *("g++", "g++"),
    ]
    assert (tmp_path / "job/packages.log").read_text().count("--simulate") == 1


def test_a_driver_that_would_come_with_it_is_refused(host: Programs, tmp_path: Path) -> None:
    """As on a host with NVIDIA's repository alone, where the word was a pattern."""
    host.add("apt-get", apt(simulate="echo 'Inst nvidia-driver-580 (580.95 NVIDIA [amd64])'"))
    said = run(tmp_path)
    assert "would install or replace nvidia-driver-580; expected g++ alone" in said, said
    assert not (tmp_path / "installed").exists() and not (tmp_path / "record").exists()


def test_another_package_than_the_wanted_one_is_refused(host: Programs, tmp_path: Path) -> None:
    host.add("apt-get", apt(simulate="echo 'Inst libg++-doc (1 x [amd64])'"))
    assert run(tmp_path).startswith("apt: found no package g++; expected it in the host's repos")
    assert not (tmp_path / "installed").exists()


def test_lists_that_can_t_be_read_are_said_with_the_missing_package(
    host: Programs, tmp_path: Path
) -> None:
    host.add(
        "apt-get",
        apt(
            update="echo 'Err:1 http://deb.debian.org bookworm InRelease'; "
            "echo \"W: Failed to fetch http://deb/ Could not resolve 'deb'\"",
        ),
    )
    host.add("apt-cache", "echo g++-12")
    said = run(tmp_path)
    assert said.startswith("apt: found no package g++ (of its lists: Err:1 "), said
    assert "Could not resolve 'deb'" in said
    assert not (tmp_path / "installed").exists()


def test_success_without_the_package_is_none(host: Programs, tmp_path: Path) -> None:
    host.add("apt-get", apt(install=":"))
    said = run(tmp_path)
    assert said.startswith("apt ended well: found no installed package g++; expected it"), said
    host.add("dpkg-query", "echo 'g++ half-configured 4:12'")
    assert "found no installed package g++" in run(tmp_path)


def test_a_compiler_that_does_not_run_is_none(host: Programs, tmp_path: Path) -> None:
    said = run(tmp_path, compilers=("no-such-g++", "/bin/false"))
    assert "compiler: found no-such-g++: not there; false ended with status 1" in said
    assert "next: on the host, sudo apt install g++" in said


def test_an_interrupted_dpkg_is_said_in_its_own_words(host: Programs, tmp_path: Path) -> None:
    words = "dpkg was interrupted, you must manually run 'dpkg --configure -a' to correct it."
    host.add("apt-get", apt(check=f'echo "E: {words}"; exit 100'))
    said = run(tmp_path)
    assert words in said and said.endswith("next: on the host, sudo dpkg --configure -a")
    assert not any("install" in line for line in host.asked), "found before anything is done"


def test_locked_lists_are_waited_for(host: Programs, tmp_path: Path) -> None:
    first = "[ -e $STATE/seen ] || { touch $STATE/seen; printf '" + HELD + "\\n'; exit 100; }"
    host.add("apt-get", apt(update=first))
    assert run(tmp_path) == "g++ 4:12.2.0-3"
    assert sum(line.endswith(" update") for line in host.asked) == 2


@pytest.mark.parametrize("stage", ["check", "update", "install"])
def test_a_lock_that_stays_names_its_holder(host: Programs, tmp_path: Path, stage: str) -> None:
    host.add("apt-get", apt(**{stage: f"printf '{HELD}\\n'; exit 100"}))
    said = run(tmp_path)
    assert said.startswith("apt: found its lock held by process 812 (unattended-upgr), for "), said
    assert said.count("next: ") == 1


def test_a_lock_that_was_waited_for_is_no_cause(host: Programs, tmp_path: Path) -> None:
    waited = "Waiting for cache lock: Could not get lock /x. It is held by process 8 (y)"
    host.add("apt-get", apt(install=f"echo '{waited}'; echo 'E: No space left on device'; exit 1"))
    said = run(tmp_path)
    assert "E: No space left on device" in said and "held by" not in said
    assert said.endswith("next: on the host, df -h / /var /usr")


def test_what_was_there_is_not_ours(host: Programs, tmp_path: Path) -> None:
    (tmp_path / "installed").touch()
    host.add("apt-get", apt(simulate="echo '0 upgraded, 0 newly installed'"))
    assert run(tmp_path) == "g++ 4:12.2.0-3"
    assert not (tmp_path / "record").exists()


def test_a_record_that_is_a_link_is_not_followed(host: Programs, tmp_path: Path) -> None:
    (tmp_path / "record").symlink_to(tmp_path / "shadow")
    with pytest.raises(OSError):
        run(tmp_path)
    assert not (tmp_path / "shadow").exists() and not (tmp_path / "installed").exists()


def test_pacman_and_apk_and_zypper_are_asked_first(host: Programs, tmp_path: Path) -> None:
    host.add("pacman", 'case "$*" in *--print*) echo nvidia-utils;; -Q*) exit 1;; esac')
    assert "install or replace nvidia-utils" in run(tmp_path, manager="pacman", packages=("gcc",))
    host.add("apk", 'case "$*" in *--simulate*) echo "(1/1) Purging nvidia-utils (1)";; esac')
    assert "would remove nvidia-utils" in run(tmp_path, manager="apk", packages=("gcc",))
    host.add("zypper", 'case "$*" in *--dry-run*) echo "Nothing to do.";; esac')
    host.add("rpm", "echo package gcc-c++ is not installed; exit 1")
    said = run(tmp_path, manager="zypper", packages=("gcc-c++",))
    assert said.startswith("zypper: found no package gcc-c++"), said
    asked = next(line for line in host.asked if "--dry-run" in line)
    assert asked.endswith("install --name --type package --no-recommends --dry-run gcc-c++")
