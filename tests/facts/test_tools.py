"""Compilers, toolkits, interpreters and the system around them."""

from __future__ import annotations

import platform
import sys
from pathlib import Path

import pytest

from llamafleet.facts.host import Compiler, Tool, Toolkit
from llamafleet.protocol.pythons import PYTHONS
from tests.facts.fakehost import FakeHost

ARM = platform.machine() == "aarch64"
ARCH_TARGET = "targets/sbsa-linux" if ARM else "targets/x86_64-linux"
MULTIARCH = f"lib/{platform.machine()}-linux-gnu"


def compiler(fake: FakeHost, path: Path | str, version: str) -> Path:
    return fake.program(
        path, f'[ "$1" = -dumpfullversion ] || [ "$1" = -dumpversion ] || exit 1\necho {version}'
    )


def toolkit(fake: FakeHost, root: Path, version: str = "13.0") -> Path:
    """A complete one, laid out as NVIDIA's packages do."""
    nvcc(fake, root / "bin/nvcc", version)
    fake.write(root / "bin/nvcc.profile", "")
    for name in ("cuda_runtime.h", "cublas_v2.h", "cccl/cub/cub.cuh"):
        fake.write(root / ARCH_TARGET / "include" / name, "")
    for name in ("libcudart.so", "libcublas.so", "stubs/libcuda.so"):
        fake.write(root / ARCH_TARGET / "lib" / name, "")
    for name, target in (("include", "include"), ("lib64", "lib")):
        (root / name).symlink_to(f"{ARCH_TARGET}/{target}")
    return root


def nvcc(fake: FakeHost, path: Path, version: str) -> None:
    fake.program(
        path,
        "echo 'nvcc: NVIDIA (R) Cuda compiler driver'\n"
        f"echo 'Cuda compilation tools, release {version}, V{version}.88'",
    )


def test_compilers(fake: FakeHost, shell: str) -> None:
    """The name that tells the version is preferred; two names of one program count once."""
    fake.shell = shell
    compiler(fake, "x86_64-linux-gnu-g++-12", "12.2.0")
    for name in ("g++-12", "g++"):
        (fake.bin / name).symlink_to("x86_64-linux-gnu-g++-12")
    compiler(fake, fake.root / "usr/bin/g++-14", "14.2.0")
    compiler(fake, "clang++-19", "19.1.7")
    compiler(fake, fake.root / "opt/rh/gcc-toolset-13/root/usr/bin/g++", "13.3.1")
    assert set(fake.snapshot().compilers) == {
        Compiler(str(fake.bin / "g++-12"), "gcc", "12.2.0"),
        Compiler(str(fake.root / "usr/bin/g++-14"), "gcc", "14.2.0"),
        Compiler(str(fake.bin / "clang++-19"), "clang", "19.1.7"),
        Compiler(str(fake.root / "opt/rh/gcc-toolset-13/root/usr/bin/g++"), "gcc", "13.3.1"),
    }


def test_compilers_that_do_not_count(fake: FakeHost) -> None:
    fake.program("g++", "echo 'error while loading shared libraries' >&2; exit 127")
    fake.program("g++-13", "echo 'cannot execute'")
    compiler(fake, "ccache", "12.2.0")
    (fake.bin / "g++-12").symlink_to("ccache")
    fake.write(fake.bin / "g++-11", "", mode=0o644)
    (fake.bin / "g++-10").symlink_to("gone")
    (fake.bin / "g++-9").mkdir()
    assert fake.snapshot().compilers == ()


def test_extra_compiler(fake: FakeHost) -> None:
    path = compiler(fake, fake.home / "tools/my-g++", "15.1.0")
    fake.extra = ("$HOME/tools/my-g++", str(fake.home / "missing-g++"))
    assert fake.snapshot().compilers == (Compiler(str(path), "gcc", "15.1.0"),)


def test_toolkit(fake: FakeHost, shell: str) -> None:
    fake.shell = shell
    root = toolkit(fake, fake.root / "usr/local/cuda-13.0")
    (fake.root / "usr/local/cuda").symlink_to("cuda-13.0")
    assert fake.snapshot().toolkits == (
        Toolkit(
            root=str(root),
            version="13.0",
            nvcc=True,
            cudart=True,
            cublas=True,
            cccl=True,
            libdir=str(root / "lib64"),
            names=(str(fake.root / "usr/local/cuda"),),
            build="13.0.88",
        ),
    )


