"""Root in an environment: what another account can write is found without running any of it."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from llamafleet.facts.environment import NoAnswer
from llamafleet.layout import Layout
from llamafleet.mend.machine import Machine, make_folders
from llamafleet.mend.rights import refuse_foreign_site
from tests.cli import run

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="only root gives files away")
OTHER = 61000


@pytest.fixture
def env() -> Iterator[Path]:
    """One of root's own, where each user can reach it, made by a Python of root's own."""
    folder = Path("/opt/llamafleet-test-rights")
    shutil.rmtree(folder, ignore_errors=True)
    base = Path(getattr(sys, "_base_executable", sys.executable)).resolve()
    subprocess.run([base, "-m", "venv", "--without-pip", "--copies", folder / "env"], check=True)
    try:
        refuse_foreign_site(str(folder / "env/bin/python"))
    except NoAnswer as error:
        pytest.skip(f"this Python is not root's own: {error}")
    yield folder / "env"
    shutil.rmtree(folder)


def site(env: Path) -> Path:
    (found,) = env.glob("lib/python*/site-packages")
    return found


def foreign(env: Path) -> Path:
    """A folder of another user's."""
    folder = env.parent / "theirs"
    folder.mkdir()
    ran = folder / "ran"
    code = f"import pathlib; pathlib.Path({str(ran)!r}).touch()"
    (folder / "sitecustomize.py").write_text(code)
    for path in (folder, folder / "sitecustomize.py"):
        os.chown(path, OTHER, OTHER)
    return folder


@pytest.mark.parametrize("how", ["pth", "file", "module", "link"])
def test_what_an_interpreter_runs_at_its_start(env: Path, how: str) -> None:
    theirs = foreign(env)
    if how == "pth":
        # As an editable installation leaves it.
        (site(env) / "_source.pth").write_text(f"{theirs}\n")
    elif how == "file":
        (site(env) / "a.pth").touch()
        os.chown(site(env) / "a.pth", OTHER, OTHER)
    elif how == "module":
        (site(env) / "sitecustomize.py").touch(0o666)
        (site(env) / "sitecustomize.py").chmod(0o666)
    else:
        (site(env) / "sitecustomize.py").symlink_to(theirs / "sitecustomize.py")
    ended = run("fix", "--venv", env, "--check")
    assert ended.exit_code == 2 and "as another account can write there" in ended.output
    assert not (theirs / "ran").exists()


def test_folders_of_root_are_its_own_with_any_umask(tmp_path: Path) -> None:
    """With 000 its account could alter the pip that root runs; with 077 it could read nothing."""
    layout = Layout("user", str(tmp_path / "fix"), f"{tmp_path}/fix/etc", f"{tmp_path}/fix/s", "")
    before = os.umask(0o000)
    try:
        make_folders(Machine(layout, (), OTHER, {}))
        os.umask(0o077)
        make_folders(Machine(layout, (), OTHER, {}))
    finally:
        os.umask(before)
    for path in (layout.prefix, layout.configs, layout.zipapp, layout.pip):
        assert Path(path).stat().st_mode & 0o777 in (0o755, 0o644), path
