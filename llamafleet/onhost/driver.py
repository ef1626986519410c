"""The driver as a host has it: the kernel module that is loaded, the library that is on disk."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path

SMI_LIMIT_S = 10.0
LDCONFIG_LIMIT_S = 10.0

FOLDERS = ("usr/sbin", "sbin", "usr/local/nvidia/bin", "opt/nvidia/bin", "usr/lib/wsl/lib")
"""Where else programs lie, as snapshot.sh looks for them: units have fewer folders on PATH."""

# 535.261.03 in "NVRM version: NVIDIA UNIX x86_64 Kernel Module  535.261.03  Tue Jun  3 ...".
VERSION = re.compile(r"(?<![\w.])[0-9]{1,6}\.[0-9]{1,6}(?:\.[0-9]{1,6})?(?![\w.])")
LIMIT = 1 << 16
"""Characters of a file or an answer that are looked at."""

# A line of `ldconfig -p`; 32-bit libraries, which may be of another package, say "(libc6)" alone.
_LISTED = re.compile(r"^\s*libnvidia-ml\.so\.1 \(libc6,[^)]*\) => (.+)$", re.MULTILINE)
_FILE = re.compile(r"\.so\.([0-9]{1,6}\.[0-9]{1,6}(?:\.[0-9]{1,6})?)$")


def root() -> Path:
    """LLAMAFLEET_ROOT, put before /sys and /proc: reads a recorded host."""
    return Path(os.environ.get("LLAMAFLEET_ROOT") or "/")


def _program(name: str) -> str:
    """Its path; the bare name where it is not found."""
    folders = (os.environ.get("PATH", os.defpath), *(str(root() / one) for one in FOLDERS))
    return shutil.which(name, path=os.pathsep.join(folders)) or name


def loaded_driver() -> tuple[str | None, str]:
    """(version of the driver that is loaded, where it was read); (None, why there is none)."""
    modules = (root() / "sys/module/nvidia/version", root() / "proc/driver/nvidia/version")
    for file in modules:
        try:
            with file.open(encoding="utf-8", errors="replace") as text:
                match = VERSION.search(text.read(LIMIT))
        except OSError:
            continue
        if match:
            return match[0], str(file)
    version, why = _ask_smi(float(os.environ.get("LLAMAFLEET_SMI_LIMIT") or SMI_LIMIT_S))
    if version:
        return version, "nvidia-smi"
    return None, f"no {' and no '.join(map(str, modules))}, and {why}"


def library_driver() -> str | None:
    """Version in the file name that libnvidia-ml.so.1 resolves to; None: nothing tells it."""
    try:
        listed = subprocess.run(
            [_program("ldconfig"), "-p"],
            capture_output=True,
            text=True,
            errors="replace",
            check=False,
            timeout=LDCONFIG_LIMIT_S,
        ).stdout
    except (OSError, subprocess.TimeoutExpired):
        return None
    for path in _LISTED.findall(listed):
        try:
            match = _FILE.search(Path(path).resolve().name)
        except (OSError, ValueError):  # no path, or one that can't be followed
            continue
        if match:
            return match[1]
    return None


def _ask_smi(limit_s: float) -> tuple[str | None, str]:
    """(the driver's version, ""); (None, why nvidia-smi does not tell it)."""
    command = [_program("nvidia-smi"), "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace"
        )
    except OSError as error:
        return None, f"nvidia-smi does not start ({error.strerror})"
    try:
        output, _ = process.communicate(timeout=limit_s)
    except subprocess.TimeoutExpired:
        # Not waited for: a process that hangs in the driver does not die before the driver lets go.
        process.kill()
        return None, f"nvidia-smi did not answer within {limit_s:g} s"
    # One line per GPU, all with the same version.
    first = output[:LIMIT].strip().split("\n")[0].strip()
    if process.returncode == 0 and VERSION.fullmatch(first):
        return first, ""
    return None, f"nvidia-smi ended with {process.returncode} and {first[:200]!r}"
