"""Text printed by snapshot.sh -> HostSnapshot. Pure."""

from __future__ import annotations

import json
import re
import shlex
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

from llamafleet.facts.host import (
    DRIVER_VERSION,
    SNAPSHOT_VERSION,
    Compiler,
    Driver,
    Gpu,
    HostSnapshot,
    Job,
    Package,
    PciGpu,
    Tool,
    Toolkit,
    Unit,
)
from llamafleet.protocol.job import Progress, Stamp
from llamafleet.protocol.result import Result
from llamafleet.received import Unreadable, received_result, received_text
from llamafleet.tables import driver_packages

T = TypeVar("T")

HEADER = "#llamafleet-snapshot"
END = "#end"

# Drivers from 610 or so print "CUDA UMD Version".
CUDA_VERSION = re.compile(r"CUDA(?:\s+\w+)?\s+Version\s*:\s*(\d{1,3}\.\d{1,3})(?!\d)")

NOT_INSTALLED = ("not-installed", "config-files")
"""States of dpkg in which a package has no files of its own, beside those of its settings."""

# The column of a GPU that tells of MIG; no other one of the banner has this word.
MIG_ON = re.compile(r"\| +Enabled\*? +\|$", re.MULTILINE)

TELLING: tuple[driver_packages.Role, ...] = ("version", "prebuilt")
"""What the verdict looks at packages for: their version, and how they bring the module."""

TIMED_OUT = 124
JSON_LIMIT = 1 << 20
"""Bytes of a file at which snapshot.sh cuts it."""
INFOROM_CORRUPTED = 14
"""Exit status of nvidia-smi whose output is right all the same (nvidia-smi(1), RETURN VALUE)."""


COMPILER = re.compile(r"[0-9]{1,4}(\.[0-9]+)*")
"""A version of gcc or clang; anything else that answers is no compiler for a build."""


class SnapshotError(ValueError):
    """The text is not one whole snapshot; the message says what was found instead."""


@dataclass(frozen=True)
class _Record:
    """The lines, sorted: values by key, each a list of fields, and blocks by name."""

    values: dict[str, list[list[str]]] = field(default_factory=dict)
    blocks: dict[tuple[str, ...], list[str]] = field(default_factory=dict)

    def rows(self, key: str, width: int) -> list[list[str]]:
        """The rows of that key, each filled up with "" to `width` fields."""
        return [(row + [""] * width)[:width] for row in self.values.get(key, [])]

    def text(self, key: str) -> str:
        """The first field; where the key was repeated, of the last row."""
        return self.rows(key, 1)[-1][0].strip() if key in self.values else ""

    def number(self, key: str, default: int = 0) -> int:
        return _number(self.text(key), default)

    def json(self, *name: str) -> dict[str, Any] | None:
        try:
            value = json.loads("\n".join(self.blocks[name]))
        except (KeyError, ValueError, RecursionError):
            return None
        return value if isinstance(value, dict) else None


