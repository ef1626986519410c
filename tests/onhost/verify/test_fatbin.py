"""Machine code of CUDA libraries: recorded ones, and fresh ones where nvcc is here."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from llamafleet.onhost.verify.checks.machine_code import judge_machine_code
from llamafleet.onhost.verify.fatbin import Code, FatbinError, MachineCode, read

DATA = Path(__file__).parents[1] / "data" / "fatbin"
KERNEL = "__global__ void {name}(float *x) {{ x[threadIdx.x] *= 2.f; }}\n"


def sample(name: str) -> MachineCode:
    return read(DATA / f"{name}.so")


@pytest.mark.parametrize(
    ("name", "units", "codes"),
    [
        ("sm89-compute89-two-units", 2, ["sm_89", "compute_89"]),
        ("sm89-compute89-compressed", 2, ["sm_89", "compute_89"]),
        ("compute80", 1, ["compute_80"]),
        ("sm120a-sm90a-sm100f", 1, ["sm_90a", "compute_90a", "sm_100f", "sm_120a"]),
    ],
)
def test_recorded_libraries(name: str, units: int, codes: list[str]) -> None:
    found = sample(name)
    assert len(found.units) == units
    assert [str(code) for code in found.codes] == codes


NVCC = shutil.which("nvcc") or next(
    (str(path) for path in sorted(Path("/usr/local").glob("cuda*/bin/nvcc"))), None
)


@pytest.mark.skipif(NVCC is None, reason="no nvcc on the path or in /usr/local/cuda*")
@pytest.mark.parametrize(
    ("options", "codes"),
    [
        (["compute_75,code=sm_75"], ["sm_75"]),
        (
            ["compute_80,code=sm_80", "compute_89,code=compute_89"],
            ["sm_80", "compute_89"],
        ),
        (["compute_89,code=[sm_89,compute_89]"], ["sm_89", "compute_89"]),
        (["compute_90a,code=sm_90a", "compute_120,code=sm_120"], ["sm_90a", "sm_120"]),
    ],
)
def test_what_nvcc_was_asked_for_is_found(
    tmp_path: Path, options: list[str], codes: list[str]
) -> None:
    sources = []
    for name in ("one", "two"):
        source = tmp_path / f"{name}.cu"
        source.write_text(KERNEL.format(name=name))
        sources.append(str(source))
    library = tmp_path / "lib.so"
    architectures = [part for option in options for part in ("-gencode", f"arch={option}")]
    shared = ["-shared", "-Xcompiler", "-fPIC", "-cudart", "none", "-o", str(library)]
    subprocess.run([str(NVCC), *shared, *architectures, *sources], check=True, cwd=tmp_path)
    found = read(library)
    assert len(found.units) == 2
    assert [str(code) for code in found.codes] == codes


@pytest.mark.parametrize(
    ("code", "capability", "runs"),
    [
        (Code(8, 0, ptx=False), (8, 9), True),
        (Code(8, 0, ptx=False), (8, 6), True),
        (Code(8, 9, ptx=False), (8, 6), False),
        (Code(8, 9, ptx=False), (9, 0), False),
        (Code(8, 9, ptx=True), (9, 0), True),
        (Code(8, 9, ptx=True), (8, 6), False),
        (Code(12, 0, ptx=False, suffix="a"), (12, 0), True),
        (Code(12, 0, ptx=False, suffix="a"), (12, 1), False),
        (Code(9, 0, ptx=True, suffix="a"), (10, 0), False),
        (Code(10, 0, ptx=False, suffix="f"), (10, 3), True),
        (Code(10, 0, ptx=True, suffix="f"), (12, 0), False),
    ],
)
def test_what_runs_where(code: Code, capability: tuple[int, int], runs: bool) -> None:
    assert code.runs_on(capability) is runs


def test_machine_code_for_the_gpu_passes() -> None:
    check = judge_machine_code(sample("sm89-compute89-two-units"), ["8.9"])
    assert check.status == "pass"
    assert "yes" in check.found


def test_ptx_alone_is_a_finding_of_its_own() -> None:
    check = judge_machine_code(sample("sm89-compute89-two-units"), ["9.0"])
    assert check.status == "warn"
    assert check.found.startswith("machine code for this GPU (9.0): no, PTX only; the first start")
    assert "-DCMAKE_CUDA_ARCHITECTURES=90" in check.next


def test_no_code_for_the_gpu_is_red() -> None:
    check = judge_machine_code(sample("sm89-compute89-two-units"), ["8.6"])
    assert check.status == "fail"
    assert "2 of 2 translation units" in check.found
    assert "-DCMAKE_CUDA_ARCHITECTURES=86" in check.next


def test_each_gpu_of_a_mixed_host_counts() -> None:
    check = judge_machine_code(sample("sm89-compute89-two-units"), ["8.9", "7.5"])
    assert check.status == "fail"
    assert "(7.5): no" in check.found


def test_one_unit_without_code_is_red() -> None:
    """A kernel of that unit would abort on first use, however many others have code."""
    good = frozenset({Code(8, 9, ptx=False)})
    check = judge_machine_code(MachineCode((good, frozenset({Code(7, 5, ptx=False)}))), ["8.9"])
    assert check.status == "fail"
    assert "1 of 2" in check.found


def test_no_code_at_all_is_red() -> None:
    assert judge_machine_code(MachineCode(()), ["8.9"]).status == "fail"


def test_a_library_without_cuda_is_named() -> None:
    import _ctypes

    with pytest.raises(FatbinError, match=r"no section \.nv_fatbin"):
        read(Path(_ctypes.__file__))


def test_a_text_file_is_named(tmp_path: Path) -> None:
    path = tmp_path / "lib.so"
    path.write_text("not a library\n" * 10)
    with pytest.raises(FatbinError, match="no 64-bit"):
        read(path)


def test_a_cut_library_is_named(tmp_path: Path) -> None:
    path = tmp_path / "lib.so"
    whole = (DATA / "compute80.so").read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(FatbinError, match="cut off"):
        read(path)
