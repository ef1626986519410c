"""Two processes make the same bytes, and the bytes run."""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
import sys
import zipfile
from io import BytesIO
from pathlib import Path

import pytest

from llamafleet import zipapps
from llamafleet.protocol.pythons import PYTHONS
from llamafleet.tables import failures, miscompiles
from tests.onhost.runner import PYTHON, Runner

HASHES = """
import hashlib
from llamafleet import zipapps
from llamafleet.protocol.pythons import PYTHONS
for make in (zipapps.host_zipapp, zipapps.pip_zipapp):
    print(hashlib.sha256(make()).hexdigest())
"""


def test_another_process_makes_the_same_bytes() -> None:
    other = subprocess.run(
        [sys.executable, "-c", HASHES],
        env={"PYTHONHASHSEED": "7", "TZ": "Asia/Tokyo"},
        capture_output=True,
        text=True,
        check=True,
    ).stdout.split()
    here = [zipapps.host_zipapp(), zipapps.pip_zipapp()]
    assert other == [hashlib.sha256(data).hexdigest() for data in here]


def test_bytes_change_with_content_and_not_with_order() -> None:
    one = zipapps.archive({"a": b"1", "b": b"2"}, zipfile.ZIP_STORED)
    assert one == zipapps.archive({"b": b"2", "a": b"1"}, zipfile.ZIP_STORED)
    assert one != zipapps.archive({"a": b"1", "b": b"3"}, zipfile.ZIP_STORED)


def python(version: str) -> str:
    """An interpreter of that version, or the test is skipped. A shim may exist and not run."""
    path = shutil.which(f"python{version}")
    if path and subprocess.run([path, "-V"], capture_output=True, check=False).returncode == 0:
        return path
    pytest.skip(f"no python{version} here")


# -I -S: no site-packages at all.
BARE = ("-I", "-S")


@pytest.mark.parametrize("version", PYTHONS)
def test_nothing_but_the_standard_library_is_needed(tmp_path: Path, version: str) -> None:
    command = [
        python(version),
        *BARE,
        str(Runner(tmp_path).zipapp),
        "status",
        "--dir",
        str(tmp_path),
    ]
    answer = subprocess.run(command, capture_output=True, text=True, check=True, cwd="/")
    assert json.loads(answer.stdout)["state"] == "absent"


def test_older_python_is_refused_in_words(tmp_path: Path) -> None:
    command = [python("3.9"), *BARE, str(Runner(tmp_path).zipapp), "status", "--dir", str(tmp_path)]
    answer = subprocess.run(command, capture_output=True, text=True, check=False)
    assert answer.returncode == 1
    assert answer.stderr == "llamafleet: found Python 3.9; expected 3.10 or newer\n"


def test_zipapp_holds_the_table_and_no_leftovers() -> None:
    with zipfile.ZipFile(BytesIO(zipapps.host_zipapp())) as archive:
        names = archive.namelist()
        table = json.loads(archive.read("llamafleet/onhost/failures.json"))
        compilers = json.loads(archive.read("llamafleet/onhost/miscompiles.json"))
    assert table == list(failures.rows())
    assert compilers == miscompiles.rows() != []
    assert not [n for n in names if "__pycache__" in n]
    assert "llamafleet/settings.py" not in names


def test_pip_installs_from_a_folder(tmp_path: Path) -> None:
    runner = Runner(tmp_path)
    with zipfile.ZipFile(tmp_path / "toy-1.0-py3-none-any.whl", "w") as wheel:
        wheel.writestr("toy.py", "def main() -> None: print('toy runs')\n")
        wheel.writestr(
            "toy-1.0.dist-info/METADATA", "Metadata-Version: 2.1\nName: toy\nVersion: 1.0\n"
        )
        wheel.writestr(
            "toy-1.0.dist-info/WHEEL",
            "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        )
        wheel.writestr("toy-1.0.dist-info/entry_points.txt", "[console_scripts]\ntoy = toy:main\n")
        wheel.writestr("toy-1.0.dist-info/RECORD", "")
    venv = tmp_path / "venv"
    subprocess.run([PYTHON, "-m", "venv", "--without-pip", venv], check=True)
    subprocess.run(
        [venv / "bin" / "python", runner.pip, "install", "--no-index", "-f", tmp_path, "toy"],
        check=True,
        capture_output=True,
    )
    said = subprocess.run([venv / "bin" / "toy"], check=True, capture_output=True, text=True)
    assert said.stdout == "toy runs\n"


@pytest.mark.parametrize("args", [[], ["job", "--kind", "other"], ["job", "--kind", "build"]])
def test_wrong_usage_is_status_2(tmp_path: Path, args: list[str]) -> None:
    assert Runner(tmp_path).run(*args).returncode == 2


def test_all_its_code_is_of_the_file_that_was_started(tmp_path: Path) -> None:
    """Another version may take its place at any time; then neither module nor table is found."""
    runner = Runner(tmp_path)
    script = tmp_path / "llamafleet-host.pyz"
    with zipfile.ZipFile(BytesIO(zipapps.host_zipapp())) as archive:
        files = {name: archive.read(name) for name in archive.namelist()}
    files["llamafleet/onhost/__main__.py"] = b"""
import sys
from pathlib import Path
def main():
    Path(sys.argv[0]).with_name("new").write_bytes(b"another version")
    Path(sys.argv[0]).with_name("new").replace(sys.argv[0])
    from llamafleet.onhost.verify import child, fatbin
    from llamafleet.onhost.diagnose import shipped
    print(len(shipped()) > 9, child.ROOT, child.OPENED)
"""
    script.write_bytes(zipapps.archive(files, zipfile.ZIP_STORED))
    answer = runner.run()
    number = answer.stdout.split("/proc/self/fd/")[1].split()[0]
    assert answer.stdout == f"True /proc/self/fd/{number} ({number},)\n", answer
