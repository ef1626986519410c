"""What the controller ships to a host: its own code for hosts, and pip, as runnable archives.

The bytes depend on the files in it alone, so a host that has the right hash needs no upload.
"""

from __future__ import annotations

import io
import json
import zipfile
from functools import cache
from importlib.metadata import distribution
from pathlib import Path

from llamafleet.onhost import diagnose, ninja, nvcc
from llamafleet.onhost.toolkit import changes
from llamafleet.protocol.pythons import PYTHONS
from llamafleet.tables import driver_packages, failures, miscompiles, unit_costs

PACKAGE = Path(__file__).parent
EPOCH = (1980, 1, 1, 0, 0, 0)
"""The oldest time that the zip format holds."""

OLDEST = PYTHONS[0]

# For any Python, so that the oldest says what is wrong.
HOST_MAIN = f"""import os
import sys

if sys.version_info < ({OLDEST.replace(".", ", ")}):
    sys.exit("llamafleet: found Python %d.%d; expected {OLDEST} or newer" % sys.version_info[:2])

# From here on this very file is read, by children too, whatever takes its place: a job may outlive
# the version that began it, and imports what it needs when it needs it.
archive = "/proc/self/fd/%d" % os.open(sys.path[0], os.O_RDONLY)
if os.path.exists(archive):
    sys.path[0] = archive

from llamafleet.onhost.__main__ import main

sys.exit(main())
""".encode()

PIP_MAIN = b"""import runpy

runpy.run_module("pip", run_name="__main__", alter_sys=True)
"""


def archive(files: dict[str, bytes], compression: int) -> bytes:
    """A zip of `files` by name, sorted, with the same time and mode for each."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", compression, compresslevel=9) as target:
        for name in sorted(files):
            info = zipfile.ZipInfo(name, EPOCH)
            info.compress_type = compression
            info.create_system = 3  # Unix, whatever the controller is
            info.external_attr = 0o644 << 16
            target.writestr(info, files[name])
    return buffer.getvalue()


@cache
def host_zipapp() -> bytes:
    """The code for hosts and what it needs of the tables; runs under any of PYTHONS."""
    files = {
        f"llamafleet/{path.relative_to(PACKAGE)}": path.read_bytes()
        for room in ("onhost", "protocol")
        for path in (PACKAGE / room).rglob("*.py")
    }
    files["llamafleet/__init__.py"] = (PACKAGE / "__init__.py").read_bytes()
    tables = {
        diagnose.TABLE: failures.rows(),
        nvcc.TABLE: miscompiles.rows(),
        ninja.TABLE: unit_costs.rows(),
    }
    for name, rows in tables.items():
        files[f"llamafleet/onhost/{name}"] = json.dumps(rows, indent=1).encode()
    refused = json.dumps(driver_packages.expression("refused")).encode()
    files[f"llamafleet/onhost/toolkit/{changes.REFUSED}"] = refused
    files["__main__.py"] = HOST_MAIN
    return archive(files, zipfile.ZIP_STORED)


@cache
def pip_zipapp() -> bytes:
    """The installed pip, so that a host needs none (Debian's Python comes without)."""
    pip = distribution("pip")
    files = {
        str(name): Path(str(name.locate())).read_bytes()
        for name in pip.files or ()
        if name.parts[0] == "pip" and name.suffix not in (".pyc", ".exe")
    }
    files["__main__.py"] = PIP_MAIN
    return archive(files, zipfile.ZIP_DEFLATED)
