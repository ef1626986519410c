"""Text printed by snapshot.sh -> HostSnapshot. Pure."""

from __future__ import annotations

import calendar
import ipaddress
import re
import shlex
from collections.abc import Iterator
from dataclasses import replace

from llamafleet.facts import own, smi
from llamafleet.facts.host import (
    DRIVER_VERSION,
    Compiler,
    Driver,
    DriverFile,
    Gpu,
    HostSnapshot,
    Listener,
    Package,
    PciGpu,
    Tool,
    Toolkit,
    Unit,
)
from llamafleet.facts.lines import Record, SnapshotError, Sorted, number, sort
from llamafleet.facts.own import hashes
from llamafleet.protocol.container import IMAGE
from llamafleet.tables import driver_packages

__all__ = ["TELLING", "SnapshotError", "parse"]

# Drivers from 610 or so print "CUDA UMD Version".
CUDA_VERSION = re.compile(r"CUDA(?:\s+\w+)?\s+Version\s*:\s*(\d{1,3}\.\d{1,3})(?!\d)")

# What stands there where nvidia-smi can't load libcuda.
NO_CUDA_VERSION = re.compile(r"CUDA(?:\s+\w+)?\s+Version\s*:\s*(N/A|ERR!)")

LIBRARY_VERSION = re.compile(r"\.so\.(\d{3,6}\.\d{1,6}(?:\.\d{1,6})?)$")

NOT_INSTALLED = ("not-installed", "config-files")
"""States of dpkg in which a package has no files of its own, beside those of its settings."""

TELLING: tuple[driver_packages.Role, ...] = ("version", "prebuilt")
"""What the verdict looks at packages for: their version, and how they bring the module."""

LONGEST_LOCK = 300
"""Characters of a line of dnf's locks."""
MOST_CORES = 8192
"""What Linux can be built for, x86_64: CONFIG_NR_CPUS."""

COMPILER = re.compile(r"[0-9]{1,4}(\.[0-9]{1,6}){0,4}")
"""A version of gcc or clang; anything else that answers is no compiler for a build."""
TOOLKIT = re.compile(r"[0-9]{1,3}\.[0-9]{1,3}")
"""A version of nvcc."""
NVCC_BUILD = re.compile(r"[0-9]{1,3}\.[0-9]{1,3}\.[0-9]{1,6}")
MEANT = re.compile(r"/llamafleet-[^/]*\.d/[^/]+$")
"""A drop-in of a unit, of its template, or of all of such a name; not that of all services."""
TRANSIENT = "/systemd/transient/"
PYTHON = re.compile(r"[0-9]{1,3}(\.[0-9]{1,3}){1,2}")


def parse(lines: list[str]) -> HostSnapshot:
    """Read one snapshot; lines before its header (a shell's greeting) are ignored.

    Raises SnapshotError on a missing header, another version, a truncated or a damaged text.
    A value that is odd is left out, and the rest is read.
    """
    told = sort(lines)
    snapshot = replace(_login(told.main), unseen=told.unseen)
    snapshot = _with_system(snapshot, told.main)
    snapshot = _with_tools(snapshot, told)
    return _with_own(snapshot, told)


def _login(record: Record) -> HostSnapshot:
    """Who reads the host and when, and what the account has there."""
    return HostSnapshot(
        time=record.number("time"),
        uptime_s=_seconds(record.text("uptime")),
        hostname=record.text("hostname"),
        uid=record.number("uid"),
        user=record.text("user"),
        home=record.text("home"),
        no_sudo=record.text("no_sudo") == "1",
        machine_id=_machine_id(record.text("machine_id")),
        account=record.text("account") == "1",
        account_groups=tuple(record.text("account_groups").split()),
        account_home=record.text("account_home"),
        account_ids=_ids(record),
        setpriv=record.text("setpriv") != "0",
        proxies=_proxies(record),
        proxy_passwords=tuple(sorted({row[0] for row in record.rows("proxy_password", 1)})),
        ca_bundle=record.text("ca_bundle") or None,
        linger=record.text("linger") == "1",
    )


