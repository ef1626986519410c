"""Small wheels that pip installs."""

from __future__ import annotations

import hashlib
import zipfile
from base64 import urlsafe_b64encode
from pathlib import Path


def write_wheel(folder: Path, name: str, version: str, files: dict[str, str]) -> Path:
    """A wheel of these files, each of which may be run."""
    module = name.replace("-", "_")
    info = f"{module}-{version}.dist-info"
    described = {
        f"{info}/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n",
        f"{info}/WHEEL": "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    record = [f"{file},{_hashed(text)}" for file, text in {**files, **described}.items()]
    described[f"{info}/RECORD"] = "".join(f"{row}\n" for row in (*record, f"{info}/RECORD,,"))
    path = folder / f"{module}-{version}-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as wheel:
        for file, text in {**files, **described}.items():
            entry = zipfile.ZipInfo(file)
            entry.external_attr = 0o100755 << 16
            wheel.writestr(entry, text)
    return path


def _hashed(text: str) -> str:
    """Hash and size as a RECORD has them."""
    digest = urlsafe_b64encode(hashlib.sha256(text.encode()).digest()).decode().rstrip("=")
    return f"sha256={digest},{len(text.encode())}"


def hash_option(wheel: Path) -> str:
    """What pins it in a requirement."""
    return f"--hash=sha256:{hashlib.sha256(wheel.read_bytes()).hexdigest()}"