@pytest.mark.parametrize(
    ("gone", "missing"),
    [
        ("bin/nvcc", ("nvcc",)),
        (f"{ARCH_TARGET}/lib/libcudart.so", ("cudart", "cublas")),
        (f"{ARCH_TARGET}/include/cuda_runtime.h", ("cudart",)),
        (f"{ARCH_TARGET}/lib/libcublas.so", ("cublas",)),
        (f"{ARCH_TARGET}/include/cublas_v2.h", ("cublas",)),
        (f"{ARCH_TARGET}/include/cccl", ("cccl",)),
        (f"{ARCH_TARGET}/lib/stubs", ("stubs/libcuda.so",)),
    ],
)
def test_incomplete_toolkit(fake: FakeHost, gone: str, missing: tuple[str, ...]) -> None:
    root = toolkit(fake, fake.root / "opt/cuda")
    (root / gone).rename(root / "elsewhere")
    (found,) = fake.snapshot().toolkits
    assert found.missing == missing


def test_nvcc_that_does_not_answer(fake: FakeHost) -> None:
    root = toolkit(fake, fake.root / "usr/local/cuda-12.8")
    fake.program(root / "bin/nvcc", "exit 1")
    (found,) = fake.snapshot().toolkits
    assert (found.version, found.missing) == ("", ("nvcc",))


def test_library_that_leads_nowhere(fake: FakeHost) -> None:
    root = toolkit(fake, fake.root / "usr/local/cuda-12.8")
    library = root / ARCH_TARGET / "lib/libcublas.so"
    library.unlink()
    library.symlink_to("libcublas.so.12")
    assert fake.snapshot().toolkits[0].missing == ("cublas",)


def test_folder_that_is_no_toolkit(fake: FakeHost) -> None:
    (fake.root / "usr/local/cuda-12.8/doc").mkdir(parents=True)
    assert fake.snapshot().toolkits == ()


def test_toolkit_from_wheels(fake: FakeHost) -> None:
    root = toolkit(fake, fake.prefix / "toolkits/cuda-13.0")
    assert [found.root for found in fake.snapshot().toolkits] == [str(root)]


def test_extra_toolkit(fake: FakeHost) -> None:
    root = toolkit(fake, fake.home / "cuda", "12.8")
    fake.extra = ("$HOME/cuda", str(fake.home / "missing"))
    assert [(found.root, found.version) for found in fake.snapshot().toolkits] == [
        (str(root), "12.8")
    ]


def test_nvcc_on_the_path(fake: FakeHost) -> None:
    """A link into a toolkit is followed; a wrapper script is no toolkit."""
    root = toolkit(fake, fake.folder / "elsewhere/cuda")
    (fake.bin / "nvcc").symlink_to(root / "bin/nvcc")
    wrapper = fake.root / "usr/local"
    fake.program(wrapper / "bin/nvcc", f'exec {root}/bin/nvcc "$@"')
    (wrapper / "include").mkdir()
    assert [found.root for found in fake.snapshot().toolkits] == [str(root)]


def test_toolkit_of_the_distribution(fake: FakeHost) -> None:
    usr = fake.root / "usr"
    nvcc(fake, usr / "bin/nvcc", "12.4")
    for name in ("cuda_runtime.h", "cublas_v2.h", "cub/cub.cuh"):
        fake.write(usr / "include" / name, "")
    for name in ("libcudart.so", "libcublas.so", "stubs/libcuda.so"):
        fake.write(usr / MULTIARCH / name, "")
    (found,) = fake.snapshot().toolkits
    assert (found.root, found.version, found.missing) == (str(usr), "12.4", ())
    assert found.libdir == str(usr / MULTIARCH)
    (usr / "include/cublas_v2.h").unlink()
    assert fake.snapshot().toolkits == ()


def test_interpreters(fake: FakeHost, shell: str) -> None:
    """Real path and version, once each; one that can't run does not count."""
    fake.shell = shell
    real = Path(sys.executable).resolve()
    for name in ("python3", "python3.11"):
        (fake.bin / name).symlink_to(real)
    fake.program("python3.12", "echo 'pyenv: python3.12: command not found' >&2; exit 127")
    fake.program(fake.root / "usr/bin/python3", "exit 1")
    version = ".".join(str(part) for part in sys.version_info[:3])
    (found,) = fake.snapshot().pythons
    assert (found.path, found.version) == (str(real), version)


