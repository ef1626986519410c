"""What root must not do with what the account that builds can write: run it, or write beside it."""

from __future__ import annotations

import os
import shlex
import sys

from llamafleet.protocol.verify import VerifyConfig


def root_problem(config: VerifyConfig, command: str) -> str:
    """Why this process may not verify or check; "": it may. `command`: the zipapp's, as typed."""
    if not config.as_account or os.geteuid() != 0:
        return ""
    arguments = shlex.join([sys.executable, "-I", *sys.argv])
    return (
        f"{command}: found uid 0; expected the account that builds, as root runs nothing that it "
        # In root's terminal it could type there what root then runs.
        f"can write; next: setsid -w env -i {shlex.join(config.as_account)} {arguments} "
        "</dev/null 2>&1 | cat"
    )
