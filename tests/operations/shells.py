"""Commands of operations, run for real as a connection runs them: by the login shell of a user."""

from __future__ import annotations

import shlex
import shutil
import subprocess
from collections.abc import Iterable

import pytest
from pyinfra.api import StringCommand

LOGIN_SHELLS = ("dash", "bash", "tcsh", "fish", "busybox sh")
under_any_login_shell = pytest.mark.parametrize(
    "login",
    [
        pytest.param(
            login,
            marks=pytest.mark.skipif(
                shutil.which(login.split()[0]) is None, reason=f"this machine has no {login}"
            ),
        )
        for login in LOGIN_SHELLS
    ],
)


def run(command: StringCommand, login: str = "sh", **env: str) -> subprocess.CompletedProcess[str]:
    """One command with its input, under a login shell."""
    lines = command.connector_arguments.get("_stdin") or ()
    given = "".join(f"{str(line).removesuffix(chr(10))}\n" for line in lines)
    return subprocess.run(
        [*login.split(), "-c", f"sh -c {shlex.quote(command.get_raw_value())}"],
        input=given,
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
        env={"PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", **env},
    )


def run_all(commands: Iterable[StringCommand], login: str = "sh") -> list[str]:
    """Commands in order to the first that fails; what those said that failed."""
    for command in commands:
        done = run(command, login)
        if done.returncode:
            return [done.stderr.strip()]
    return []
