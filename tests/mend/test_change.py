"""A change of an environment by the real pip: done, taken back, cut off at any point."""

from __future__ import annotations

import errno
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest

from llamafleet.facts.environment import describe
from llamafleet.mend.change import Change, Journal, changed
from llamafleet.mend.machine import Machine, machine, run
from llamafleet.mend.work import Failed
from llamafleet.plans.mend.plan import Mending
from llamafleet.protocol.environment import Distribution, Environment
from llamafleet.settings import Settings
from llamafleet.zipapps import pip_zipapp
from tests.onhost.wheels import write_wheel

OLD = {
    "llama_cpp/__init__.py": "__version__ = 'old'\n",
    "llama_cpp/lib/libllama.so": "old",
    # Older releases put llama.cpp's own installation beside the package.
    "lib/libllama.so": "old",
    "include/llama.h": "old",
}
NEW = {"llama_cpp/__init__.py": "__version__ = 'new'\n", "llama_cpp/lib/libggml-cuda.so": "new"}
OTHER = {"numpy/__init__.py": ""}


class Place:
    """A real environment with the old one, and a wheel of the new one."""

    def __init__(self, folder: Path, template: Path) -> None:
        shutil.copytree(template, folder / "env", symlinks=True)
        self.python = str(folder / "env/bin/python")
        (folder / "new").mkdir()
        self.wheel = write_wheel(folder / "new", "llama-cpp-python", "0.3.36", NEW)
        self.here = here(folder)
        self.environment = describe(self.python, self.here.ask)
        self.site = Path(self.environment.site)
        self.mending = mending(self.environment)
        self.change = Change(self.here, str(self.site))
        self.before = self.files()

    def files(self) -> dict[str, bytes]:
        """All that is in the environment, but what Python compiled."""
        return {
            str(path.relative_to(self.site)): path.read_bytes()
            for path in sorted(self.site.rglob("*"))
            if path.is_file() and "__pycache__" not in path.parts
        }

    def begin(self) -> tuple[Journal, Path]:
        wheel = self.change.take(self.wheel)
        return self.change.begin(self.environment, self.mending, wheel), wheel


def here(folder: Path) -> Machine:
    made = machine(1000, folder, {"PATH": os.environ["PATH"], "HOME": str(folder)})
    Path(made.layout.prefix).mkdir(parents=True)
    Path(made.layout.pip).write_bytes(pip_zipapp())
    return made


