"""The command `llamafleet`."""

from __future__ import annotations

import io
import sys

import click

from llamafleet import __version__
from llamafleet.cli.bands import bands
from llamafleet.cli.compare import compare_command
from llamafleet.cli.deploy import check, deploy
from llamafleet.cli.diagnose import diagnose
from llamafleet.cli.fit import fit
from llamafleet.cli.fix import fix
from llamafleet.cli.history import history
from llamafleet.cli.image import image
from llamafleet.cli.outliers import outliers
from llamafleet.cli.plan import plan, snapshot
from llamafleet.cli.report import report
from llamafleet.cli.upstream import upstream
from llamafleet.cli.watch import watch
from llamafleet.cli.wheelhouse import wheelhouse


@click.group()
@click.version_option(__version__, prog_name="llamafleet")
def main() -> None:
    """Provision NVIDIA GPU hosts with a llama-cpp-python that is proven to offload.

    The hosts themselves are provisioned by `llamafleet deploy`, which runs
    pyinfra -y inventory deploy.py
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            # A terminal that has no such character shows its escape, as Python does in errors.
            stream.reconfigure(errors="backslashreplace")


COMMANDS = (
    *(check, deploy, image, plan, snapshot, diagnose, fit, fix),
    *(bands, compare_command, history, outliers, report),
    *(upstream, watch, wheelhouse),
)
for command in COMMANDS:
    main.add_command(command)
