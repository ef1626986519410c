"""A wheel that another host built: refused by name where it is not that very one, or not for here.

A build that keeps its wheel, and one that installs it, stand in test_build.py.
"""

from __future__ import annotations

import hashlib
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest

from llamafleet.onhost import wheel
from llamafleet.onhost.job import JobFailed
from llamafleet.onhost.product import import_check
from llamafleet.protocol.job import SharedWheel
from tests.onhost.runner import Runner
from tests.onhost.test_build import INPUTS, Build

CONTENT = b"of a wheel"
LIBRARY = "llama_cpp/lib/libllama.so"
SHARED = SharedWheel(
    host="gpu-a",
    name="llama_cpp_python-0.3.36-py3-none-linux_x86_64.whl",
    sha256=hashlib.sha256(CONTENT).hexdigest(),
    size=len(CONTENT),
    libraries={LIBRARY: "a" * 64},
    needs=("AVX2", "FMA"),
)
ENV = {"PATH": "/usr/bin:/bin"}


class Taker:
    """A host that is to install that wheel, as far as it comes."""

    def __init__(self, root: Path, content: bytes = CONTENT, **changes: Any) -> None:
        self.file = root / SHARED.name
        self.file.write_bytes(content)
        (root / "llama_cpp_python-0.3.36.tar.gz").touch()
        (root / "requirements.txt").touch()
        native = asdict(replace(INPUTS, cpu_flags="0" * 16))
        told = {"inputs": native, "wheel": asdict(SHARED), "wheel_file": str(self.file), **changes}
        self.build = Build(Runner(root), root, **told)

    def refused(self) -> str:
        """Why nothing was installed; nothing is left of it."""
        assert self.build.run().returncode == 1
        assert not self.build.prefix.exists()
        return str(self.build.stamp["error"]["lines"][0])


@pytest.mark.parametrize("content", [CONTENT + b"\0", CONTENT[:-1], b""])
def test_another_file_is_never_installed(tmp_path: Path, content: bytes) -> None:
    taken = Taker(tmp_path, content)
    found = hashlib.sha256(content).hexdigest()
    assert taken.refused() == (
        f"{taken.file}: found {found}; expected sha256 {SHARED.sha256}, the wheel of gpu-a; "
        "next: run the same command again"
    )


def test_a_wheel_that_is_gone_is_said(tmp_path: Path) -> None:
    taken = Taker(tmp_path)
    taken.file.unlink()
    assert f"{taken.file}: found no file; expected sha256" in taken.refused()


def compiler(folder: Path, *sets: str) -> str:
    """A compiler that uses these for its CPU."""
    path = folder / "c++"
    more = "".join(f"echo '#define __{name}__ 1'; " for name in sets)
    path.write_text(
        "#!/bin/sh\necho '#define __SSE2__ 1'; echo '#define __GNUC__ 12'\n"
        f'test "$1" != -march=native || {{ {more}echo "#define __znver4__ 1"; }}\n'
    )
    path.chmod(0o755)
    return str(path)


def test_a_cpu_that_lacks_what_the_code_uses_is_refused_by_its_name(tmp_path: Path) -> None:
    """The kernel may list the same flags: it lists none that it does not know."""
    taken = Taker(tmp_path, environment={"CXX": compiler(tmp_path, "FMA", "AVX")})
    assert taken.refused() == (
        "CPU: found that it lacks AVX2; expected all that the compiler used on gpu-a, whose wheel "
        "this is; next: set build_sharing = 'host' for this host, or cpu_baseline for all hosts"
    )


def test_a_cpu_that_has_more_is_no_fault(tmp_path: Path) -> None:
    has = wheel.native_sets(compiler(tmp_path, "FMA", "AVX2", "AVX512F"), ENV)
    assert has == ("AVX2", "AVX512F", "FMA")
    wheel.refuse_other_cpu(SHARED, has)


def test_a_compiler_that_does_not_tell_is_no_word_of_the_cpu(tmp_path: Path) -> None:
    silent = tmp_path / "c++"
    silent.write_text("#!/bin/sh\necho 'c++: bad option' >&2\nexit 1\n")
    silent.chmod(0o755)
    for path, said in ((silent, "c\\+\\+: bad option"), (tmp_path / "none", "it can't be run")):
        with pytest.raises(JobFailed, match=f"found no macros \\({said}"):
            wheel.native_sets(str(path), ENV)


@pytest.mark.parametrize(
    "found",
    [
        {f"lib/python3.12/site-packages/{LIBRARY}": "b" * 64},
        {},
        {
            f"lib/python3.12/site-packages/{LIBRARY}": "a" * 64,
            "lib/python3.12/site-packages/llama_cpp/lib/libmore.so": "a" * 64,
        },
    ],
)
def test_libraries_that_differ_are_named(found: dict[str, str]) -> None:
    with pytest.raises(JobFailed, match=r"found other libraries \(lib(llama|more)\.so\)"):
        wheel.check_installed(SHARED, found)


def test_the_same_libraries_below_another_python_are_the_same() -> None:
    wheel.check_installed(SHARED, {f"lib/python3.13/site-packages/{LIBRARY}": "a" * 64})


def test_an_import_that_a_signal_ends_is_told_by_its_name(tmp_path: Path) -> None:
    """Before: "ended with status -4"."""
    python = tmp_path / "python"
    python.write_text("#!/bin/sh\nkill -ILL $$\n")
    python.chmod(0o755)
    with pytest.raises(JobFailed, match="import llama_cpp was ended by SIGILL: found code that"):
        import_check(str(python), ENV, tmp_path)


@pytest.mark.parametrize("count", [0, 2])
def test_a_folder_without_the_one_wheel_is_refused(tmp_path: Path, count: int) -> None:
    for number in range(count):
        (tmp_path / f"{number}.whl").touch()
    with pytest.raises(JobFailed, match=f"found {count} wheels; expected the one that was built"):
        wheel.only_wheel(tmp_path)
