"""The log of a host's last failed job, read there in bounded size."""

from __future__ import annotations

from typing import get_args

from pyinfra.api.facts import FactBase

from llamafleet.facts.snapshot import one_line
from llamafleet.protocol.job import STAMP, Kind, log_name
from llamafleet.protocol.log_text import HALF

TIMEOUT_S = 60
HEAD = "llamafleet-log "
"""Begins the line that names it."""


class FailedLog(FactBase[str]):
    """ "HEAD path", then its beginning and its end; empty: no job has failed."""

    def command(self, state_dir: str, jobs_of_root: str) -> str:
        """The paths begin with / or $HOME/, which the host's shell expands."""
        for path in (state_dir, jobs_of_root):
            if not path.startswith(("/", "$HOME/")) or not path.isprintable() or '"' in path:
                raise ValueError(f"found path {path!r}; expected one that begins with / or $HOME/")
        logs = " ".join(
            f'"{folder}"/{kind}/*/{log_name(kind)}'
            for folder in (state_dir, jobs_of_root)
            for kind in get_args(Kind)
        )
        # The account that builds writes there: no link is followed, and no pipe waited for.
        return one_line(
            # pyinfra does not tell no output from a failed command.
            f"echo; ls -t {logs} 2>/dev/null | while IFS= read -r log; do "
            'folder=${log%/*}; [ -L "${folder%/*}" ] || [ -L "$folder" ] || [ -L "$log" ] '
            f'|| [ ! -f "$log" ] || [ -L "$folder/{STAMP}" ] || [ ! -f "$folder/{STAMP}" ] '
            "&& continue; "
            f'grep -q \'"error": *{{\' "$folder/{STAMP}" 2>/dev/null || continue; '
            f'echo "{HEAD}$log"; head -c {HALF} "$log"; '
            f'[ "$(wc -c < "$log")" -le {2 * HALF} ] || echo; '
            f'tail -c +{HALF + 1} "$log" | tail -c {HALF}; break; done; true'
        )

    def process(self, output: list[str]) -> str:
        return "\n".join(output[1:])
