"""A wheel that hosts of one fingerprint share: kept where it was built, checked where it is taken.

Hosts of one fingerprint list the same CPU flags. A kernel lists no flag that it does not know, and
the compiler asks the CPU itself: so what it answered where the wheel was built is compared with
what it answers here, before any of that code runs.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import subprocess
from collections.abc import Mapping
from pathlib import Path

from llamafleet.onhost.job import JobFailed
from llamafleet.protocol.job import SharedWheel

MACROS = ("-dM", "-E", "-x", "c++", os.devnull)
"""Options of gcc and clang that print all macros, those of instruction sets among them."""
SETS = re.compile(r"^#define __([A-Z][A-Z0-9_]{0,39}) 1$", re.MULTILINE)
"""Names of CPUs, as __znver4, are in lower case."""
ADVICE = "next: set build_sharing = 'host' for this host"


def native_sets(cxx: str, env: Mapping[str, str]) -> tuple[str, ...]:
    """Instruction sets that a compiler uses for the CPU it runs on and not for any, as AVX512F.

    Raises JobFailed where it does not tell.
    """
    native = "-mcpu=native" if os.uname().machine == "aarch64" else "-march=native"
    return tuple(sorted(_macros([cxx, native], env) - _macros([cxx], env)))


def _macros(compiler: list[str], env: Mapping[str, str]) -> set[str]:
    asked = None
    with contextlib.suppress(OSError, subprocess.TimeoutExpired):
        asked = subprocess.run(
            [*compiler, *MACROS],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            encoding="utf-8",
            errors="replace",
            env=dict(env),
            timeout=60,
            check=False,
        )
    found = {name.strip("_") for name in SETS.findall(asked.stdout)} if asked else set()
    if asked is None or asked.returncode or not found:
        said = asked.stderr.strip().splitlines()[:1] if asked else ["it can't be run"]
        raise JobFailed(
            f"{' '.join(compiler)}: found no macros ({' '.join(said)[:200]}); expected those of "
            f"this CPU, to share code by; {ADVICE}"
        )
    return found


def refuse_other_cpu(wheel: SharedWheel, has: tuple[str, ...]) -> None:
    """Raise JobFailed where this CPU lacks what the wheel's code may use."""
    lacks = sorted(set(wheel.needs) - set(has))
    if lacks:
        raise JobFailed(
            f"CPU: found that it lacks {', '.join(lacks)}; expected all that the compiler used "
            f"on {wheel.host}, whose wheel this is; {ADVICE}, or cpu_baseline for all hosts"
        )


def sha256_of(file: Path) -> str:
    """Raises OSError."""
    digest = hashlib.sha256()
    with file.open("rb") as opened:
        while part := opened.read(1 << 20):
            digest.update(part)
    return digest.hexdigest()


def check_file(wheel: SharedWheel, file: Path) -> None:
    """Raise JobFailed unless the file is that very wheel."""
    found = sha256_of(file) if file.is_file() else "no file"
    if found != wheel.sha256:
        raise JobFailed(
            f"{file}: found {found}; expected sha256 {wheel.sha256}, the wheel of {wheel.host}; "
            "next: run the same command again"
        )


def check_installed(wheel: SharedWheel, libraries: Mapping[str, str]) -> None:
    """Raise JobFailed unless all libraries are as they were on the wheel's host.

    `libraries`: sha256 by path below the virtual environment.
    """
    here = {path.partition("/site-packages/")[2]: digest for path, digest in libraries.items()}
    wrong = sorted(path for path, _ in wheel.libraries.items() ^ here.items())
    if wrong:
        names = ", ".join(dict.fromkeys(Path(path).name for path in wrong))
        raise JobFailed(
            f"installed wheel of {wheel.host}: found other libraries ({names}); expected those "
            f"that it had there; {ADVICE}"
        )


def only_wheel(folder: Path) -> Path:
    """The wheel that pip left there. Raises JobFailed."""
    wheels = sorted(folder.glob("*.whl"))
    if len(wheels) != 1:
        raise JobFailed(
            f"{folder}: found {len(wheels)} wheels; expected the one that was built; {ADVICE}"
        )
    return wheels[0]