def mending(environment: Environment) -> Mending:
    return Mending(
        needed=True,
        reason="cpu_only",
        site=environment.site,
        scheme="environment",
        old="0.3.16",
        new="0.3.36",
        backend="cpu",
    )


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A real environment with two packages."""
    folder = tmp_path_factory.mktemp("template")
    base = getattr(sys, "_base_executable", sys.executable)
    subprocess.run([base, "-m", "venv", "--without-pip", folder / "env"], check=True)
    old = write_wheel(folder, "llama-cpp-python", "0.3.16", OLD)
    other = write_wheel(folder, "numpy", "2.0", OTHER)
    argv = [sys.executable, "-m", "pip", "--python", str(folder / "env/bin/python"), "install"]
    subprocess.run([*argv, "--no-index", "--no-deps", old, other], check=True, capture_output=True)
    return folder / "env"


@pytest.fixture
def place(tmp_path: Path, template: Path) -> Place:
    return Place(tmp_path, template)


def test_the_new_one_in_the_old_ones_place(place: Place) -> None:
    journal, wheel = place.begin()
    place.change.install(journal, wheel, Settings())
    place.change.commit()
    after = place.files()
    assert after["llama_cpp/__init__.py"] == NEW["llama_cpp/__init__.py"].encode()
    assert "llama_cpp/lib/libllama.so" not in after and "include/llama.h" not in after
    assert {n for n in after if "numpy" in n} == {n for n in place.before if "numpy" in n}
    environment = describe(place.python, place.here.ask)
    assert not changed(place.environment.distributions, environment.distributions, ())
    assert place.change.unfinished() is None and not place.change.folder.exists()


def test_the_old_one_comes_back(place: Place) -> None:
    journal, wheel = place.begin()
    place.change.install(journal, wheel, Settings())
    assert place.files() != place.before
    # A restoration that was cut off before is none the worse.
    for name in journal.names[:2]:
        (place.site / name).unlink(missing_ok=True)
    place.change.restore(journal)
    assert place.files() == place.before
    assert place.change.unfinished() is None
    said = run([place.python, "-c", "import llama_cpp; print(llama_cpp.__version__)"], 30, {})
    assert said.output.strip() == "old"


@pytest.mark.parametrize("point", range(4))
def test_one_that_was_cut_off_is_taken_back(place: Place, point: int) -> None:
    """As pip leaves it: nothing done, the old one moved away, half of the new one there."""
    journal, _ = place.begin()
    if point > 0:
        (place.site / "llama_cpp").rename(place.site / "~lama_cpp")
        old = place.site / "llama_cpp_python-0.3.16.dist-info"
        old.rename(place.site / "~lama_cpp_python-0.3.16.dist-info")
        (place.site / "include").rename(place.site / "~nclude")
    if point > 1:
        (place.site / "llama_cpp/lib").mkdir(parents=True)
        (place.site / "llama_cpp/lib/libggml-cuda.so").write_text("ne")
    if point > 2:
        (place.site / "llama_cpp_python-0.3.36.dist-info").mkdir()
    found = Change(place.here, str(place.site)).unfinished()
    assert found == journal
    Change(place.here, str(place.site)).restore(journal)
    assert place.files() == place.before


def test_one_that_was_killed_is_taken_back(place: Place) -> None:
    """kill -9 of it and of its pip, amid the installation."""
    journal, wheel = place.begin()
    child = os.fork()
    if child == 0:
        os.setsid()
        try:
            place.change.install(journal, wheel, Settings())
        finally:
            os._exit(0)
    end, there = time.monotonic() + 30, set(os.listdir(place.site))  # noqa: PTH208
    # The folder alone: what pip moves away meanwhile can't be walked through.
    while set(os.listdir(place.site)) == there and time.monotonic() < end:  # noqa: PTH208
        time.sleep(0.001)
    for entry in Path("/proc").glob("[0-9]*"):
        # pip runs in a session of its own: found by the wheel's path on its command line.
        try:
            if str(wheel).encode() in (entry / "cmdline").read_bytes():
                os.kill(int(entry.name), signal.SIGKILL)
        except OSError:
            continue
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    again = Change(place.here, str(place.site))
    found = again.unfinished()
    assert found is not None
    again.restore(found)
    assert place.files() == place.before


@pytest.mark.long
def test_a_users_own_site(tmp_path: Path) -> None:
    """Of a Python that is no environment: the old one in the home, and nothing beside it."""
    base = getattr(sys, "_base_executable", sys.executable)
    made = here(tmp_path)
    environment = describe(base, made.ask)
    if environment.externally_managed or not environment.user_site:
        pytest.skip("this Python takes nothing from pip")
    site = Path(environment.user_site)
    assert site.is_relative_to(tmp_path)
    (tmp_path / "new").mkdir()
    wheels = [
        write_wheel(tmp_path, "llama-cpp-python", "0.3.16", OLD),
        write_wheel(tmp_path / "new", "llama-cpp-python", "0.3.36", NEW),
    ]
    change = Change(made, str(site))
    told = replace(mending(environment), scheme="user site", site=str(site), old="")
    first = change.take(wheels[0])
    change.install(change.begin(environment, told, first), first, Settings())
    change.commit()
    assert (site / "llama_cpp/lib/libllama.so").exists() and (site / "include/llama.h").exists()
    wheel = change.take(wheels[1])
    journal = change.begin(environment, told, wheel)
    change.install(journal, wheel, Settings())
    assert not (site / "include/llama.h").exists() and (site / "llama_cpp/__init__.py").exists()
    change.restore(journal)
    assert (site / "include/llama.h").read_text() == "old"
    assert {path.name for path in site.iterdir()} == set(journal.there)


def test_a_users_own_site_elsewhere(tmp_path: Path) -> None:
    """PYTHONUSERBASE names it: what is kept and what pip changes is the same folder."""
    base, kept = getattr(sys, "_base_executable", sys.executable), tmp_path / "elsewhere"
    made = here(tmp_path)
    made = replace(made, environ={**made.environ, "PYTHONUSERBASE": str(kept)})
    environment = describe(base, made.ask)
    if environment.externally_managed or not environment.user_site:
        pytest.skip("this Python takes nothing from pip")
    site = Path(environment.user_site)
    assert site.is_relative_to(kept)
    change = Change(made, str(site))
    told = replace(mending(environment), scheme="user site", site=str(site), old="")
    wheel = change.take(write_wheel(tmp_path, "llama-cpp-python", "0.3.36", NEW))
    change.install(change.begin(environment, told, wheel), wheel, Settings())
    assert (site / "llama_cpp/__init__.py").exists()
    assert not (tmp_path / ".local/lib").exists()


def test_a_disk_that_takes_nothing_back(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is said that the old one is not back, and where its files are; nothing is forgotten."""
    journal, _ = place.begin()

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as disk:
        disk.setattr("llamafleet.mend.change.shutil.copyfileobj", full)
        with pytest.raises(Failed, match=r"can't be put back .*No space.*; next: .*old\.tar"):
            place.change.restore(journal)
    found = place.change.unfinished()
    assert found == journal
    place.change.restore(journal)
    assert place.files() == place.before


