"""The real apt in folders of its own: it knows no source and no package of this machine."""

from __future__ import annotations

import hashlib
import os
from email.utils import formatdate
from pathlib import Path

from llamafleet.onhost.job import Job
from llamafleet.onhost.toolkit.managers import Apt
from tests.gpg import Gpg

CONFIG = """\
Dir "{root}/";
Dir::State "{root}/state"; Dir::State::status "{root}/status"; Dir::Cache "{root}/cache";
Dir::Etc "{root}/etc"; Dir::Log "{root}/log"; Dir::Bin::methods "/usr/lib/apt/methods";
Dir::Bin::dpkg "/usr/bin/dpkg"; Dir::Bin::solvers:: "/usr/lib/apt/solvers";
APT::Sandbox::User "root"; APT::Architecture "amd64";
Acquire::Retries "0";
"""
STANZA = """\
Package: {name}
Version: 1
Architecture: all
Maintainer: test
Description: test
Filename: ./{name}.deb
Size: 1
SHA256: {digest}
"""


def private_apt(folder: Path, job: Job) -> Apt:
    """apt as the jobs ask it, below `folder`."""
    root = folder / "apt"
    for name in (
        *("state/lists/partial", "cache/archives/partial", "log"),
        *("etc/sources.list.d", "etc/preferences.d", "etc/apt.conf.d", "etc/auth.conf.d"),
    ):
        (root / name).mkdir(parents=True)
    (root / "status").touch()
    config = folder / "apt.conf"
    config.write_text(CONFIG.format(root=root))
    return Apt(job, {"PATH": os.environ["PATH"], "LC_ALL": "C.UTF-8", "APT_CONFIG": str(config)})


def repository(names: list[str], ring: Gpg, signer: str, label: str = "x") -> dict[str, bytes]:
    """InRelease and Packages of a flat repository with such packages, none of which exists."""
    digest = hashlib.sha256(b"x").hexdigest()
    listed = "\n".join(STANZA.format(name=name, digest=digest) for name in names).encode()
    release = (
        f"Label: {label}\nDate: {formatdate(usegmt=True)}\nSHA256:\n"
        f" {hashlib.sha256(listed).hexdigest()} {len(listed)} Packages\n"
    )
    signed = ring.run("--local-user", signer, "--clearsign", data=release.encode())
    return {"InRelease": signed, "Packages": listed}
