"""A fake NVML: a C library under NVML's name that gives recorded answers, changed as a test wants.

    from tests.fakenvml import Fake, fake_nvml, fake_nvml_library
    __all__ = ["fake_nvml", "fake_nvml_library"]          # fixtures

    def test_it(fake_nvml: Fake) -> None:
        fake_nvml.devices(2)                                  # two cards as the recorded one
        fake_nvml.say("nvmlDeviceGetComputeMode", value=2, device=1)
        fake_nvml.say("nvmlDeviceGetTotalEccErrors", 1, 0, value=3)      # arguments after the name
        fake_nvml.fail("*", code=pynvml.NVML_ERROR_GPU_IS_LOST, after=40)  # from the 41st call on
        fake_nvml.hang("nvmlDeviceGetUtilizationRates", after=5)
        Nvml()                        # in this process: pynvml is made to load the fake
        subprocess.run(argv, env=os.environ | fake_nvml.env)             # in another one

Names are pynvml's; `field(ID, value)` answers nvmlDeviceGetFieldValues. Processes are
`processes("Compute", (pid, MiB), ...)`, a pid "child" is the newest child of the asking process. A
MIG device is `mig(parent, index, uuid, name, mib)`. What is said while a process runs is heard at
its next call. nvml.c describes the file that is written; h200.json is a card as recorded by
record.py. Needs gcc.
"""

from __future__ import annotations

import ctypes
import json
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

HERE = Path(__file__).parent
VARIABLE = "LLAMAFLEET_FAKE_NVML"
NAME = "libnvidia-ml.so.1"
SYSTEM = "-"
MIB = 1 << 20
FUNCTION_NOT_FOUND = 13

Key = tuple[str, str, int]
"""Device, function with its arguments, first call."""