@pytest.mark.parametrize(("version", "found"), [*((v, 1) for v in PYTHONS), ("3.9", 0)])
def test_each_supported_python_is_found_by_its_name(
    fake: FakeHost, shell: str, version: str, found: int
) -> None:
    fake.shell = shell
    (fake.bin / f"python{version}").symlink_to(sys.executable)
    assert len(fake.snapshot().pythons) == found


@pytest.mark.parametrize(("mode", "everyone"), [(0o700, False), (0o711, True)])
def test_interpreter_that_only_its_owner_reaches(fake: FakeHost, mode: int, everyone: bool) -> None:
    """The interpreter is told its folder's mode: tests' own folders are closed to others."""
    private = fake.folder / "private"
    private.mkdir()
    code = (
        "import os, sys\n"
        "real_stat = os.stat\n"
        f"closed = {str(private)!r}\n"
        "class Mode:\n"
        "    def __init__(self, mode): self.st_mode = mode\n"
        f"os.stat = lambda part: Mode({mode} if part == closed else 0o755)\n"
        f"sys.executable = sys._base_executable = closed + '/python3'\n"
        "exec(sys.argv[-1])\n"
    )
    fake.write(fake.folder / "shim.py", code)
    fake.program("python3", f'exec {sys.executable} {fake.folder}/shim.py "$4"')
    (found,) = fake.snapshot().pythons
    assert found == Tool(f"{private}/python3", found.version, everyone, trusted=False)


def test_shim_scripts_are_asked_by_their_plain_name_only(fake: FakeHost) -> None:
    fake.program("python3", f'echo python3 >> {fake.folder}/asked; exec {sys.executable} "$@"')
    fake.program("python3.11", f"echo python3.11 >> {fake.folder}/asked; exit 1")
    assert len(fake.snapshot().pythons) == 1
    assert (fake.folder / "asked").read_text() == "python3\n"


def test_extra_interpreter(fake: FakeHost) -> None:
    (fake.home / "bin").mkdir()
    (fake.home / "bin/python3").symlink_to(sys.executable)
    fake.extra = ("$HOME/bin/python3",)
    assert len(fake.snapshot().pythons) == 1


def test_cmake(fake: FakeHost) -> None:
    path = fake.program("cmake", "echo 'cmake version 3.25.1'; echo; echo 'CMake suite'")
    assert fake.snapshot().cmake == Tool(str(path), "3.25.1")
    fake.program("cmake", "echo broken >&2; exit 1")
    assert fake.snapshot().cmake is None


def test_podman_and_nvidia_s_container_toolkit(fake: FakeHost) -> None:
    """podman 5.4.2 makes a folder in its HOME before it tells a version; its generator does not."""
    podman = fake.program("podman", 'echo "stat $HOME/.config: no such file" >&2; exit 125')
    ctk = fake.program("nvidia-ctk", "echo NVIDIA Container Toolkit CLI version 1.18.0")
    snapshot = fake.snapshot()
    assert (snapshot.podman, snapshot.nvidia_ctk) == (None, Tool(str(ctk), "1.18.0"))
    assert not snapshot.quadlet
    generator = fake.root / "usr/lib/systemd/system-generators/podman-system-generator"
    fake.program(generator, "echo 5.4.2")
    snapshot = fake.snapshot()
    assert snapshot.podman == Tool(str(podman), "5.4.2") and snapshot.quadlet
    generator.unlink()
    fake.program("podman", "echo podman version 4.3.1")
    assert fake.snapshot().podman == Tool(str(podman), "4.3.1")


def test_distribution(fake: FakeHost) -> None:
    fake.write(
        fake.root / "etc/os-release",
        '# a comment\nNAME="Rocky Linux"\nID=\'rocky\'\nID_LIKE="rhel centos fedora"\n'
        'VERSION_ID="9.4"\nPRETTY_NAME="Rocky Linux 9.4 (Blue Onyx)"\nODD="unclosed\n\nnonsense\n',
    )
    fake.program("dnf", "")
    snapshot = fake.snapshot()
    assert (snapshot.os_id, snapshot.os_version) == ("rocky", "9.4")
    assert snapshot.os_like == ("rhel", "centos", "fedora")
    assert snapshot.os_name == "Rocky Linux 9.4 (Blue Onyx)"
    assert snapshot.package_manager == "dnf"


