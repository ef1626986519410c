"""Who put a llama_cpp in front of the build's own: found by the interpreter that imports it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from llamafleet.onhost.verify.imported import Imported, is_foreign, own_folder

ROOT = Path(__file__).parents[3]
LOOK = """
import json, sys
from dataclasses import asdict
sys.path[0] = sys.argv[1]
from llamafleet.onhost.verify import imported
print(json.dumps(asdict(imported.look())))
"""


@pytest.fixture
def venv(tmp_path: Path) -> Path:
    """A build's environment, with its llama_cpp."""
    folder = tmp_path / "venv"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder], check=True)
    package(packages(folder))
    return folder


def packages(venv: Path) -> Path:
    return next(venv.glob("lib/python*/site-packages"))


def package(folder: Path) -> Path:
    file = folder / "llama_cpp/__init__.py"
    file.parent.mkdir(parents=True)
    file.write_text("")
    return file


def look(venv: Path, **environment: str) -> Imported:
    argv = [str(venv / "bin/python"), "-s", "-c", LOOK, str(ROOT)]
    done = subprocess.run(argv, capture_output=True, text=True, check=True, env=environment)
    return Imported(**json.loads(done.stdout))


def foreign(found: Imported, venv: Path) -> bool:
    name = packages(venv).relative_to(venv) / "llama_cpp/lib/libllama.so"
    return is_foreign(found, own_folder(venv, [str(name)]))


def test_the_build_s_own(venv: Path) -> None:
    found = look(venv, GGML_X="1", HOME="/root", CUDA_VISIBLE_DEVICES="0")
    assert found.file == str(packages(venv) / "llama_cpp/__init__.py")
    assert (found.entry, found.by) == (str(packages(venv)), "")
    assert found.variables == {"GGML_X": "1", "CUDA_VISIBLE_DEVICES": "0"}
    assert not foreign(found, venv)


def test_by_pythonpath(venv: Path, tmp_path: Path) -> None:
    file = package(tmp_path / "mine")
    found = look(venv, PYTHONPATH=str(tmp_path / "mine"))
    assert (found.file, found.by) == (str(file), "PYTHONPATH") and foreign(found, venv)


@pytest.mark.parametrize(
    "line", ["import sys; sys.path.insert(0, {mine!r})", "{mine}", "../../../../mine"]
)
def test_by_a_pth_file(venv: Path, tmp_path: Path, line: str) -> None:
    """A folder comes behind the build's own; code may put one in front."""
    mine = tmp_path / "mine"
    if "import" not in line:
        (packages(venv) / "llama_cpp/__init__.py").unlink()
    file = package(mine)
    path = packages(venv) / "shadow.pth"
    path.write_text("# a comment\n" + line.format(mine=str(mine)) + "\n")
    found = look(venv)
    assert (found.file, found.by) == (str(file), str(path)) and foreign(found, venv)


def test_by_a_sitecustomize(venv: Path, tmp_path: Path) -> None:
    file, hook = package(tmp_path / "mine"), packages(venv) / "sitecustomize.py"
    hook.write_text(f"import sys; sys.path.insert(0, {str(tmp_path / 'mine')!r})\n")
    found = look(venv)
    assert (found.file, found.by) == (str(file), str(hook)) and foreign(found, venv)


def test_one_that_was_imported_before(venv: Path, tmp_path: Path) -> None:
    file = package(tmp_path / "mine")
    (packages(venv) / "sitecustomize.py").write_text(
        f"import sys; sys.path.insert(0, {str(tmp_path / 'mine')!r})\n"
        "import llama_cpp; llama_cpp.__spec__ = None; del sys.path[0]\n"
    )
    assert look(venv).file == str(file)


def test_a_module_in_the_place_of_the_package(venv: Path) -> None:
    """Beside the build's own, in the same folder: only where that one is gone it is imported."""
    beside = packages(venv) / "llama_cpp.py"
    beside.write_text("")
    assert not foreign(look(venv), venv)
    (packages(venv) / "llama_cpp/__init__.py").unlink()
    found = look(venv)
    assert found.file == str(beside) and foreign(found, venv)


def test_none_at_all(venv: Path) -> None:
    (packages(venv) / "llama_cpp/__init__.py").unlink()
    (packages(venv) / "llama_cpp").rmdir()
    found = look(venv)
    assert (found.file, found.by) == ("", "") and not foreign(found, venv)


def test_what_is_no_text_is_told_all_the_same(venv: Path, tmp_path: Path) -> None:
    folder = Path(os.fsdecode(os.fsencode(tmp_path) + b"/\xff"))
    package(folder)
    found = look(venv, PYTHONPATH=str(folder))
    assert found.file.endswith("/\ufffd/llama_cpp/__init__.py") and foreign(found, venv)