def parse(lines: list[str]) -> HostSnapshot:
    """Read one snapshot; lines before its header (a shell's greeting) are ignored.

    Raises SnapshotError on a missing header, another version, a truncated or a damaged text.
    """
    record = _sort(lines)
    release = _os_release(record.blocks.get(("os-release",), []))
    cpu = _colon_pairs(record.blocks.get(("cpuinfo",), []))
    memory = _colon_pairs(record.blocks.get(("meminfo",), []))
    jobs = [_job(record, *row) for row in record.rows("job", 3)]
    gpus, driver = _driver(record)
    return HostSnapshot(
        time=record.number("time"),
        uptime_s=_seconds(record.text("uptime")),
        hostname=record.text("hostname"),
        uid=record.number("uid"),
        user=record.text("user"),
        home=record.text("home"),
        account=record.text("account") == "1",
        linger=record.text("linger") == "1",
        os_id=release.get("ID", ""),
        os_like=tuple(release.get("ID_LIKE", "").split()),
        os_version=release.get("VERSION_ID", ""),
        os_name=release.get("PRETTY_NAME", ""),
        kernel=record.text("kernel"),
        arch=record.text("arch"),
        glibc=_glibc(record.text("glibc")),
        container=record.text("container") or None,
        package_manager=record.text("package_manager") or None,
        cuda_repository=record.text("cuda_repository") or None,
        cpu=cpu.get("model name", ""),
        # x86 says flags, Arm says Features.
        cpu_flags=tuple((cpu.get("flags") or cpu.get("Features", "")).split()),
        cores=max(1, record.number("cores", 1)),
        memory_mib=_kib(memory.get("MemTotal", "")) // 1024,
        memory_available_mib=_memory_available(record, memory),
        disk_free_mib={name: _number(kib) // 1024 for name, kib in record.rows("disk", 2)},
        pci_gpus=tuple(
            PciGpu(address, device.removeprefix("0x"), bound or None)
            for address, device, bound in record.rows("pci", 3)
        ),
        gpus=gpus,
        driver=driver,
        compilers=tuple(
            Compiler(*row) for row in record.rows("compiler", 3) if COMPILER.fullmatch(row[2])
        ),
        toolkits=_toolkits(record),
        pythons=_pythons(record),
        cmake=_tool(record, "cmake"),
        init=_init(record),
        systemd=record.number("systemd"),
        units=_units(record.blocks.get(("units",), [])),
        files=_hashes(record.blocks.get(("files",), [])),
        current=record.text("current") or None,
        versions=tuple(sorted(row[0] for row in record.rows("built", 1))),
        jobs=tuple(job for job in jobs if job.kind != "verify"),
        verifying=next((job for job in jobs if job.kind == "verify"), None),
        result=_result(record),
        hold_record=_lines(record.blocks.get(("hold_record",), [])),
        dnf_locks=record.text("dnf_locks") == "1",
        wheelhouse=next(iter(_hashes(record.blocks.get(("wheelhouse",), [])).values()), None),
    )


def _sort(lines: list[str]) -> _Record:
    start = next((n for n, line in enumerate(lines) if line.startswith(HEADER)), None)
    if start is None:
        found = next((line for line in lines if line.strip()), "nothing")
        raise SnapshotError(
            f"found {found[:200]!r}; expected a line {HEADER} {SNAPSHOT_VERSION}; "
            "next: log in to the host as that user and see whether `sh -c 'echo ok'` prints ok"
        )
    version = lines[start].removeprefix(HEADER).strip()
    if version != str(SNAPSHOT_VERSION):
        raise SnapshotError(
            f"found a snapshot of version {version!r}; expected {SNAPSHOT_VERSION}; "
            "next: reinstall llamafleet on the controller, its script and reader differ"
        )
    record = _Record()
    block: list[str] | None = None
    for number, line in enumerate(lines[start + 1 :], start=1):
        if block is not None:
            if line == "@end":
                block = None
            elif line.startswith(" "):
                block.append(line[1:])
            elif line and line != END:
                raise SnapshotError(
                    f"found {line[:200]!r} inside a block in line {number}; expected @end; "
                    "next: run it again"
                )
            if line != END:
                continue
        if line == END:
            break
        if line.startswith("@begin "):
            block = []
            record.blocks[tuple(line.removeprefix("@begin ").split("\t"))] = block
            continue
        key, equals, rest = line.partition("=")
        if not equals:
            raise SnapshotError(
                f"found {line[:200]!r} in line {number}; expected key=value; next: run it again"
            )
        record.values.setdefault(key, []).append(rest.split("\t"))
    else:
        raise _truncated(lines, "the line #end")
    if block is not None or record.text("complete") != "1":
        raise _truncated(lines, "the line complete=1 before #end")
    return record


def _truncated(lines: list[str], expected: str) -> SnapshotError:
    last = next((line for line in reversed(lines) if line.strip() and line != END), "")
    return SnapshotError(
        f"found a truncated snapshot, {len(lines)} lines, the last one {last[:200]!r}; "
        f"expected {expected}; next: run it again"
    )


def _number(text: str, default: int = 0) -> int:
    return int(text) if re.fullmatch(r"[0-9]{1,18}", text) else default


def _seconds(text: str) -> int | None:
    """The whole seconds of /proc/uptime's first field."""
    found = re.match(r"[0-9]{1,18}", text)
    return int(found[0]) if found else None


def _kib(text: str) -> int:
    return _number(text.removesuffix("kB").strip())


def _os_release(lines: list[str]) -> dict[str, str]:
    pairs = {}
    for line in lines:
        key, equals, value = line.partition("=")
        try:
            words = shlex.split(value)
        except ValueError:
            continue
        if equals and words:
            pairs[key.strip()] = words[0]
    return pairs


def _colon_pairs(lines: list[str]) -> dict[str, str]:
    pairs = (line.partition(":") for line in lines)
    return {key.strip(): value.strip() for key, colon, value in pairs if colon}


def _glibc(text: str) -> str | None:
    if not re.search(r"glibc|gnu libc", text, re.IGNORECASE):
        return None
    versions = re.findall(r"\d+\.\d+", text)
    return versions[-1] if versions else None


def _memory_available(record: _Record, memory: dict[str, str]) -> int:
    """What can be had without swapping: the kernel's figure, bounded by each cgroup's limit."""
    kib = _kib(memory.get("MemAvailable", "")) or _kib(memory.get("MemFree", ""))
    free = [kib * 1024]
    for limit, used, reclaimable in record.rows("cgroup_memory", 3):
        free.append(max(0, _number(limit) - _number(used) + _number(reclaimable)))
    return min(free) // 2**20


def _driver(record: _Record) -> tuple[tuple[Gpu, ...], Driver]:
    gpus, smi_version, state, error = _smi(record)
    banner = "\n".join(record.blocks.get(("smi_banner",), []))
    cuda = CUDA_VERSION.search(banner)
    library = None
    for path, resolved in record.rows("library", 2):
        name = re.search(r"\.so\.(\d{3,}\.\d+(?:\.\d+)?)$", resolved or path)
        if name and (library is None or "libnvidia-ml" in path):
            library = name[1]
            if "libnvidia-ml" in path:
                break
    packages = _packages(record.blocks.get(("packages",), []))
    rows = [line.split() for line in record.blocks.get(("parts",), [])]
    wanted = [row for row in rows if len(row) == 3 and row[0] in ("install", "hold")]
    next_kernel, module_next = _next_kernel(record)
    log = record.blocks.get(("kernel_log",))
    driver = Driver(
        module=_driver_version(record.text("module")),
        module_on_disk=_driver_version(record.text("module_on_disk")),
        library=library,
        package=_package(packages),
        smi=smi_version,
        cuda=cuda[1] if cuda else None,
        smi_state=state,
        smi_error=error,
        packages=packages,
        parts=_parts(wanted),
        held=(*(name for want, _, name in wanted if want == "hold"), *_locked(record)),
        next_kernel=next_kernel,
        module_next=module_next,
        module_signer=record.text("module_signer") if "module_signer" in record.values else None,
        dkms=_lines(record.blocks.get(("dkms",), [])),
        mig=bool(MIG_ON.search(banner)),
        nouveau=record.text("nouveau") == "1",
        secure_boot={"0": False, "1": True}.get(record.text("secure_boot")),
        kernel_log=None if log is None else _lines(log),
    )
    return gpus, driver


def _lines(block: list[str]) -> tuple[str, ...]:
    return tuple(line.rstrip() for line in block if line.strip())


def _next_kernel(record: _Record) -> tuple[str | None, str | None]:
    """The kernel that boots next and the version of its module; the running one's row is first."""
    rows = record.rows("kernel_module", 4)
    running = record.text("kernel")
    # The debugging kernels of RHEL and Fedora never become the default by themselves.
    bootable = [
        row for row in rows if row[1] == "1" and (row[0] == running or "+debug" not in row[0])
    ]
    found = bootable or [row for row in rows if row[0] == running]
    if not found:
        return None, None
    kernel, _, present, version = max(found, key=lambda row: _kernel_order(row[0]))
    return kernel, (_driver_version(version) or "") if present == "1" else None


def _kernel_order(kernel: str) -> list[tuple[bool, int, str]]:
    """As RPM compares: 427.13.1.el9 comes after 427.el9, which sort -V does not know."""
    parts = re.findall(r"\d+|[a-z]+", kernel)
    return [(part.isdigit(), _number(part), part) for part in parts]


def _driver_version(text: str) -> str | None:
    found = DRIVER_VERSION.search(text)
    return found[0] if found else None


def _smi(record: _Record) -> tuple[tuple[Gpu, ...], str | None, str, str]:
    """GPUs, driver version, state and error of nvidia-smi."""
    if "smi" not in record.values:
        return (), None, "absent", ""
    gpus: list[Gpu] = []
    version = None
    other: list[str] = []
    for line in record.blocks.get(("smi_query",), []):
        if row := _smi_row(line):
            gpus.append(row[0])
            version = row[1]
        elif line.strip():
            other.append(line.strip())
    state = _smi_state(record.number("smi_query", 1), record.number("smi_banner"), gpus, other)
    return tuple(gpus), version, state, "; ".join(other[:3])


def _smi_state(query: int, banner: int, gpus: list[Gpu], other: list[str]) -> str:
    if TIMED_OUT in (query, banner):
        return "timeout"
    if gpus and query in (0, INFOROM_CORRUPTED):
        return "ok"
    # Some drivers exit with 0 here.
    if query != 0 or any("No devices were found" in line for line in other):
        return "failed"
    return "garbage"


def _smi_row(line: str) -> tuple[Gpu, str] | None:
    """One line of --format=csv,noheader,nounits, with or without the compute capability."""
    match = re.fullmatch(
        r"\s*(?P<index>\d{1,4}), (?P<name>.+), (?P<uuid>GPU-[^,]+), "
        r"(?P<domain>[0-9A-Fa-f]{4,8}):(?P<place>[0-9A-Fa-f]{2}:[0-9A-Fa-f]{2}\.[0-7]), "
        r"(?P<vram>[^,]+), (?P<driver>\d{1,6}(?:\.\d{1,6})+)(?:, (?P<capability>[^,]+))?\s*",
        line,
    )
    if not match:
        return None
    capability = match["capability"] or ""
    gpu = Gpu(
        index=int(match["index"]),
        name=match["name"],
        uuid=match["uuid"],
        pci_address=f"{int(match['domain'], 16):04x}:{match['place'].lower()}",
        compute_capability=capability if re.fullmatch(r"\d+\.\d+", capability) else None,
        # [N/A] where GPU and CPU share their memory.
        vram_mib=_number(match["vram"].strip()),
    )
    return gpu, match["driver"]


def _packages(lines: list[str]) -> tuple[Package, ...]:
    """Those of the driver: the wide patterns that were asked for find others too.

    One that is there for two architectures, in the same version, is one here.
    """
    fields = [line.split() for line in lines]
    found = [Package(*row[:3]) for row in fields if len(row) > 1]
    telling = (p for p in found if any(driver_packages.has(p.name, role) for role in TELLING))
    return tuple(dict.fromkeys(telling))


def _parts(rows: list[list[str]]) -> tuple[str, ...]:
    """Installed packages of the driver. One of two architectures is one name to rpm."""
    names = (name for _, state, name in rows if state not in NOT_INSTALLED)
    return tuple(dict.fromkeys(name for name in names if driver_packages.has(name, "held")))


def _package(packages: tuple[Package, ...]) -> str | None:
    """Version of the package that brings the user-space library, else the newest of the driver."""
    found = [(driver_packages.has(p.name, "library"), p.driver) for p in packages if p.driver]
    library = any(brings for brings, _ in found)
    versions = [version for brings, version in found if version and brings == library]
    return max(versions, key=_version_order, default=None)


def _version_order(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split("."))


def _locked(record: _Record) -> list[str]:
    """Names in the lock file of dnf5 (TOML) or of dnf's plugin.

    An entry that keeps one version out locks nothing: "!=" in the former, "!" in the latter. A
    range does: it is somebody's own, and `dnf versionlock delete` would take it away too.
    """
    names = []
    name = about = ""
    for line in record.blocks.get(("versionlock",), []):
        key, equals, value = (part.strip(" \"'") for part in line.partition("="))
        if equals:
            name = value if key == "name" else name
            about = value if key == "key" else about
            if key == "comparator" and value != "!=" and about != "arch":
                names.append(name)
        elif lock := re.fullmatch(r"([^!#\s]\S*)-(?:\d+:)?[^-\s]+-[^-\s]+", line.strip()):
            names.append(lock[1])
    return names


def _toolkits(record: _Record) -> tuple[Toolkit, ...]:
    """One for each real folder; the paths that lead there are its names."""
    rows: dict[str, list[list[str]]] = {}
    for path, root, *rest in record.rows("toolkit", 8):
        rows.setdefault(root, []).append([path, *rest])
    return tuple(
        Toolkit(
            root=root,
            version=next((row[1] for row in found if row[1]), ""),
            nvcc=found[0][2] == "1",
            cudart=found[0][3] == "1",
            cublas=found[0][4] == "1",
            cccl=found[0][5] == "1",
            libdir=found[0][6],
            names=tuple(sorted({row[0] for row in found} - {root})),
        )
        for root, found in rows.items()
    )


def _pythons(record: _Record) -> tuple[Tool, ...]:
    """Several names on PATH may end at one interpreter."""
    rows = record.rows("python", 3)
    return tuple(
        {path: Tool(path, version, everyone == "1") for path, version, everyone in rows}.values()
    )


def _tool(record: _Record, name: str) -> Tool | None:
    for path, output in record.rows(name, 2):
        version = re.search(r"\d+(?:\.\d+)+", output)
        if version:
            return Tool(path, version[0])
    return None


def _init(record: _Record) -> str:
    if "systemctl" not in record.values:
        return "none"
    return "systemd" if record.text("systemctl") == "0" else "silent"


def _units(lines: list[str]) -> dict[str, Unit]:
    units = {}
    properties: dict[str, str] = {}
    for line in [*lines, ""]:
        key, equals, value = line.partition("=")
        if equals:
            properties[key] = value
            continue
        load, active = properties.get("LoadState", ""), properties.get("ActiveState", "")
        if properties.get("Id") and (load, active) != ("not-found", "inactive"):
            units[properties["Id"]] = Unit(
                load,
                active,
                properties.get("SubState", ""),
                properties.get("UnitFileState", ""),
                stale=properties.get("NeedDaemonReload") == "yes",
            )
        properties = {}
    return units


def _hashes(lines: list[str]) -> dict[str, str]:
    """Output of sha256sum: path -> hash."""
    hashes = {}
    for line in lines:
        match = re.fullmatch(r"(\\?)([0-9a-f]{64}) [ *](.+)", line)
        if match:
            # A leading backslash says that the path is escaped.
            path = match[3].replace("\\\\", "\\") if match[1] else match[3]
            hashes[path] = match[2]
    return hashes


def _result(record: _Record) -> Result | Unreadable | None:
    """latest.json; the script cuts what is longer than a result can be."""
    block = next((lines for name, lines in record.blocks.items() if name[0] == "latest"), None)
    if block is None:
        return None
    if sum(map(len, block)) + len(block) >= JSON_LIMIT:
        return Unreadable("latest.json has 1 MiB or more: no verification writes such a one")
    try:
        return received_result(json.loads("\n".join(block)))
    except (ValueError, RecursionError) as error:
        return Unreadable(f"latest.json is no JSON ({type(error).__name__})")


def _job(record: _Record, kind: str, key: str, alive: str) -> Job:
    progress = _told(record, Progress, "progress", kind, key)
    stamp = _told(record, Stamp, "stamp", kind, key)
    job = Job(
        kind=kind,
        key=key,
        alive=alive == "1",
        progress=None if isinstance(progress, Unreadable) else progress,
        stamp=None if isinstance(stamp, Unreadable) else stamp,
        unreadable=stamp.reason if isinstance(stamp, Unreadable) else "",
    )
    # Its folder has the same name whatever is verified.
    told = job.progress or job.stamp
    return replace(job, key=told.key) if kind == "verify" and told else job


def _told(record: _Record, form: type[T], *name: str) -> T | Unreadable | None:
    """The block whose name begins so; its last part is the file's path. None: no such file."""
    block = next((lines for block, lines in record.blocks.items() if block[:3] == name), None)
    return None if block is None else received_text(form, "\n".join(block))
