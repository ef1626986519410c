"""Where built libraries look for others: real ELF files, linked as the plan's options say."""

from __future__ import annotations

import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

import pytest

from llamafleet.onhost import elf, product
from llamafleet.onhost.job import JobFailed
from llamafleet.plans.build import cmake_options
from llamafleet.plans.plan import ToolkitPlan
from llamafleet.settings import Settings
from tests.plans.hosts import gcc

pytestmark = pytest.mark.skipif(not shutil.which("gcc"), reason="gcc missing")
OLD = "-Wl,--enable-new-dtags,-rpath,{toolkit}"
"""What the plan said before, as binutils takes it by default (2.40)."""


def planned(libdir: Path) -> str:
    """The plan's own options."""
    toolkit = ToolkitPlan("13.0", str(libdir.parent), str(libdir), "present", False, "")
    options = cmake_options(Settings(), gcc(12)[0], toolkit, ["8.9"])
    names = ("CMAKE_SHARED_LINKER_FLAGS", "CMAKE_SHARED_LINKER_FLAGS_RELEASE")
    return " ".join(options[name] for name in names)


def library(path: Path, text: str, *options: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    source = path.with_suffix(".c")
    source.write_text(text)
    argv = ["gcc", "-shared", "-fPIC", f"-Wl,-soname,{path.name}", "-o", str(path), str(source)]
    subprocess.run([*argv, *options], check=True)
    source.unlink()
    return path


def toolkit(root: Path, number: int) -> Path:
    """A toolkit whose libcudart tells its number, and whose libcublas asks a libcublasLt that it
    has no path to."""
    libdir = root / "lib64"
    library(libdir / "libcudart.so.13", f"int cudart(void) {{ return {number}; }}")
    lt = library(libdir / "libcublasLt.so.13", f"int lt(void) {{ return {number}; }}")
    cublas = "int lt(void); int cublas(void) { return lt(); }"
    library(libdir / "libcublas.so.13", cublas, str(lt))
    return libdir


@dataclass(frozen=True)
class Built:
    """A package of two libraries, as the build installs it."""

    root: Path
    libdir: Path

    @property
    def ggml(self) -> Path:
        return self.root / "llama_cpp/lib/libggml-cuda.so"

    def link(self, flags: str) -> None:
        base = library(self.ggml.with_name("libggml-base.so"), "int base(void) { return 1; }")
        linked = [str(self.libdir / name) for name in ("libcudart.so.13", "libcublas.so.13")]
        text = (
            "int cudart(void); int cublas(void); int base(void);\n"
            "int ggml(void) { return 100 * base() + 10 * cudart() + cublas(); }"
        )
        origin = "-Wl,-rpath,$ORIGIN"
        needs = ["-Wl,--allow-shlib-undefined", str(base), *linked]
        library(self.ggml, text, *flags.split(), origin, *needs)

    def told(self, library_path: str) -> str:
        """In a process of its own, as a user's shell with that LD_LIBRARY_PATH begins it."""
        code = f"import ctypes; print(ctypes.CDLL({str(self.ggml)!r}).ggml())"
        argv = ["/usr/bin/env", f"LD_LIBRARY_PATH={library_path}", "python3", "-I", "-c", code]
        done = subprocess.run(argv, capture_output=True, text=True, check=False)
        return done.stdout.strip() or done.stderr


@pytest.fixture
def built(tmp_path: Path) -> Built:
    return Built(tmp_path / "venv", toolkit(tmp_path / "cuda-13.0", 1))


@pytest.mark.skipif(not shutil.which("python3"), reason="python3 missing")
def test_another_toolkit_in_front_is_not_taken(built: Built, tmp_path: Path) -> None:
    """A decoy of the same names, and a libggml of another build."""
    decoy = toolkit(tmp_path / "cuda-13.2", 2)
    library(decoy / "libggml-base.so", "int base(void) { return 2; }")
    built.link(OLD.format(toolkit=built.libdir))
    assert built.told(str(decoy)) == "222"
    built.link(planned(built.libdir))
    assert built.told(str(decoy)) == built.told("") == "111"


def test_what_is_built_by_the_plan_has_the_right_path(built: Built, tmp_path: Path) -> None:
    built.link(planned(built.libdir))
    found = elf.read(built.ggml)
    assert found.rpath == (str(built.libdir), "$ORIGIN") and found.runpath == ()
    assert {"libcudart.so.13", "libcublas.so.13", "libggml-base.so"} <= set(found.needed)
    assert elf.wrong_path(found, str(built.libdir)) == ""
    # By another name of the same folder too.
    (tmp_path / "cuda").symlink_to("cuda-13.0")
    assert elf.wrong_path(found, str(tmp_path / "cuda/lib64")) == ""


def refused(built: Built) -> str:
    name = str(built.ggml.relative_to(built.root))
    with pytest.raises(JobFailed) as raised:
        product.refuse_wrong_paths(built.root, [name], str(built.libdir))
    return str(raised.value)


def test_a_path_that_the_environment_overrides_fails_the_build(built: Built) -> None:
    built.link(OLD.format(toolkit=built.libdir))
    assert f"found DT_RUNPATH {built.libdir}:$ORIGIN, which LD_LIBRARY_PATH" in refused(built)


def test_a_stub_or_another_toolkit_in_the_path_fails_the_build(
    built: Built, tmp_path: Path
) -> None:
    stubs = library(built.libdir / "stubs/libcuda.so", "int cu(void) { return 999; }").parent
    for folder in (stubs, toolkit(tmp_path / "cuda-12.4", 3)):
        # One library of CUDA among others is enough.
        library(folder / "libother.so", "int other(void) { return 0; }")
        built.link(f"{planned(built.libdir)} -Wl,-rpath,{folder}")
        assert f", with '{folder}'; expected DT_RPATH with CUDA's libr" in refused(built)
    built.link(f"{planned(built.libdir)} -Wl,-rpath,here")
    assert ", with 'here'; expected" in refused(built)


def test_no_path_to_the_toolkit_fails_the_build(built: Built) -> None:
    built.link("-Wl,--disable-new-dtags")
    assert "found DT_RPATH $ORIGIN, without the folder of libcu" in refused(built)


def test_a_compiler_s_own_folder_is_no_fault(built: Built, tmp_path: Path) -> None:
    """As of a gcc in /opt, whose libstdc++ is there."""
    library(tmp_path / "gcc-13/lib64/libstdc++.so.6", "int x;")
    built.link(f"{planned(built.libdir)} -Wl,-rpath,{tmp_path}/gcc-13/lib64")
    assert elf.wrong_path(elf.read(built.ggml), str(built.libdir)) == ""


def test_for_the_cpu_no_folder_of_cuda_is_right(built: Built) -> None:
    built.link(planned(built.libdir))
    assert f", with '{built.libdir}'" in elf.wrong_path(elf.read(built.ggml), "")
    own = elf.Dynamic(("libggml-base.so",), ("$ORIGIN",), ())
    assert elf.wrong_path(own, "") == elf.wrong_path(elf.Dynamic((), (), ()), "") == ""


def test_what_is_no_library_is_said(built: Built) -> None:
    built.link(planned(built.libdir))
    whole = built.ggml.read_bytes()
    for data, why in ((b"text", "is no 64-bit"), (whole[:70], "is cut off or altered")):
        built.ggml.write_bytes(data)
        assert why in refused(built)


CUDA_13 = Path("/opt/cuda-13.0/lib64")


@pytest.mark.parametrize(
    ("loaded", "stray"),
    [
        ("/opt/cuda-13.0/lib64/libcudart.so.13.0.96", False),
        ("/opt/cuda-13.2/lib64/libcudart.so.13.2.51", True),
        ("/opt/cuda-13.2/lib64/libcudart.so.13.2.51 (deleted)", True),
        ("/usr/lib/x86_64-linux-gnu/libcublasLt.so.13", True),
        ("/usr/lib/x86_64-linux-gnu/libcuda.so.580.95.05", False),
        ("/opt/cuda-13.0/lib64/stubs/libcuda.so", True),
        ("/usr/lib/x86_64-linux-gnu/libnvidia-ptxjitcompiler.so.580.95.05", False),
        ("/usr/lib/x86_64-linux-gnu/libcudadebugger.so.580.95.05", False),
    ],
)
def test_what_is_loaded_from_elsewhere(loaded: str, stray: bool) -> None:
    assert elf.strays([loaded], [CUDA_13]) == ([loaded] if stray else [])
