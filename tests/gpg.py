"""A key ring of a test's own, by the real gpg."""

from __future__ import annotations

import subprocess
from pathlib import Path


class Gpg:
    """A key ring in a folder that is made for it. Stop it when done."""

    def __init__(self, home: Path) -> None:
        self.home = home
        home.mkdir(mode=0o700)

    def run(self, *arguments: str, data: bytes = b"") -> bytes:
        argv = ["gpg", "--homedir", str(self.home), "--batch", "--quiet", "--yes", *arguments]
        return subprocess.run(argv, input=data, check=True, capture_output=True).stdout

    def key(self, name: str, kind: str, usage: str = "default") -> str:
        """Make a key without a passphrase; its fingerprint by gpg."""
        self.run("--passphrase", "", "--quick-gen-key", name, kind, usage, "never")
        listed = self.run("--with-colons", "--list-keys", name).decode().splitlines()
        return next(line.split(":")[9] for line in listed if line.startswith("fpr:"))

    def stop(self) -> None:
        """End the agent that gpg started for this folder, which would outlive it."""
        subprocess.run(["gpgconf", "--homedir", self.home, "--kill", "all"], check=False)
