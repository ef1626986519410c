"""The wheel of a build: the very files that were installed, and nothing that was not."""

from __future__ import annotations

import base64
import hashlib
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from llamafleet.onhost import pack
from llamafleet.onhost.job import JobFailed
from tests.onhost.wheels import write_wheel

FILES = {"llama_cpp/__init__.py": "a = 1\n", "llama_cpp/lib/libllama.so": "x" * 100}


def installed(folder: Path, files: dict[str, str] = FILES) -> Path:
    """An environment's folder with the wheel installed, and recorded as pip does it."""
    site = folder / "env/lib/python3.11/site-packages"
    with zipfile.ZipFile(write_wheel(folder, "llama-cpp-python", "0.3.36", files)) as wheel:
        wheel.extractall(site)
    info = site / "llama_cpp_python-0.3.36.dist-info"
    (info / "INSTALLER").write_text("pip\n")
    rows = []
    for path in sorted(site.rglob("*")):
        if path.is_file():
            digest = base64.urlsafe_b64encode(hashlib.sha256(path.read_bytes()).digest())
            told = f"sha256={digest.rstrip(b'=').decode()},{path.stat().st_size}"
            rows.append(f"{path.relative_to(site)},{',' if path.name == 'RECORD' else told}\n")
    (info / "RECORD").write_text("".join([*rows, "llama_cpp/__pycache__/a.pyc,,\n"]))
    return folder / "env"


def test_what_it_packs_pip_installs_again(tmp_path: Path) -> None:
    env = installed(tmp_path)
    wheel = pack.pack(env, tmp_path / "to")
    assert wheel.name == "llama_cpp_python-0.3.36-py3-none-any.whl"
    again = tmp_path / "again"
    argv = [sys.executable, "-m", "pip", "install", "--no-index", "--no-deps", "--target", again]
    subprocess.run([*argv, wheel], check=True, capture_output=True)
    for name, text in FILES.items():
        assert (again / name).read_text() == text
    assert not list(again.rglob("a.pyc"))


@pytest.mark.parametrize("lost", [True, False])
def test_a_file_that_is_not_as_recorded(tmp_path: Path, lost: bool) -> None:
    env = installed(tmp_path)
    (library,) = env.rglob("libllama.so")
    library.unlink() if lost else library.write_text("other")
    with pytest.raises((JobFailed, FileNotFoundError), match="libllama"):
        pack.pack(env, tmp_path / "to")
    argv = ["--prefix", str(env), "--to", str(tmp_path / "to")]
    assert pack.main(argv) == 1


def test_a_record_that_leads_elsewhere(tmp_path: Path) -> None:
    env = installed(tmp_path)
    (record,) = env.rglob("RECORD")
    record.write_text(record.read_text() + "../../../../outside,sha256=x,1\n")
    with pytest.raises(JobFailed, match="files of its folder alone"):
        pack.pack(env, tmp_path / "to")


def test_no_build(tmp_path: Path) -> None:
    with pytest.raises(JobFailed, match="found 0 of"):
        pack.pack(tmp_path, tmp_path / "to")