def test_what_pip_says_is_told_where_it_fails(place: Place) -> None:
    journal, wheel = place.begin()
    wheel.write_bytes(b"no zip")
    with pytest.raises(Failed, match=r"pip install: found status 1 \(.*"):
        place.change.install(journal, wheel, Settings())
    place.change.restore(journal)
    assert place.files() == place.before


def test_a_record_that_names_files_of_others(place: Place) -> None:
    (record,) = place.site.glob("llama_cpp_python-*/RECORD")
    record.write_text(record.read_text() + "../../../../../other,,\n")
    with pytest.raises(Failed, match="files of this environment alone"):
        place.begin()
    assert place.change.unfinished() is None


def test_a_file_of_another_package(place: Place) -> None:
    """The new wheel would write over it, and no copy of it is kept."""
    files = {**NEW, "include/ggml.h": "new"}
    wheel = write_wheel(place.wheel.parent, "llama-cpp-python", "0.3.37", files)
    (place.site / "include/ggml.h").write_text("theirs")
    with pytest.raises(Failed, match=r"include/ggml\.h: found a file .* nothing was changed"):
        place.change.begin(place.environment, place.mending, place.change.take(wheel))
    assert place.change.unfinished() is None


def test_of_a_new_one_alone_no_folder_stays(place: Place) -> None:
    """Where there was no old one before."""
    for name in ("llama_cpp", "lib", "include", "llama_cpp_python-0.3.16.dist-info"):
        shutil.rmtree(place.site / name)
    before = sorted(place.site.rglob("*"))
    wheel = write_wheel(place.wheel.parent, "llama-cpp-python", "0.3.37", OLD)
    wheel = place.change.take(wheel)
    journal = place.change.begin(place.environment, place.mending, wheel)
    place.change.install(journal, wheel, Settings())
    assert (place.site / "include/llama.h").exists()
    place.change.restore(journal)
    assert sorted(place.site.rglob("*")) == before


def test_a_journal_that_cant_be_read(place: Place) -> None:
    place.begin()
    (place.change.folder / "journal.json").write_text("{}")
    with pytest.raises(Failed, match="found no journal of a change"):
        place.change.unfinished()


@pytest.mark.parametrize("kind", ["link", "pipe"])
def test_a_wheel_that_is_no_file_of_its_own(place: Place, kind: str, tmp_path: Path) -> None:
    """Root takes it from a folder that another account can write."""
    wheel = tmp_path / "llama_cpp_python-1-py3-none-any.whl"
    wheel.symlink_to(place.wheel) if kind == "link" else os.mkfifo(wheel)
    with pytest.raises((OSError, Failed)):
        place.change.take(wheel)


def test_what_else_changed_is_named() -> None:
    one = Distribution("numpy", "2.0", "/s", "a")
    assert changed([one], [one], ()) == []
    new = Distribution("numpy", "2.1", "/s", "b")
    assert changed([one], [new], ()) == ["numpy 2.0 -> 2.1"]
    assert changed([one], [], ()) == ["numpy 2.0 -> none"]
    assert changed([one], [Distribution("numpy", "2.0", "/s", "c")], ()) == [
        "numpy 2.0 -> 2.0 (installed anew)"
    ]
    assert changed([], [one], ("numpy",)) == []
