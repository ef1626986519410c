"""How a host's build is asked what fits: by the account, with nothing of the caller's."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import pytest

from llamafleet.facts.fit import NO_BUILD, FitText
from llamafleet.layout import AS_ACCOUNT, Layout
from llamafleet.protocol.fit import Use
from llamafleet.protocol.offer import Wish

ASKED = {"model": "/m/a $(b) 'c'.gguf", "wish": Wish(4096, "q8_0"), "use": Use(2), "reserve": 512}
PYTHON = """#!/bin/sh
env | cut -d= -f1 | sort | tr '\\n' ' '
echo
for word; do printf '%s\\n' "$word"; done
"""


def answer(home: Path) -> str:
    command = FitText().command(layout=Layout.user("$HOME"), **ASKED)  # type: ignore[arg-type]
    env = os.environ | {"HOME": str(home), "SECRET": "x", "LD_PRELOAD": ""}
    done = subprocess.run(
        ["sh", "-c", command], env=env, capture_output=True, text=True, check=True
    )
    return FitText().process(done.stdout.splitlines())


def test_the_build_that_is_switched_to_is_asked(tmp_path: Path) -> None:
    layout = Layout.user(str(tmp_path))
    python = Path(layout.current, "bin/python")
    python.parent.mkdir(parents=True)
    python.write_text(PYTHON)
    python.chmod(0o755)
    Path(layout.zipapp).touch()
    names, *words = answer(tmp_path).splitlines()
    assert set(names.split()) <= {"LC_ALL", "PATH", "PWD", "OLDPWD", "SHLVL", "_"}
    assert words[:5] == ["-I", layout.zipapp, "fit", "--model", ASKED["model"]]
    told = dict(zip(words[3::2], words[4::2], strict=True))
    assert json.loads(told["--wish"]) == {"n_ctx": 4096, "kv_type": "q8_0", "n_gpu_layers": None}
    assert json.loads(told["--use"])["parallel"] == 2
    assert (told["--reserve"], told["--verify"]) == ("512", layout.verify_config)


def test_a_host_without_a_build_says_so(tmp_path: Path) -> None:
    assert answer(tmp_path) == NO_BUILD


@pytest.mark.parametrize("scope", ["system", "user"])
def test_root_never_runs_what_the_account_can_write(scope: str) -> None:
    layout = Layout.system() if scope == "system" else Layout.user("$HOME")
    command = FitText().command(layout=layout, **ASKED)  # type: ignore[arg-type]
    said = subprocess.run(
        ["sh", "-c", command.replace("eval", "echo", 1)], capture_output=True, text=True, check=True
    ).stdout
    assert (" ".join(AS_ACCOUNT) in said) == (scope == "system")
