"""The command line that a run keeps: no secret is in it, and the rest still is."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from llamafleet.history.command import FLAGS, without_secrets
from llamafleet.terminal import SECRET

SHOWN = frozenset({"accelerator", "index_url", "cmake_options"})
SECRETIVE = frozenset({"index_url", "cmake_options"})


def kept(*arguments: str) -> str:
    return " ".join(without_secrets(["/venv/bin/pyinfra", *arguments], SHOWN, SECRETIVE))


def test_a_plain_command_line_is_kept_as_it_is() -> None:
    arguments = ("-y", "--limit", "gpu-a", "--data", "accelerator=auto", "--same-sudo-password",
                 "--ssh-user=admin", "inventory", "deploy.py")  # fmt: skip
    assert kept(*arguments) == " ".join(("pyinfra", *arguments))


@pytest.mark.parametrize(
    ("arguments", "shown"),
    [
        (("--data", "ssh_password=hunter2"), "--data ssh_password=***"),
        (("--data=ssh_password=hunter2",), "--data=ssh_password=***"),
        (("--data", "_sudo_password=hunter2="), "--data _sudo_password=***"),
        (("--data", "x_hf=hunter2"), "--data x_hf=***"),
        (("--data", '_env={"HF": "hunter2"}'), "--data _env=***"),
        (("--data", "hunter2"), "--data ***"),
        (("--data", "index_url=hunter2"), "--data index_url=***"),
        (("--data", "accelerator"), "--data ***"),
        (("--ssh-password", "hunter2"), "--ssh-password ***"),
        (("--password=hunter2",), "--password=***"),
        (("--ssh-password", "--hunter2"), "--ssh-password ***"),
        (("--sudo-password", "hunter2"), "--sudo-password ***"),
        (
            ("--data", "index_url=https://me:hunter2@pypi.example/simple"),
            "--data index_url=https://***@pypi.example/simple",
        ),
        (
            ("--data", "index_url=https://me:hu/nter2@x@pypi.example/simple"),
            "--data index_url=https://***@pypi.example/simple",
        ),
        (
            ("--data", "index_url=https://pypi.example/simple?sig=hunter2"),
            "--data index_url=https://pypi.example/simple?***",
        ),
        (
            ("--data", "index_url=https://pypi.example/simple#token=hunter2"),
            "--data index_url=https://pypi.example/simple#***",
        ),
        (
            ("--data", "index_url=https://mirror.example/x;sig=hunter2"),
            "--data index_url=https://mirror.example/x;***",
        ),
        (
            ("--data", "cmake_options={'CMAKE_CXX_FLAGS': '-DKEY=hunter2'}"),
            "--data cmake_options=***",
        ),
        (("admin:hunter2@gpu-a,gpu-b",), "***@gpu-a,gpu-b"),
    ],
)
def test_a_secret_is_masked_and_nothing_else(arguments: tuple[str, ...], shown: str) -> None:
    assert kept("-y", *arguments, "inventory", "deploy.py") == (
        f"pyinfra -y {shown} inventory deploy.py"
    )


# pyinfra's command line patches the standard library of the process that imports it.
OPTIONS = """
import json, click
from pyinfra_cli.cli import cli
options = [option for option in cli.params if isinstance(option, click.Option)]
print(json.dumps([(name, not one.is_flag) for one in options for name in one.opts]))
"""


def secretive() -> list[tuple[str, bool]]:
    """Names of pyinfra's own options that sound like a secret, and whether each takes a value."""
    command = [sys.executable, "-c", OPTIONS]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return [(name, valued) for name, valued in json.loads(done.stdout) if SECRET.search(name)]


def test_every_option_of_pyinfra_that_takes_a_secret_is_known() -> None:
    found = secretive()
    assert {name for name, valued in found if not valued} == FLAGS
    valued = [name for name, valued in found if valued]
    assert len(valued) >= 4
    for name in valued:
        assert kept(name, "hunter2", "inventory") == f"pyinfra {name} *** inventory"
        assert kept(f"{name}=hunter2", "inventory") == f"pyinfra {name}=*** inventory"
