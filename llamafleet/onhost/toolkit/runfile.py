"""A CUDA Toolkit from NVIDIA's runfile: checked by hash, the toolkit alone, no root needed."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

from llamafleet.onhost.download import DownloadError, Limits, Network, fetch
from llamafleet.onhost.job import Job, JobFailed
from llamafleet.protocol.job import RunfileConfig, ToolkitProduct

LIMITS = Limits(octets=16 << 30, seconds=100 * 60.0)
"""NVIDIA's files have 4 to 6 GB."""
OPTIONS = ("--silent", "--toolkit", "--override", "--no-man-page", "--no-opengl-libs")
"""--toolkit: it alone, no driver. --override: the installer's own look at the compiler and at a
driver is not wanted, both are known. Source: NVIDIA CUDA Installation Guide for Linux, Runfile."""


def install(job: Job, config: RunfileConfig, root: Path, env: dict[str, str]) -> ToolkitProduct:
    """Download, check and unpack at `root`. Raises JobFailed."""
    tmp = job.folder / "tmp"
    job.phase("download")
    file = tmp / "cuda.run"
    size = download(job, config, file)
    job.phase("unpack")
    argv = ["/bin/sh", str(file), *OPTIONS, f"--toolkitpath={root}", f"--tmpdir={tmp}"]
    job.command(argv, env=env)
    if not (root / "bin" / "nvcc").exists():
        raise JobFailed(
            f"found no bin/nvcc below {root}; expected it of {config.url}; next: read "
            "/tmp/cuda-installer.log on the host"
        )
    return ToolkitProduct(download_bytes=size)


class _Hashed:
    """A file that is written, and what was written to it."""

    def __init__(self, path: Path) -> None:
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        self._file = os.fdopen(os.open(path, flags, 0o600), "wb")
        self.digest, self.size = hashlib.sha256(), 0

    def write(self, part: bytes) -> None:
        self._file.write(part)
        self.digest.update(part)
        self.size += len(part)

    def close(self) -> None:
        self._file.close()


def download(job: Job, config: RunfileConfig, target: Path) -> int:
    """Fetch the runfile; bytes of it. Raises JobFailed where it does not come or is another."""

    def tell(done: int, total: int) -> None:
        job.progress.step(done // 10**6, total // 10**6, "MB downloaded")

    file = _Hashed(target)
    try:
        fetch(config.url, file, Network.of(config), LIMITS, on_bytes=tell)
    except DownloadError as error:
        raise JobFailed(
            f"{config.url}: found {error.found}; expected the runfile; next: on the host, "
            f"{error.next}; or set toolkit_url to a mirror"
        ) from error
    finally:
        file.close()
    if (found := file.digest.hexdigest()) != config.sha256:
        raise JobFailed(
            f"{config.url}: found sha256 {found} over {file.size} bytes; expected {config.sha256}; "
            "next: run the same command again, or look at what the mirror serves"
        )
    return file.size
