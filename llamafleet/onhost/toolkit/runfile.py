"""A CUDA Toolkit from NVIDIA's runfile: checked by hash, the toolkit alone, no root needed."""

from __future__ import annotations

import hashlib
import urllib.error
import urllib.request
from pathlib import Path

from llamafleet.onhost.job import Job, JobFailed
from llamafleet.protocol.job import RunfileConfig, ToolkitProduct

CHUNK = 1 << 20
TIMEOUT_S = 60
OPTIONS = ("--silent", "--toolkit", "--override", "--no-man-page", "--no-opengl-libs")
"""--toolkit: it alone, no driver. --override: the installer's own look at the compiler and at a
driver is not wanted, both are known. Source: NVIDIA CUDA Installation Guide for Linux, Runfile."""


def install(job: Job, config: RunfileConfig, root: Path, env: dict[str, str]) -> ToolkitProduct:
    """Download, check and unpack at `root`. Raises JobFailed."""
    tmp = job.folder / "tmp"
    job.phase("download")
    file = tmp / "cuda.run"
    size = download(job, config.url, file, config.sha256)
    job.phase("unpack")
    argv = ["/bin/sh", str(file), *OPTIONS, f"--toolkitpath={root}", f"--tmpdir={tmp}"]
    job.command(argv, env=env)
    if not (root / "bin" / "nvcc").exists():
        raise JobFailed(
            f"found no bin/nvcc below {root}; expected it of {config.url}; next: read "
            "/tmp/cuda-installer.log on the host"
        )
    return ToolkitProduct(download_bytes=size)


def download(job: Job, url: str, target: Path, sha256: str) -> int:
    """Fetch `url`; bytes of it. Raises JobFailed where it does not come or is another file."""
    digest, size = hashlib.sha256(), 0
    try:
        with urllib.request.urlopen(url, timeout=TIMEOUT_S) as answer, target.open("wb") as file:
            total = int(answer.headers.get("Content-Length") or 0)
            while chunk := answer.read(CHUNK):
                file.write(chunk)
                digest.update(chunk)
                size += len(chunk)
                job.progress.step(size // 10**6, total // 10**6, "MB downloaded")
    except (OSError, urllib.error.URLError) as error:
        raise JobFailed(
            f"{url}: found no answer ({error}); expected the runfile; next: curl -I {url} on the "
            "host, or set toolkit_url to a mirror"
        ) from error
    if digest.hexdigest() != sha256:
        raise JobFailed(
            f"{url}: found sha256 {digest.hexdigest()} over {size} bytes; expected {sha256}; "
            "next: run the same command again, or look at what the mirror serves"
        )
    return size
