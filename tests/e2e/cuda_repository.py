"""An apt repository with a CUDA Toolkit: NVIDIA's names and layout, over real files and signed.

Beside the toolkit it offers a driver, as NVIDIA's own does, so that a test can see it left alone.
"""

from __future__ import annotations

import base64
import functools
import hashlib
import http.server
import os
import shutil
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from email.utils import formatdate
from pathlib import Path

from tests.gpg import Gpg

LABEL = "NVIDIA CUDA"
REPOSITORY = "repos/debian12/x86_64"
USER, PASSWORD = "lab", "s3cret"
BASIC = "Basic " + base64.b64encode(f"{USER}:{PASSWORD}".encode()).decode()
TARGET = "targets/x86_64-linux"
DRIVERS = {"cuda-drivers": "nvidia-driver", "nvidia-driver": ""}
"""Packages without files -> what they depend on."""


def parts(version: str) -> dict[str, tuple[str, tuple[str, ...], str]]:
    """Package -> version, patterns below the toolkit's root, what it depends on.

    What a pattern of an earlier package took is not in a later one.
    """
    v = version.replace(".", "-")
    return {
        f"libcublas-{v}": ("13.1", ("lib/libcublas*.so.*", "lib/libnvblas*.so.*"), ""),
        f"libcublas-dev-{v}": ("13.1", ("include/*cublas*", "lib/libcublas*"), f"libcublas-{v}"),
        f"cuda-cccl-{v}": (f"{version}.85", ("include/cccl",), ""),
        f"cuda-driver-dev-{v}": (f"{version}.96", ("lib/stubs/libcuda.so",), ""),
        f"cuda-crt-{v}": (f"{version}.88", ("include/crt",), ""),
        f"cuda-cudart-dev-{v}": (
            f"{version}.96",
            ("include", "lib/libcudart*", "lib/libcudadevrt*"),
            f"cuda-driver-dev-{v}, cuda-cccl-{v}",
        ),
        f"cuda-nvcc-{v}": (f"{version}.88", ("bin", "nvvm"), f"cuda-crt-{v}"),
    }


class Mirror:
    """What a lab's mirror of NVIDIA's downloads serves."""

    def __init__(self, folder: Path) -> None:
        self.root = folder / "mirror"
        self.folder = self.root / REPOSITORY
        self.folder.mkdir(parents=True)
        self.work = folder / "debs"
        self.gpg = Gpg(folder / "gnupg")
        self.fingerprint = self.gpg.key("lab mirror", "rsa3072", "sign")
        public = self.gpg.run("--armor", "--export")
        self.key = folder / "mirror.asc"
        self.key.write_bytes(public)
        # By NVIDIA's name, and not NVIDIA's key.
        (self.folder / "3bf863cc.pub").write_bytes(public)

    def add_toolkit(self, toolkit: Path, version: str) -> None:
        """Packages of the toolkit at `toolkit`, as one from wheels is laid out."""
        taken: set[Path] = set()
        for name, (release, patterns, depends) in parts(version).items():
            tree = self.work / name
            target = tree / f"usr/local/cuda-{version}" / TARGET
            for pattern in patterns:
                for source in sorted(toolkit.glob(pattern)):
                    self._take(source, toolkit, target, taken)
            if name.startswith("cuda-nvcc"):
                # The compiler's own folders lie beside targets/, and links lead into it.
                for own in ("bin", "nvvm"):
                    (target / own).rename(target.parents[1] / own)
                (target.parents[1] / "include").symlink_to(f"{TARGET}/include")
                (target.parents[1] / "lib64").symlink_to(f"{TARGET}/lib")
            self.add(name, release, depends)
        for name, depends in DRIVERS.items():
            self.add(name, "999.10", depends)

    def _take(self, source: Path, toolkit: Path, target: Path, taken: set[Path]) -> None:
        files = sorted(source.rglob("*")) if source.is_dir() else [source]
        for file in files:
            relative = file.relative_to(toolkit)
            if relative in taken or (file.is_dir() and not file.is_symlink()):
                continue
            taken.add(relative)
            (target / relative).parent.mkdir(parents=True, exist_ok=True)
            # Hard links: the files are large, and only read.
            os.link(file, target / relative, follow_symlinks=False)

    def add(self, name: str, version: str, depends: str = "") -> None:
        """A package, with the files below its folder in `work`."""
        package(self.folder, self.work / name, name, version, depends)

    def sign(self, label: str = LABEL) -> None:
        """Index the packages and sign, with a label as NVIDIA's Release files have it."""
        listed = index(self.folder).encode()
        (self.folder / "Packages").write_bytes(listed)
        release = (
            f"Origin: NVIDIA\nLabel: {label}\nDate: {formatdate(usegmt=True)}\nSHA256:\n"
            f" {hashlib.sha256(listed).hexdigest()} {len(listed)} Packages\n"
        )
        signed = self.gpg.run("--clearsign", data=release.encode())
        (self.folder / "InRelease").write_bytes(signed)


def package(folder: Path, tree: Path, name: str, version: str, depends: str = "") -> None:
    """A package in `folder` of the files below `tree`, in place of an older one of that name."""
    (tree / "DEBIAN").mkdir(parents=True, exist_ok=True)
    control = [f"Package: {name}", f"Version: {version}-1", "Architecture: amd64"]
    control += [f"Depends: {depends}"] if depends else []
    control += ["Maintainer: test", "Description: test"]
    (tree / "DEBIAN/control").write_text("\n".join(control) + "\n")
    for old in folder.glob(f"{name}_*.deb"):
        old.unlink()
    file = folder / f"{name}_{version}-1_amd64.deb"
    build = ["dpkg-deb", "--root-owner-group", "-Znone", "-b", str(tree), str(file)]
    subprocess.run(build, check=True, stdout=subprocess.DEVNULL)
    shutil.rmtree(tree)


def index(folder: Path) -> str:
    """The text of Packages for the packages in a folder."""
    entries = []
    for file in sorted(folder.glob("*.deb")):
        fields = ["dpkg-deb", "--field", str(file)]
        control = subprocess.run(fields, check=True, capture_output=True, text=True).stdout
        digest = hashlib.sha256(file.read_bytes()).hexdigest()
        size = file.stat().st_size
        entries.append(f"{control}Filename: ./{file.name}\nSize: {size}\nSHA256: {digest}\n")
    return "\n".join(entries)


class _Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, format: str, *args: object) -> None:
        """Nothing: the test's own output is what matters."""


class _Guarded(_Quiet):
    def do_GET(self) -> None:
        if self.headers.get("Authorization") == BASIC:
            super().do_GET()
            return
        self.send_response(401)
        self.send_header("WWW-Authenticate", 'Basic realm="lab"')
        self.send_header("Content-Length", "0")
        self.end_headers()


@contextmanager
def served(folder: Path, guarded: bool = False) -> Iterator[str]:
    """The URL of a folder, on the loopback interface; `guarded`: for USER and PASSWORD alone."""
    handler = functools.partial(_Guarded if guarded else _Quiet, directory=str(folder))
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        server.server_close()