class Fake:
    """The answers of one host. Every change is written at once."""

    def __init__(self, library: Path, file: Path) -> None:
        self.library, self.file = library, file
        self._answers: dict[Key, tuple[str, str]] = {}
        recorded = json.loads((HERE / "h200.json").read_text(encoding="utf-8"))
        self._card: list[tuple[str, Any]] = recorded["device"]
        for name, answer in recorded["system"]:
            self._put(SYSTEM, name, 0, *answer)
        self.devices(1)

    @property
    def env(self) -> dict[str, str]:
        """For a process that is to see this host."""
        return {"LD_LIBRARY_PATH": str(self.library.parent), VARIABLE: str(self.file)}

    def devices(self, count: int) -> None:
        """So many cards as the recorded one, each with a UUID and a place of its own."""
        self._put(SYSTEM, "nvmlDeviceGetCount", 0, 0, str(count), write=False)
        for index in range(count):
            for name, (code, value) in self._card:
                self._put(str(index), name, 0, code, value, write=False)
            self.say("nvmlDeviceGetUUID", value=uuid(index), device=index)
            self.say("nvmlDeviceGetPciInfo", value=f"00000000:{index + 1:02X}:00.0", device=index)

    def say(
        self, name: str, *arguments: int, value: object, device: int | str = 0, after: int = 0
    ) -> None:
        """`value`: a number, text, or a tuple of numbers in the order of the structure."""
        parts = value if isinstance(value, tuple) else (value,)
        self._put(device, _key(name, arguments), after, 0, " ".join(map(str, parts)))

    def fail(
        self, name: str, *arguments: int, code: int, device: int | str = 0, after: int = 0
    ) -> None:
        """The function gives this NVML_ERROR; "*": every function of that device."""
        self._put(device, _key(name, arguments), after, code, "")

    def missing(self, name: str, device: int | str = 0) -> None:
        """The library lacks this function, as that of an older driver does."""
        self.fail(name, code=FUNCTION_NOT_FOUND, device=device)

    def hang(self, name: str, *arguments: int, device: int | str = 0, after: int = 0) -> None:
        self._put(device, _key(name, arguments), after, "hang", "")

    def field(self, number: int, value: int, device: int | str = 0, after: int = 0) -> None:
        self._put(device, f"field/{number}", after, 0, str(value))

    def processes(
        self, kind: str, *found: tuple[int | str, float], device: int | str = 0, after: int = 0
    ) -> None:
        """Of one kind, Compute, Graphics or MPSCompute: pid and MiB of each."""
        value = " ".join(f"{pid} {int(mib * MIB)}" for pid, mib in found)
        self._put(device, f"nvmlDeviceGet{kind}RunningProcesses", after, 0, value)

    def memory(self, used_mib: float, device: int | str = 0, after: int = 0) -> None:
        """So much is in use, beside what the driver reserves."""
        total, reserved = (int(self._recorded("nvmlDeviceGetMemoryInfo_v2")[i]) for i in (0, 1))
        used = int(used_mib * MIB)
        free = total - reserved - used
        self.say(
            "nvmlDeviceGetMemoryInfo_v2",
            value=(total, reserved, free, used),
            device=device,
            after=after,
        )
        self.say(
            "nvmlDeviceGetMemoryInfo",
            value=(total, free, used + reserved),
            device=device,
            after=after,
        )

    def mig(self, parent: int, index: int, uuid: str, name: str, mib: int) -> None:
        """An instance of a divided card."""
        self.say("nvmlDeviceGetMigMode", value=(1, 1), device=parent)
        self.say("nvmlDeviceGetMaxMigDeviceCount", value=7, device=parent)
        self.say("nvmlDeviceGetMigDeviceHandleByIndex", index, value=0, device=parent)
        self.fail("nvmlDeviceGetUtilizationRates", code=3, device=parent)
        device = f"{parent}.{index}"
        self.say("nvmlDeviceGetUUID", value=uuid, device=device)
        self.say("nvmlDeviceGetName", value=name, device=device)
        total, used = mib * MIB, 12 * MIB
        self.say("nvmlDeviceGetMemoryInfo", value=(total, total - used, used), device=device)
        self.say("nvmlDeviceGetMemoryInfo_v2", value=(total, 0, total - used, used), device=device)
        for kind in ("Compute", "Graphics", "MPSCompute"):
            self.processes(kind, device=device)

    def _recorded(self, name: str) -> list[str]:
        return str(dict(self._card)[name][1]).split()

    def _put(
        self,
        device: int | str,
        key: str,
        after: int,
        code: int | str,
        value: str,
        *,
        write: bool = True,
    ) -> None:
        self._answers[str(device), key, after] = (str(code), value)
        if write:
            lines = ("\t".join(map(str, (*k, *v))) for k, v in self._answers.items())
            new = self.file.with_suffix(".new")
            new.write_text("\n".join(lines) + "\n", encoding="utf-8")
            new.rename(self.file)


def uuid(index: int) -> str:
    return f"GPU-00000000-0000-0000-0000-{index:012x}"


def _key(name: str, arguments: tuple[int, ...]) -> str:
    return "/".join((name, *map(str, arguments)))


def compiled(folder: Path) -> Path:
    """The library, compiled into this folder: half a second."""
    library = folder / NAME
    argv = ["gcc", "-O1", "-Wall", "-Wextra", "-Werror", "-shared", "-fPIC"]
    subprocess.run([*argv, "-o", str(library), str(HERE / "nvml.c"), "-lpthread"], check=True)
    return library


@pytest.fixture(scope="session")
def fake_nvml_library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return compiled(tmp_path_factory.mktemp("fakenvml"))


@pytest.fixture
def fake_nvml(
    fake_nvml_library: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Fake]:
    """A host with one H100, idle; pynvml in this process talks to it."""
    import pynvml

    fake = Fake(fake_nvml_library, tmp_path / "nvml.txt")
    monkeypatch.setenv(VARIABLE, str(fake.file))
    # A copy for each test: the library remembers how often it was called.
    library = tmp_path / NAME
    library.write_bytes(fake_nvml_library.read_bytes())
    monkeypatch.setattr(pynvml, "nvmlLib", ctypes.CDLL(str(library)))
    monkeypatch.setattr(pynvml, "_nvmlGetFunctionPointer_cache", {})
    yield fake
