"""Interpreters asked about themselves: real environments, and such as answer nothing."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest

from llamafleet.facts import environment
from llamafleet.facts.environment import NoAnswer, Said, attempt, candidates, describe, look
from llamafleet.mend.machine import run
from tests.onhost.wheels import write_wheel

STUB = {"llama_cpp/__init__.py": "__version__ = '0.3.36'\n", "llama_cpp/lib/libllama.so": "x"}
SYSTEM = Path("/usr/bin/python3")


ANSWERS = (
    'case $4 in describe) echo "llamafleet-answer %s";; *) echo "llamafleet-answer 3.11";; esac'
)


class Asked:
    """Runs commands in a folder with variables, as a user's shell does."""

    def __init__(self, folder: Path, **variables: str) -> None:
        self.env = {"PATH": os.environ["PATH"], "HOME": str(folder), **variables}
        self.folder = folder

    def __call__(
        self, argv: Sequence[str], seconds: float, variables: Mapping[str, str] | None
    ) -> Said:
        before = Path.cwd()
        os.chdir(self.folder)
        try:
            return run(argv, seconds, {**self.env, **(variables or {})})
        finally:
            os.chdir(before)


@pytest.fixture(scope="module")
def venv(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An environment as python3 -m venv makes it, with a llama_cpp of two files."""
    folder = tmp_path_factory.mktemp("made") / "venv"
    base = getattr(sys, "_base_executable", sys.executable)
    subprocess.run([base, "-m", "venv", "--without-pip", folder], check=True)
    install(folder / "bin/python", write_wheel(folder, "llama-cpp-python", "0.3.36", STUB))
    return folder


def install(python: Path, *words: str | Path) -> None:
    """By the pip of these tests."""
    argv = [sys.executable, "-m", "pip", "--python", python, "install", "--no-index", "--no-deps"]
    subprocess.run([*argv, *words], check=True, capture_output=True)


def test_an_environment_made_by_venv(venv: Path, tmp_path: Path) -> None:
    told = describe(str(venv / "bin/python"), Asked(tmp_path))
    assert told.virtual and told.prefix == str(venv)
    assert told.site.startswith(f"{venv}/lib") and told.user_site == told.uv == told.pip == ""
    assert [(d.name, d.version) for d in told.distributions] == [("llama-cpp-python", "0.3.36")]
    assert not told.externally_managed and not told.conda


def test_one_made_by_uv_has_no_pip(tmp_path: Path) -> None:
    uv = shutil.which("uv")
    if uv is None:
        pytest.skip("no uv here")
    base = getattr(sys, "_base_executable", sys.executable)
    subprocess.run([uv, "venv", "-q", "--python", base, tmp_path / "env"], check=True)
    told = describe(str(tmp_path / "env/bin/python"), Asked(tmp_path))
    assert told.uv and not told.pip and told.virtual


@pytest.mark.skipif(not SYSTEM.exists(), reason="no Python of the distribution")
def test_a_python_of_the_distribution(tmp_path: Path) -> None:
    """PEP 668: Debian's own file, where this Debian has one."""
    try:
        told = describe(str(SYSTEM), Asked(tmp_path))
    except NoAnswer as error:
        pytest.skip(str(error))
    managed = list(Path("/usr/lib").glob("python3*/EXTERNALLY-MANAGED"))
    assert bool(told.externally_managed) == bool(managed)
    assert not told.virtual and told.user_site.startswith(str(tmp_path))


def test_a_conda_environment(tmp_path: Path, venv: Path) -> None:
    """By its folder conda-meta, as conda 24.9 writes it."""
    shutil.copytree(venv, tmp_path / "env", symlinks=True)
    meta = tmp_path / "env/conda-meta"
    meta.mkdir()
    (meta / "history").touch()
    record = {"name": "llama-cpp-python", "version": "0.3.16", "channel": "conda-forge"}
    (meta / "llama-cpp-python-0.3.16-cpu_h1.json").write_text(json.dumps(record))
    told = describe(str(tmp_path / "env/bin/python"), Asked(tmp_path))
    assert told.conda and told.conda_package.endswith("llama-cpp-python-0.3.16-cpu_h1.json")


def test_the_copy_that_is_imported(venv: Path, tmp_path: Path) -> None:
    seen = look(str(venv / "bin/python"), Asked(tmp_path))
    (copy,) = seen.copies
    assert (copy.by, copy.version, copy.folder) == ("environment", "0.3.36", seen.found)
    assert copy.libraries == {"lib/libllama.so": 1} and not copy.missing and copy.tag


def test_what_it_needs_by_its_own_metadata(tmp_path: Path, venv: Path) -> None:
    """And what that needs, where it is there; nothing of its extras."""
    shutil.copytree(venv, tmp_path / "env", symlinks=True)
    python = tmp_path / "env/bin/python"
    install(python, write_wheel(tmp_path, "jinja2", "3.1", {"jinja2.py": ""}))
    (site,) = (tmp_path / "env").glob("lib/python*/site-packages")
    for name, needs in (
        (
            "llama_cpp_python-0.3.36",
            ("Jinja2>=2.11.3", "numpy", 'uvicorn>=0.22; extra == "server"'),
        ),
        ("jinja2-3.1", ("Markup_Safe (>=2.0)", 'Babel>=2.7; extra == "i18n"')),
    ):
        with (site / f"{name}.dist-info/METADATA").open("a") as file:
            file.write("".join(f"Requires-Dist: {one}\n" for one in needs))
    (copy,) = look(str(python), Asked(tmp_path)).copies
    assert copy.requires == ("jinja2", "numpy", "markup-safe")


@pytest.mark.parametrize(("by", "here"), [("PYTHONPATH", False), ("current folder", True)])
def test_a_copy_in_front(venv: Path, tmp_path: Path, by: str, here: bool) -> None:
    other = tmp_path / "other"
    (other / "llama_cpp").mkdir(parents=True)
    (other / "llama_cpp/__init__.py").touch()
    asked = Asked(other) if here else Asked(tmp_path, PYTHONPATH=str(other))
    seen = look(str(venv / "bin/python"), asked)
    assert [copy.by for copy in seen.copies] == [by, "environment"]
    assert seen.found == f"{other}/llama_cpp"


def test_a_copy_in_the_users_site(tmp_path: Path) -> None:
    """Of a Python that is no environment, as pip --user installs."""
    base = getattr(sys, "_base_executable", sys.executable)
    asked = Asked(tmp_path)
    site = Path(describe(base, asked).user_site)
    assert site.is_relative_to(tmp_path)
    (site / "llama_cpp").mkdir(parents=True)
    (site / "llama_cpp/__init__.py").touch()
    seen = look(base, asked)
    assert next(copy.by for copy in seen.copies) == "user site"


def test_a_removed_library_is_named(venv: Path, tmp_path: Path) -> None:
    shutil.copytree(venv, tmp_path / "env", symlinks=True)
    wheel = write_wheel(tmp_path, "llama-cpp-python", "0.3.36", STUB)
    install(tmp_path / "env/bin/python", "--force-reinstall", wheel)
    (gone,) = (tmp_path / "env").rglob("libllama.so")
    gone.unlink()
    seen = look(str(tmp_path / "env/bin/python"), Asked(tmp_path))
    assert seen.copies[0].missing == ("llama_cpp/lib/libllama.so",)


@pytest.mark.parametrize(
    ("code", "words"),
    [
        ("import no_such_module", "No module named 'no_such_module'"),
        ("raise SystemExit(3)", "SystemExit: 3"),
        ("import os; os.kill(os.getpid(), 4)", "ended with signal 4"),
        ("import os; os._exit(7)", "ended with status 7"),
        ("import time; time.sleep(60)", "no end after"),
        ("raise RuntimeError('a\\nb: cannot open')", "RuntimeError: b: cannot open"),
    ],
)
def test_an_import_that_fails_is_an_answer(
    venv: Path, tmp_path: Path, code: str, words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "llama_cpp").mkdir()
    (tmp_path / "llama_cpp/__init__.py").write_text(code)
    monkeypatch.setattr(environment, "TRIAL_S", 1.0)
    trial = attempt(str(venv / "bin/python"), Asked(tmp_path))
    assert not trial.imported and words in trial.error


@pytest.mark.parametrize(
    ("program", "words"),
    [
        ("echo llamafleet-answer 2.7", "found Python 2.7; expected 3.10 to"),
        ("exit 3", "found no Python that runs (it ended with status 3"),
        ("echo llamafleet-answer 3.11", "found no answer that is understood"),
        (ANSWERS % "{}", "found no answer that is understood"),
        (ANSWERS % "[1", "found no answer that is understood"),
    ],
)
def test_what_is_no_python(tmp_path: Path, program: str, words: str) -> None:
    fake = tmp_path / "python"
    fake.write_text(f"#!/bin/sh\n{program}\n")
    fake.chmod(0o755)
    with pytest.raises(NoAnswer) as caught:
        describe(str(fake), Asked(tmp_path))
    assert words in str(caught.value) and "; next: " in str(caught.value)


def test_which_environment_is_meant(tmp_path: Path) -> None:
    for name in ("venv", "conda", "work/.venv", "path", "own"):
        (tmp_path / name / "bin").mkdir(parents=True)
        for program in ("python", "python3"):
            (tmp_path / name / "bin" / program).touch(mode=0o755)
    environ = {
        "VIRTUAL_ENV": f"{tmp_path}/venv",
        "CONDA_PREFIX": f"{tmp_path}/conda",
        # uvx puts its own in front.
        "PATH": f"{tmp_path}/own/bin:{tmp_path}/path/bin",
    }
    found = candidates(environ, tmp_path / "work", f"{tmp_path}/own")
    assert [why for _, why in found] == [
        *("$VIRTUAL_ENV", "$CONDA_PREFIX", ".venv of this folder", "python3 on PATH"),
    ]
    assert found[-1][0] == f"{tmp_path}/path/bin/python3"
    assert candidates({"VIRTUAL_ENV": "/no/such"}, tmp_path, "/x") == []


def test_words_at_the_end_are_no_version(venv: Path, tmp_path: Path) -> None:
    """Of a sitecustomize that says something when the interpreter ends."""
    shutil.copytree(venv, tmp_path / "env", symlinks=True)
    (site,) = (tmp_path / "env").glob("lib/python*/site-packages")
    (site / "sitecustomize.py").write_text("import atexit; atexit.register(print, 'bye')")
    told = describe(str(tmp_path / "env/bin/python"), Asked(tmp_path))
    assert told.virtual


@pytest.mark.parametrize("how", ["path", "hook"])
def test_an_editable_installation(venv: Path, tmp_path: Path, how: str) -> None:
    """Its sources, by a .pth file or by a finder as scikit-build-core's."""
    shutil.copytree(venv, tmp_path / "env", symlinks=True)
    (site,) = (tmp_path / "env").glob("lib/python*/site-packages")
    sources = tmp_path / "my src"
    sources.mkdir()
    shutil.move(site / "llama_cpp", sources / "llama_cpp")
    (info,) = site.glob("llama_cpp_python-*.dist-info")
    told = {"dir_info": {"editable": True}, "url": sources.as_uri()}
    (info / "direct_url.json").write_text(json.dumps(told))
    (info / "RECORD").write_text("")
    if how == "path":
        (site / "_llama.pth").write_text(f"{sources}\n")
    else:
        (site / "_llama.pth").write_text("import _llama\n")
        (site / "_llama.py").write_text(
            "import importlib.util as u, sys\n"
            "class Finder:\n"
            "    def find_spec(self, name, path=None, target=None):\n"
            "        if name == 'llama_cpp':\n"
            f"            place = {str(sources / 'llama_cpp')!r}\n"
            "            return u.spec_from_file_location(\n"
            "                name, place + '/__init__.py', submodule_search_locations=[place])\n"
            "sys.meta_path.insert(0, Finder())\n"
        )
    python = str(tmp_path / "env/bin/python")
    assert describe(python, Asked(tmp_path)).editable == str(sources)
    seen = look(python, Asked(tmp_path))
    (copy,) = seen.copies
    assert copy.folder == seen.found == f"{sources}/llama_cpp" and copy.libraries


def test_an_active_environment_that_is_gone_is_no_other_one(tmp_path: Path) -> None:
    """As after an upgrade of the Python that it was made of."""
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin/python").symlink_to("/no/such")
    assert environment.broken({"VIRTUAL_ENV": str(tmp_path)}) == str(tmp_path)
    assert not environment.broken({}) and not environment.broken({"CONDA_PREFIX": str(tmp_path)})
    (tmp_path / "bin/python").unlink()
    (tmp_path / "bin/python").touch(0o755)
    assert not environment.broken({"VIRTUAL_ENV": str(tmp_path)})