def _with_system(snapshot: HostSnapshot, record: Record) -> HostSnapshot:
    """The system, the hardware and the driver."""
    release = _os_release(record.block("os-release"))
    cpu = _colon_pairs(record.block("cpuinfo"))
    memory = _colon_pairs(record.block("meminfo"))
    gpus, driver = _driver(record)
    return replace(
        snapshot,
        os_id=_shell_word(release.get("ID", "")),
        os_like=tuple(_shell_word(release.get("ID_LIKE", "")).split()),
        os_version=_shell_word(release.get("VERSION_ID", "")),
        os_name=_shell_word(release.get("PRETTY_NAME", "")),
        kernel=record.text("kernel"),
        arch=record.text("arch"),
        glibc=_glibc(record.text("glibc")),
        container=record.text("container") or None,
        package_manager=record.text("package_manager") or None,
        dnf_locks=record.text("dnf_locks") == "1",
        ostree=record.text("ostree") == "1",
        init=_init(record),
        systemd=record.number("systemd"),
        board=record.text("board")[:200],
        tegra=record.text("tegra")[:200],
        cpu=cpu.get("model name", ""),
        # x86 says flags, Arm says Features.
        cpu_flags=tuple((cpu.get("flags") or cpu.get("Features", "")).split()),
        cores=min(max(1, record.number("cores", 1)), MOST_CORES),
        memory_mib=_kib(memory.get("MemTotal", "")) // 1024,
        memory_available_mib=_memory_available(record, memory),
        disk_free_mib={name: number(kib) // 1024 for name, kib in record.rows("disk", 2)},
        pci_gpus=_cards(record),
        gpus=gpus,
        driver=driver,
    )


def _with_tools(snapshot: HostSnapshot, told: Sorted) -> HostSnapshot:
    """What builds and services find there; tools are what the account can run."""
    record, account = told.main, told.account
    return replace(
        snapshot,
        cuda_repository=record.text("cuda_repository") or None,
        extra_there=tuple(row[0] for row in record.rows("extra", 1) if row[0]),
        unreadable=tuple(row[0] for row in account.rows("unreadable", 1)),
        compilers=tuple(
            Compiler(*row) for row in account.rows("compiler", 3) if COMPILER.fullmatch(row[2])
        ),
        toolkits=_toolkits(account),
        pythons=_pythons(told),
        cmake=_tool(account, "cmake"),
        podman=_tool(account, "podman"),
        nvidia_ctk=_tool(account, "nvidia_ctk"),
        quadlet=record.text("quadlet") == "1",
    )


def _with_own(snapshot: HostSnapshot, told: Sorted) -> HostSnapshot:
    """What llamafleet itself has there: files, units, builds, jobs and services."""
    record, account = told.main, told.account
    jobs = own.jobs(told)
    return replace(
        snapshot,
        real_paths={name: real for name, _, real in record.rows("real", 3) if real},
        units=_units(record.block("units")),
        files=hashes(record.block("files")),
        owners=own.owners(told),
        made=_lines(record.block("made")),
        state_machine=account.text("state_machine")[:100] or None,
        deploy_lock=own.deploy_lock(told),
        current=next(iter(own.names(record, "current")), None),
        previous=next(iter(own.names(record, "previous")), None),
        versions=own.names(account, "built"),
        builds=own.builds(account),
        models=own.models(account),
        jobs=tuple(job for job in jobs if job.kind != "verify"),
        verifying=next((job for job in jobs if job.kind == "verify"), None),
        result=own.result(account),
        hold_record=_lines(record.block("hold_record")),
        wheelhouse=next(iter(hashes(record.block("wheelhouse")).values()), None),
        services=own.services(account),
        servers={
            name: whole == "1"
            for name, whole in account.rows("servers", 2)
            if own.NAME.fullmatch(name)
        },
        changed={path: number(at) for path, at in record.rows("changed", 2) if number(at)},
        images={path: name for path, name in record.rows("image", 2) if re.fullmatch(IMAGE, name)},
        listening=tuple(_listeners(record)),
    )


def _machine_id(text: str) -> str:
    """machine-id(5); "" for anything else, as "uninitialized"."""
    return text if re.fullmatch(r"[0-9a-f]{32}", text) else ""


def _proxies(record: Record) -> dict[str, str]:
    """URLs; some leave out the scheme. The script has taken out users and passwords."""
    found = {}
    for name, value in record.rows("proxy", 2):
        if name == "no_proxy":
            hosts = ",".join(re.split(r"[,\s]+", value.strip()))
            if re.fullmatch(r"[A-Za-z0-9.,:*/_\[\]-]{1,2000}", hosts):
                found[name] = hosts
        elif name in ("http_proxy", "https_proxy"):
            url = re.fullmatch(r"(https?://)?([A-Za-z0-9.:_\[\]-]{1,300})/?", value)
            if url:
                found[name] = f"{url[1] or 'http://'}{url[2]}"
    return found


def _seconds(text: str) -> int | None:
    """The whole seconds of /proc/uptime's first field."""
    found = re.match(r"[0-9]{1,18}", text)
    return int(found[0]) if found else None


def _kib(text: str) -> int:
    return number(text.removesuffix("kB").strip())


def _os_release(lines: list[str]) -> dict[str, str]:
    """The assignments as they stand: to unquote is slow, so only what is asked for is unquoted."""
    pairs = (line.partition("=") for line in lines)
    return {key.strip(): value for key, equals, value in pairs if equals and value.strip()}


def _shell_word(value: str) -> str:
    """What a shell would assign; "" where the quotes don't close."""
    try:
        return next(iter(shlex.split(value)), "")
    except ValueError:
        return ""


def _colon_pairs(lines: list[str]) -> dict[str, str]:
    pairs = (line.partition(":") for line in lines)
    return {key.strip(): value.strip() for key, colon, value in pairs if colon}


def _glibc(text: str) -> str | None:
    if not re.search(r"glibc|gnu libc", text, re.IGNORECASE):
        return None
    versions = re.findall(r"(?<!\d)\d{1,4}\.\d{1,4}(?!\d)", text)
    return versions[-1] if versions else None


def _memory_available(record: Record, memory: dict[str, str]) -> int:
    """What can be had without swapping: the kernel's figure, bounded by each cgroup's limit."""
    kib = _kib(memory.get("MemAvailable", "")) or _kib(memory.get("MemFree", ""))
    free = [kib * 1024]
    for limit, used, reclaimable in record.rows("cgroup_memory", 3):
        free.append(max(0, number(limit) - number(used) + number(reclaimable)))
    return min(free) // 2**20


def _driver(record: Record) -> tuple[tuple[Gpu, ...], Driver]:
    told = smi.read(record)
    banner = "\n".join(record.block("smi_banner"))
    cuda = CUDA_VERSION.search(banner)
    unknown = NO_CUDA_VERSION.search(banner)
    ml, libcuda = _library(record, "libnvidia-ml"), _library(record, "libcuda")
    library = ml if ml[0] else libcuda
    packages = _packages(record.block("packages"))
    rows = [line.split() for line in record.block("parts")]
    wanted = [row for row in rows if len(row) == 3 and row[0] in ("install", "hold")]
    next_kernel, module_next = _next_kernel(record)
    log = record.blocks.get(("kernel_log",))
    driver = Driver(
        module=_driver_version(record.text("module")),
        module_on_disk=_driver_version(record.text("module_on_disk")),
        library=library[0],
        library_file=library[1],
        libcuda=libcuda[0],
        libcuda_file=libcuda[1],
        module_file=_module_file(record),
        package=_package(packages),
        smi=told.version,
        cuda=cuda[1] if cuda else None,
        cuda_unknown=unknown[1] if unknown and not cuda else "",
        smi_state=told.state,
        smi_error=told.error,
        complaints=told.complaints,
        open_module={"open": True, "proprietary": False}.get(record.text("module_kind")),
        packages=packages,
        parts=_parts(wanted),
        held=(*(name for want, _, name in wanted if want == "hold"), *_locked(record)),
        next_kernel=next_kernel,
        module_next=module_next,
        module_signer=record.text("module_signer") if "module_signer" in record.values else None,
        dkms=_lines(record.block("dkms")),
        runfile=tuple(row[0] for row in record.rows("runfile", 1) if row[0]),
        vgpu_host=record.text("vgpu_host") == "1",
        capabilities=record.text("driver_capabilities")[:200],
        mig=told.mig,
        nouveau=record.text("nouveau") == "1",
        secure_boot={"0": False, "1": True}.get(record.text("secure_boot")),
        kernel_log=None if log is None else _lines(log),
        switches=record.number("switches"),
        fabric_manager=_unit_state(record, "fabric_manager"),
    )
    return told.gpus, driver


def _cards(record: Record) -> tuple[PciGpu, ...]:
    """Cards on the bus, with what the driver and the device nodes say of each."""
    nodes = set(record.text("gpu_nodes").split())
    minors, excluded = _driver_gpus(record.block("driver_gpus"))
    return tuple(
        PciGpu(
            address,
            device.removeprefix("0x"),
            bound or None,
            unreadable=unreadable == "1",
            given=minors.get(address) in nodes if minors else None,
            excluded=address in excluded,
        )
        for address, device, bound, unreadable in record.rows("pci", 4)
    )


def _driver_gpus(lines: list[str]) -> tuple[dict[str, str], set[str]]:
    """Minor numbers by address, and the GPUs that are left out, of /proc/driver/nvidia/gpus."""
    minors: dict[str, str] = {}
    excluded = set()
    for line in lines:
        path, colon, value = (part.strip() for part in line[:LONGEST_LOCK].rpartition(":"))
        address = re.search(r"/gpus/([0-9a-f]{4}:[0-9a-f]{2}:[0-9a-f]{2}\.[0-7])/", path)
        if colon and address and path.endswith("Device Minor"):
            minors[address[1]] = value
        elif colon and address and path.endswith("GPU Excluded") and value == "Yes":
            excluded.add(address[1])
    return minors, excluded


def _unit_state(record: Record, name: str) -> str | None:
    """One word for a unit that is not ours; None: systemd was not asked or is silent."""
    told = dict(line.partition("=")[::2] for line in record.block(name))
    if not told:
        return None
    return "not-found" if told.get("LoadState") == "not-found" else told.get("ActiveState", "")


def _library(record: Record, name: str) -> tuple[str | None, DriverFile | None]:
    """Version and file of the first library of that name: the one that the loader takes."""
    for path, resolved, owner in record.rows("library", 3):
        real = resolved or path
        if path.rpartition("/")[2].startswith(f"{name}.so"):
            version = LIBRARY_VERSION.search(real)
            return version[1] if version else None, DriverFile(real, _owner(owner))
    return None, None


def _module_file(record: Record) -> DriverFile | None:
    for path, owner, changed in record.rows("module_file", 3):
        return DriverFile(path, _owner(owner), number(changed) or None) if path else None
    return None


def _owner(text: str) -> str | None:
    """Of a file: the script writes "-" for no package, and nothing where it was not told."""
    return {"-": "", "": None}.get(text, text)


def _lines(block: list[str]) -> tuple[str, ...]:
    return tuple(line.rstrip() for line in block if line.strip())


def _next_kernel(record: Record) -> tuple[str | None, str | None]:
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
    parts = re.findall(r"[0-9]+|[a-z]+", kernel)
    return [(part.isdigit(), number(part), part) for part in parts]


def _driver_version(text: str) -> str | None:
    found = DRIVER_VERSION.search(text)
    return found[0] if found else None


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


def _locked(record: Record) -> list[str]:
    """Names in the lock file of dnf5 (TOML) or of dnf's plugin.

    An entry that keeps one version out locks nothing: "!=" in the former, "!" in the latter. A
    range does: it is somebody's own, and `dnf versionlock delete` would take it away too.
    """
    names = []
    name = about = ""
    # The pattern's time grows with the square of a line's length.
    for line in (whole[:LONGEST_LOCK] for whole in record.block("versionlock")):
        key, equals, value = (part.strip(" \"'") for part in line.partition("="))
        if equals:
            name = value if key == "name" else name
            about = value if key == "key" else about
            if key == "comparator" and value != "!=" and about != "arch":
                names.append(name)
        elif lock := re.fullmatch(r"([^!#\s]\S*)-(?:\d+:)?[^-\s]+-[^-\s]+", line.strip()):
            names.append(lock[1])
    return names


def _toolkits(record: Record) -> tuple[Toolkit, ...]:
    """One for each real folder; the paths that lead there are its names."""
    rows: dict[str, list[list[str]]] = {}
    for path, root, *rest in record.rows("toolkit", 10):
        rows.setdefault(root, []).append([path, *rest])
    return tuple(
        Toolkit(
            root=root,
            version=next((row[1] for row in found if TOOLKIT.fullmatch(row[1])), ""),
            nvcc=found[0][2] == "1",
            cudart=found[0][3] == "1",
            cublas=found[0][4] == "1",
            cccl=found[0][5] == "1",
            libdir=found[0][6],
            # An older recording does not tell.
            stub=found[0][7] != "0",
            names=tuple(sorted({row[0] for row in found} - {root})),
            build=next((row[8] for row in found if NVCC_BUILD.fullmatch(row[8])), ""),
        )
        for root, found in rows.items()
    )


def _pythons(told: Sorted) -> tuple[Tool, ...]:
    """Several names on PATH may end at one interpreter. Only root's part says what root may run."""
    trusted = {row[0] for row in told.main.rows("trusted", 1)}
    old = "trusted" not in told.main.values
    return tuple(
        {
            path: Tool(
                path,
                version,
                everyone == "1",
                trusted=old or path in trusted,
                lacks=tuple(dict.fromkeys(n.lstrip("_") for n in lacks.split(",") if n)),
            )
            for path, version, everyone, lacks in told.account.rows("python", 4)
            if own.PATH.fullmatch(path) and PYTHON.fullmatch(version)
        }.values()
    )


def _ids(record: Record) -> tuple[int, int] | None:
    """Root's are those of no account."""
    for user, group in record.rows("account_ids", 2):
        if number(user) and number(group):
            return number(user), number(group)
    return None


def _tool(record: Record, name: str) -> Tool | None:
    for path, output in record.rows(name, 2):
        version = re.search(r"(?<!\d)\d{1,6}(?:\.\d{1,6}){1,4}", output)
        if version:
            return Tool(path, version[0])
    return None


def _init(record: Record) -> str:
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
                result=properties.get("Result", ""),
                status=_status(properties.get("ExecMainStatus", "")),
                triggered=_moment(properties.get("LastTriggerUSec", "")),
                started=_moment(properties.get("ExecMainStartTimestamp", "")),
                dropins=_dropins(properties.get("DropInPaths", "")),
            )
        properties = {}
    return units