def test_distribution_that_does_not_say(fake: FakeHost) -> None:
    snapshot = fake.snapshot()
    assert (snapshot.os_id, snapshot.os_like, snapshot.package_manager) == ("", (), None)


@pytest.mark.parametrize(
    ("program", "output", "version"),
    [
        ("getconf", "glibc 2.36", "2.36"),
        ("ldd", "ldd (Ubuntu GLIBC 2.39-0ubuntu8.4) 2.39", "2.39"),
        ("ldd", "ldd (GNU libc) 2.34", "2.34"),
        ("ldd", "musl libc (x86_64)", None),
    ],
)
def test_c_library(fake: FakeHost, program: str, output: str, version: str | None) -> None:
    fake.program(program, f"echo '{output}'")
    assert fake.snapshot().glibc == version


@pytest.mark.parametrize(
    ("path", "content", "container"),
    [
        ("run/systemd/container", "systemd-nspawn\n", "systemd-nspawn"),
        (".dockerenv", "", "docker"),
        ("run/.containerenv", "", "podman"),
        ("proc/version", "Linux version 5.15.167.4-microsoft-standard-WSL2 (root@x)\n", "wsl"),
        ("proc/version", "Linux version 6.1.0-41-amd64\n", None),
    ],
)
def test_container(fake: FakeHost, path: str, content: str, container: str | None) -> None:
    fake.write(fake.root / path, content)
    assert fake.snapshot().container == container


def test_processor(fake: FakeHost) -> None:
    one = "processor\t: 0\nmodel name\t: AMD Ryzen 9 7950X\nflags\t\t: fpu avx2 avx512f\n\n"
    fake.write(fake.root / "proc/cpuinfo", one + one.replace(": 0", ": 1"))
    (fake.bin / "nproc").unlink()
    snapshot = fake.snapshot()
    assert (snapshot.cpu, snapshot.cores) == ("AMD Ryzen 9 7950X", 2)
    assert snapshot.cpu_flags == ("fpu", "avx2", "avx512f")


def test_processor_of_arm(fake: FakeHost) -> None:
    fake.write(fake.root / "proc/cpuinfo", "processor\t: 0\nFeatures\t: fp asimd sve\n\n")
    assert fake.snapshot().cpu_flags == ("fp", "asimd", "sve")


def memory(fake: FakeHost, group: str, limits: dict[str, tuple[str, int, int]]) -> None:
    """8 GiB in all, 6 free; `limits`: memory.max, memory.current, inactive_file by group."""
    fake.write(
        fake.root / "proc/meminfo",
        f"MemTotal: {8 * 2**20} kB\nMemFree: {2**20} kB\nMemAvailable: {6 * 2**20} kB\n",
    )
    fake.write(fake.root / "proc/self/cgroup", f"1:name=systemd:/x\n0::{group}\n")
    for name, (limit, current, inactive) in limits.items():
        folder = fake.root / "sys/fs/cgroup" / name
        fake.write(folder / "memory.max", limit + "\n")
        fake.write(folder / "memory.current", f"{current}\n")
        fake.write(folder / "memory.stat", f"anon 5\ninactive_file {inactive}\n")


GIB = 2**30


@pytest.mark.parametrize(
    ("group", "limits", "available_gib"),
    [
        ("/", {}, 6),
        ("/", {".": (str(4 * GIB), GIB, 0)}, 3),
        ("/", {".": (str(4 * GIB), 2 * GIB, GIB)}, 3),
        ("/a/b", {"a/b": ("max", GIB, 0), "a": (str(2 * GIB), GIB, 0)}, 1),
        ("/a/b", {"a/b": (str(3 * GIB), 4 * GIB, 0)}, 0),
        ("/a", {"a": (str(64 * GIB), GIB, 0)}, 6),
    ],
)
def test_memory(
    fake: FakeHost, group: str, limits: dict[str, tuple[str, int, int]], available_gib: int
) -> None:
    memory(fake, group, limits)
    snapshot = fake.snapshot()
    assert snapshot.memory_mib == 8 * 1024
    assert snapshot.memory_available_mib == available_gib * 1024
