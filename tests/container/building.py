"""Dockerfile.rtx4090 built and run with what Debian has: buildah, podman, runc, debootstrap.

No registry of images is asked: the base is a Debian of debootstrap, in place of the public one.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.e2e.booted import base_tree

ROOT = Path(__file__).resolve().parents[2]
NEEDED = ("buildah", "podman", "runc", "debootstrap", "iptables")
BASE = "localhost/debian:13"
IMAGE = "localhost/llama"
STORAGE = '[storage]\ndriver = "overlay"\nrunroot = "{0}/run"\ngraphroot = "{0}/graph"\n'
CONTAINERS = """[containers]
default_ulimits = ["nofile=20000:20000", "nproc=20000:20000"]
[engine]
runtime = "runc"
cgroup_manager = "cgroupfs"
events_logger = "file"
"""
POLICY = '{"default": [{"type": "insecureAcceptAnything"}]}'
CERTIFICATES = Path("/usr/local/share/ca-certificates")
"""Of a company's own authority: the base image is to trust it as this machine does."""


def missing_tools() -> list[str]:
    """What this machine lacks; empty: nothing."""
    lacking = [tool for tool in NEEDED if shutil.which(tool) is None]
    return lacking if os.geteuid() == 0 else [*lacking, "root"]


@dataclass(frozen=True)
class Workshop:
    """buildah and podman with a storage of their own below `folder`."""

    folder: Path

    @property
    def env(self) -> dict[str, str]:
        return {
            **os.environ,
            "CONTAINERS_STORAGE_CONF": str(self.folder / "storage.conf"),
            "CONTAINERS_CONF": str(self.folder / "containers.conf"),
        }

    def run(self, *argv: str, check: bool = True, limit: float = 300) -> str:
        """What a command says, on both streams."""
        done = subprocess.run(
            argv,
            env=self.env,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
            timeout=limit,
        )
        assert not check or done.returncode == 0, f"{argv}: {done.returncode}\n{done.stdout}"
        return done.stdout

    def status(self, *argv: str, limit: float = 300) -> tuple[int, str]:
        """Of a command that may fail: its exit status, and what it says on stderr."""
        done = subprocess.run(
            argv, env=self.env, capture_output=True, text=True, check=False, timeout=limit
        )
        return done.returncode, done.stderr

    def prepare(self) -> None:
        """Settings, and the base image. The tree of booted hosts has more than it needs."""
        (self.folder / "storage.conf").write_text(STORAGE.format(self.folder))
        (self.folder / "containers.conf").write_text(CONTAINERS)
        (self.folder / "policy.json").write_text(POLICY)
        made = self.run("buildah", "from", "scratch").split()[-1]
        self.run("buildah", "copy", "-q", made, str(base_tree("trixie")), "/")
        if CERTIFICATES.is_dir():
            self.run("buildah", "copy", "-q", made, str(CERTIFICATES), str(CERTIFICATES))
            self.run("buildah", "run", "--isolation", "chroot", made, "update-ca-certificates")
        self.run("buildah", "commit", "-q", "--rm", made, BASE)

    def build(
        self, *arguments: str, target: str = "", check: bool = True, limit: float = 3600
    ) -> str:
        """Build the image, or one stage of it under a name of its own; what was said."""
        options = [word for one in (f"BASE={BASE}", *arguments) for word in ("--build-arg", one)]
        if target:
            options += ["--target", target]
        return self.run(
            *("buildah", "bud", "--format", "docker", "--isolation", "chroot", "--layers"),
            *("--signature-policy", str(self.folder / "policy.json"), *options),
            *("-f", str(ROOT / "Dockerfile.rtx4090"), "-t", target or IMAGE, str(ROOT)),
            check=check,
            limit=limit,
        )


@contextmanager
def workshop(folder: Path) -> Iterator[Workshop]:
    """One that is gone afterwards, with its containers and images."""
    made = Workshop(folder)
    made.prepare()
    try:
        yield made
    finally:
        made.run("podman", "rm", "--all", "--force", check=False)
        made.run("buildah", "rm", "--all", check=False)
        made.run("buildah", "rmi", "--all", "--force", check=False)