def _dropins(paths: str) -> tuple[str, ...]:
    """Those that are meant for llamafleet's units, less what systemd-run makes of its options."""
    return tuple(path for path in paths.split() if MEANT.search(path) and TRANSIENT not in path)


def _listeners(record: Record) -> Iterator[Listener]:
    """Rows "port, address as /proc/net/tcp has it, uid, pid, command, unit"."""
    for port, address, uid, pid, command, unit in record.rows("listening", 6):
        told = _address(address)
        if told:
            yield Listener(
                number(port), told, number(uid), number(pid) or None, command[:100], unit[:300]
            )


def _address(text: str) -> str:
    """Of hex digits in the machine's own order, each four bytes by themselves; "": none."""
    if not re.fullmatch(r"[0-9A-F]{8}|[0-9A-F]{32}", text):
        return ""
    parts = [bytes.fromhex(text[at : at + 8]) for at in range(0, len(text), 8)]
    # Every machine that CUDA runs on is little-endian.
    return str(ipaddress.ip_address(b"".join(part[::-1] for part in parts)))


def _status(text: str) -> int | None:
    return int(text) if re.fullmatch(r"[0-9]{1,5}", text) else None


def _moment(text: str) -> int | None:
    """Seconds since 1970 of a moment as systemd writes it, Thu 2026-11-26 04:20:22 UTC."""
    found = re.search(r"(\d{4})-(\d\d)-(\d\d) (\d\d):(\d\d):(\d\d) UTC", text)
    return calendar.timegm((*map(int, found.groups()), 0, 0, 0)) if found else None
