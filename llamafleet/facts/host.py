"""What one snapshot says of a host: plain frozen records, no I/O."""

from __future__ import annotations

import re
from dataclasses import dataclass, field

from llamafleet.protocol.job import BuildProduct, Progress, Stamp
from llamafleet.protocol.place import ModelProduct
from llamafleet.protocol.result import Result
from llamafleet.protocol.serve import Status
from llamafleet.received import Unreadable

SNAPSHOT_VERSION = 1

DRIVER_VERSION = re.compile(r"\b\d{3,6}\.\d{1,6}(?:\.\d{1,6})?(?!\d)")
"""Three digits or more, as 535.261.03: excludes packages that merely carry nvidia in the name."""


@dataclass(frozen=True)
class PciGpu:
    """An NVIDIA display controller as the PCI bus shows it, driver or no driver."""

    address: str
    """As 0000:01:00.0."""
    device_id: str
    """Four hex digits without prefix, as 2684 (RTX 4090)."""
    kernel_driver: str | None
    """nvidia, nouveau, vfio-pci, ... or None: nothing is bound."""
    unreadable: bool = False
    """Its configuration space reads as ones, as lspci's "rev ff": it no longer answers."""
    given: bool | None = None
    """This system has its device node, as a container that was given the card; None: not known."""
    excluded: bool = False
    """The driver was told to leave it out (NVreg_ExcludedGpus)."""


@dataclass(frozen=True)
class Gpu:
    """A GPU as the driver shows it (nvidia-smi, which asks NVML), or a MIG instance of one."""

    index: int
    name: str
    uuid: str
    pci_address: str
    compute_capability: str | None
    """As 8.9; None where the driver is too old to tell."""
    vram_mib: int
    """0: not told, as of a GPU that shares the host's memory."""
    parent: str = ""
    """Of a MIG instance, whose `uuid` begins with MIG-: the UUID of the GPU that is divided. The
    instances stand in its place, with its `index` and `pci_address`."""
    faults: tuple[str, ...] = ()
    """What nvidia-smi says in place of a figure, as "temperature.gpu: [GPU requires reset]"."""
    compute_mode: str = ""
    """Default, Exclusive_Process, Prohibited, ...; "": not told."""
    recovery: str = ""
    """The driver's own advice: None, Reset, Reboot, Drain P2P, ...; "": it has no such field."""
    fabric: str = ""
    """Of a GPU on NVSwitch, as "Completed, Success" or "In Progress, N/A"; "": it is on none."""
    divided: bool = False
    """MIG is on and it has no instance: CUDA can't use it."""
    warnings: tuple[str, ...] = ()
    """What wears out, as "Remapped Rows Pending: Yes"."""


@dataclass(frozen=True)
class Package:
    """An installed package of the driver."""

    name: str
    version: str
    """As the package manager writes it."""
    state: str = ""
    """unpacked, half-configured, ...: dpkg did not end its work; "": installed."""

    @property
    def driver(self) -> str | None:
        """Version of the driver that it brings; None: a kernel's version, or another one."""
        found = DRIVER_VERSION.match(self.version.rpartition(":")[2])
        return found[0] if found else None


@dataclass(frozen=True)
class DriverFile:
    """A file of the driver as it lies on the disk, links followed."""

    path: str
    owner: str | None = None
    """The package that brought it; "": none did; None: not told."""
    changed: int | None = None
    """Its ctime, seconds since 1970, which only the kernel sets; None: not told."""


@dataclass(frozen=True)
class Driver:
    """The driver by its sources. None: that source is not there."""

    module: str | None = None
    """Version of the loaded kernel module."""
    module_on_disk: str | None = None
    """Version of the module that modprobe would load for the running kernel."""
    library: str | None = None
    """Version in the file name that libnvidia-ml.so.1 (or else libcuda.so.1) resolves to."""
    library_file: DriverFile | None = None
    libcuda: str | None = None
    """Version in the file name that libcuda.so.1 resolves to; None in WSL, where it has none."""
    libcuda_file: DriverFile | None = None
    module_file: DriverFile | None = None
    """What modprobe would load for the running kernel."""
    package: str | None = None
    """Upstream version of the installed driver package (dpkg or rpm)."""
    smi: str | None = None
    """Version that nvidia-smi reports."""
    cuda: str | None = None
    """Newest CUDA version of the driver by nvidia-smi, as 13.0."""
    cuda_unknown: str = ""
    """What nvidia-smi says in place of a CUDA version, as N/A: it can't load libcuda."""
    smi_state: str = "absent"
    """ok, absent, failed (non-zero exit), timeout or garbage (exit 0, not understood)."""
    smi_error: str = ""
    """First lines of what a failing nvidia-smi printed."""
    complaints: tuple[str, ...] = ()
    """Lines in which nvidia-smi speaks of a GPU that it can't show, whatever its exit status."""
    open_module: bool | None = None
    """The loaded kernel module, else that on disk, is the open one; None: not known."""
    packages: tuple[Package, ...] = ()
    """Installed packages of the driver that the verdict looks at, at most 60."""
    parts: tuple[str, ...] = ()
    """Installed packages of the driver by name, at most 300. One of several architectures is named
    with its own, as libcuda1:i386."""
    held: tuple[str, ...] = ()
    """What is held of these and of packages named like them; with dnf all that is locked, patterns
    too."""
    next_kernel: str | None = None
    """The newest kernel on disk, which boots next unless the boot loader is told otherwise.
    None: no kernel on disk, as in containers."""
    module_next: str | None = None
    """Version of the module for `next_kernel`; "": it is there and does not tell its version;
    None: missing."""
    module_signer: str | None = None
    """Who signed the module on disk; "": nobody; None: no module."""
    dkms: tuple[str, ...] = ()
    """Lines of `dkms status` about the driver."""
    runfile: tuple[str, ...] = ()
    """Paths that NVIDIA's own installer leaves behind; /usr/bin/nvidia-uninstall goes with it."""
    vgpu_host: bool = False
    """The module that hands out virtual GPUs is loaded: nvidia_vgpu_vfio."""
    capabilities: str = ""
    """NVIDIA_DRIVER_CAPABILITIES of a container, as utility or compute,utility; "": not told."""
    mig: bool = False
    """A GPU is divided into instances, by nvidia-smi."""
    nouveau: bool = False
    """The module nouveau is loaded."""
    secure_boot: bool | None = None
    """None: no UEFI, or it does not tell."""
    kernel_log: tuple[str, ...] | None = None
    """Lines of this boot's kernel log about the driver and the cards: the first and the last of
    each kind for each card; None: may not be read."""
    switches: int = 0
    """NVSwitches on the bus."""
    fabric_manager: str | None = None
    """State of the unit nvidia-fabricmanager where there are NVSwitches: active, inactive, failed,
    not-found, ...; None: not known."""


@dataclass(frozen=True)
class Compiler:
    """A C++ host compiler."""

    path: str
    kind: str
    """gcc or clang."""
    version: str

    @property
    def major(self) -> int:
        return int(self.version.split(".", maxsplit=1)[0])


@dataclass(frozen=True)
class Toolkit:
    """A CUDA Toolkit found on the host."""

    root: str
    version: str
    """major.minor of its nvcc; "" where nvcc is missing or does not answer."""
    nvcc: bool
    cudart: bool
    cublas: bool
    cccl: bool
    libdir: str = ""
    """Folder that holds libcudart and libcublas."""
    stub: bool = True
    """It has a libcuda.so to link against, on a host with any driver or none."""
    names: tuple[str, ...] = ()
    """Other paths that lead to `root`, as /usr/local/cuda."""
    build: str = ""
    """Of its nvcc, as 13.2.78; "" where it does not tell."""

    @property
    def missing(self) -> tuple[str, ...]:
        """Parts a build needs that are not there, by the names below."""
        parts = {
            "nvcc": self.nvcc and bool(self.version),
            "cudart": self.cudart,
            "cublas": self.cublas,
            "cccl": self.cccl,
            "stubs/libcuda.so": self.stub,
        }
        return tuple(name for name, there in parts.items() if not there)


@dataclass(frozen=True)
class Tool:
    path: str
    version: str
    everyone: bool = True
    """Every user may reach and run it; known of interpreters only. False below /root, say."""
    trusted: bool = True
    """Nobody but root can write it or a folder on its path, so root may run it; of interpreters."""
    lacks: tuple[str, ...] = ()
    """Modules of the standard library that a job needs and that this interpreter lacks."""


@dataclass(frozen=True)
class Owner:
    """Whose a file or folder is, by lstat: a link is a link."""

    kind: str
    """file, folder, link or other."""
    user: str
    group: str
    mode: int
    """Permission bits, as 0o644."""


@dataclass(frozen=True)
class Build:
    """One folder below versions/, as the account sees it."""

    name: str
    """Its fingerprint, or that and "-2", "-3" and so on."""
    stamp: Stamp | None = None
    """build.json in it, written when all else was on the disk; None: none that can be read."""
    product: BuildProduct | None = None
    runs: bool = False
    """Its interpreter answers."""
    libraries: dict[str, str] = field(default_factory=dict)
    """sha256 of its libraries as they are now, by path below it. Of a build that is not in use it
    is the stamp's where no file has changed since, by its ctime."""

    @property
    def fingerprint(self) -> str:
        return self.name.partition("-")[0]


@dataclass(frozen=True)
class ModelFile:
    """One file in a served model's folder, a link of ours followed."""

    size: int
    changed: int
    """Its ctime, seconds since 1970, which only the kernel sets."""


@dataclass(frozen=True)
class PlacedModel:
    """One folder of a served model, as the account sees it."""

    name: str
    """Its key."""
    stamp: Stamp | None = None
    """Its proof, written when all parts had been checked; None: none that can be read."""
    product: ModelProduct | None = None
    files: dict[str, ModelFile] = field(default_factory=dict)
    """By name, those that are not whole among them."""

    @property
    def bytes(self) -> int:
        """On the disk."""
        return sum(file.size for file in self.files.values())

    @property
    def changed(self) -> str:
        """How it is not what was proven; "": it is."""
        if self.stamp is None or self.product is None or not self.stamp.ok:
            return "it was never whole"
        for file in self.product.files:
            there = self.files.get(file.name)
            if there is None:
                return f"{file.name} is gone"
            if there != ModelFile(file.size, file.changed_ns // 10**9):
                return f"{file.name} has changed since it was checked"
        return "" if self.product.files else "its proof names no files"


@dataclass(frozen=True)
class DeployLock:
    """Who deploys to this host."""

    owner: str
    """user@controller."""
    controller: str
    """machine-id of the controller, or its hostname."""
    pid: int
    """On that controller."""
    start_ticks: int | None
    started: float
    """Seconds since 1970 on the controller's clock."""
    age_s: int
    """Seconds since it was last touched, on the host's clock."""


@dataclass(frozen=True)
class Unit:
    """A unit by systemd's own words; one that it has never loaded is told by its file."""

    load: str
    """loaded, not-found, bad-setting, error or masked."""
    active: str
    sub: str
    enabled: str
    """enabled, disabled, static, masked, bad (its file is gone), ...; "": it has no file."""
    stale: bool = False
    """Its file is another one than systemd has read."""
    result: str = ""
    """Of a service's last run: success, exit-code, signal, timeout, start-limit-hit, ..."""
    status: int | None = None
    """Exit status, or signal, of its main process."""
    triggered: int | None = None
    """Seconds since 1970 at which a timer last started its service."""
    started: int | None = None
    """The same of a service's main process."""
    dropins: tuple[str, ...] = ()
    """Paths of files by which somebody has changed this unit: systemd.unit(5), drop-ins."""


@dataclass(frozen=True)
class Listener:
    """A process that waits for connections on a port."""

    port: int
    address: str
    """IP address; of another network namespace none is seen."""
    uid: int
    pid: int | None = None
    """None: may not be seen."""
    command: str = ""
    unit: str = ""
    """The service that it belongs to."""


@dataclass(frozen=True)
class Job:
    """One job's folder on the host."""

    kind: str
    """build, toolkit or verify."""
    key: str
    alive: bool
    """Its process still runs (same boot, same pid)."""
    root: bool = False
    """Its folder is root's: the account can't have written it."""
    progress: Progress | None = None
    """None: it has told nothing, or nothing that can be read."""
    stamp: Stamp | None = None
    unreadable: str = ""
    """Why the stamp that is there can't be read."""
    product: BuildProduct | None = None
    """What the stamp of a build says that it made."""

    @property
    def ok(self) -> bool:
        return self.stamp is not None and self.stamp.ok


@dataclass(frozen=True)
class HostSnapshot:
    """Everything a plan needs to know of one host, read in one round trip."""

    version: int = SNAPSHOT_VERSION
    error: str = ""
    """Why the host could not be read; no other field is set then."""
    unseen: str = ""
    """Why compilers, toolkits, Pythons, builds and jobs were not all read, which is done with the
    account's rights; "": they were."""
    time: int = 0
    """Seconds since 1970 on the host's clock."""
    uptime_s: int | None = None
    """Seconds since the kernel started."""
    hostname: str = ""
    uid: int = 0
    user: str = "root"
    home: str = "/root"
    no_sudo: bool = False
    """Whoever logs in there types no sudo: it is root, or there is none."""
    machine_id: str = ""
    """/etc/machine-id; "" where it is empty or missing."""
    account: bool = False
    """The account `llamafleet` exists."""
    account_groups: tuple[str, ...] = ()
    """Names of all its groups."""
    account_home: str = ""
    account_ids: tuple[int, int] | None = None
    """Numbers of the account and its group."""
    setpriv: bool = True
    """setpriv is there, by which root leaves its rights behind."""
    proxies: dict[str, str] = field(default_factory=dict)
    """http_proxy, https_proxy and no_proxy, by these names, of the login or of /etc/environment.
    Users and passwords are left out."""
    proxy_passwords: tuple[str, ...] = ()
    """Which of them had a user or password."""
    ca_bundle: str | None = None
    """The system's trust store as one file."""
    linger: bool = False
    """The user's own units outlive the session (loginctl enable-linger)."""

    os_id: str = ""
    """ID of os-release: debian, ubuntu, rhel, rocky, fedora, arch, ..."""
    os_like: tuple[str, ...] = ()
    os_version: str = ""
    """VERSION_ID of os-release, as 12 or 24.04; "" where it has none."""
    os_name: str = ""
    kernel: str = ""
    arch: str = ""
    """uname -m: x86_64, aarch64."""
    glibc: str | None = None
    """As 2.36; None on another C library."""
    container: str | None = None
    """docker, podman, systemd-nspawn, wsl, ...; None: none seen."""
    package_manager: str | None = None
    """apt, dnf, yum, pacman, zypper, apk; None: none of them."""
    ostree: bool = False
    """Booted from an image (rpm-ostree, bootc): packages are not installed one by one."""
    board: str = ""
    """What the device tree calls the machine, as NVIDIA Jetson Orin Nano Developer Kit."""
    tegra: str = ""
    """First line of /etc/nv_tegra_release: the release of NVIDIA's Linux for Tegra."""

    cuda_repository: str | None = None
    """File that names a package repository with CUDA Toolkits, other than llamafleet's own."""

    cpu: str = ""
    cpu_flags: tuple[str, ...] = ()
    cores: int = 1
    memory_mib: int = 0
    memory_available_mib: int = 0
    disk_free_mib: dict[str, int] = field(default_factory=dict)
    """Free space for `prefix`, `state` and `tmp`, by those names."""
    real_paths: dict[str, str] = field(default_factory=dict)
    """Where `prefix` and `state` really lie, by those names: one may be behind a link."""
    extra_there: tuple[str, ...] = ()
    """What the settings name and whoever read the host sees; the account may not."""
    unreadable: tuple[str, ...] = ()
    """What the settings name and is no file that the account can read."""

    pci_gpus: tuple[PciGpu, ...] = ()
    gpus: tuple[Gpu, ...] = ()
    driver: Driver = field(default_factory=Driver)

    compilers: tuple[Compiler, ...] = ()
    toolkits: tuple[Toolkit, ...] = ()
    pythons: tuple[Tool, ...] = ()
    cmake: Tool | None = None
    podman: Tool | None = None
    nvidia_ctk: Tool | None = None
    """The command of NVIDIA's container toolkit."""
    quadlet: bool = False
    """podman's generator of units is there."""

    init: str = "none"
    """systemd: it runs and answers; silent: it runs and does not, as a user's own without a
    session; none."""
    systemd: int = 0
    """Its version; 0: not known."""
    units: dict[str, Unit] = field(default_factory=dict)
    """llamafleet's units by name, those that exist; known where systemd answers."""
    files: dict[str, str] = field(default_factory=dict)
    """sha256 of each managed file that exists, by path."""
    owners: dict[str, Owner] = field(default_factory=dict)
    """Of each managed file and folder that exists, by path."""
    made: tuple[str, ...] = ()
    """Lines of the record of what llamafleet made."""
    state_machine: str | None = None
    """machine-id that the state folder says it belongs to; None: it says none."""
    deploy_lock: DeployLock | None = None
    current: str | None = None
    """Name of the build that `current` points to."""
    previous: str | None = None
    """Name of the build that served before a switch of which nobody knows yet whether it serves."""
    versions: tuple[str, ...] = ()
    """Names of the folders below versions/."""
    builds: dict[str, Build] = field(default_factory=dict)
    """Those of them that were looked into, by name: the one in use, the one that served before, and
    the ten newest."""
    jobs: tuple[Job, ...] = ()
    """Build and toolkit jobs: the ten newest of each kind and the one in use."""
    models: dict[str, PlacedModel] = field(default_factory=dict)
    """Models that are served, by key."""
    verifying: Job | None = None
    """The verification job, if one has begun and not been cleared."""
    result: Result | Unreadable | None = None
    """latest.json."""
    hold_record: tuple[str, ...] = ()
    """Names of the packages that llamafleet holds, by its own record."""
    dnf_locks: bool = False
    """dnf can lock versions: it is dnf5, or has the plugin."""
    wheelhouse: str | None = None
    """sha256 of the manifest in the host's copy of the wheelhouse."""
    services: dict[str, Status] = field(default_factory=dict)
    """What services tell of themselves, by profile; those whose word can be understood."""
    servers: dict[str, bool] = field(default_factory=dict)
    """Folders of the server's own packages, by name: whether one is whole."""
    changed: dict[str, int] = field(default_factory=dict)
    """Seconds since 1970 at which files of services, and `current`, were last changed, by path."""
    images: dict[str, str] = field(default_factory=dict)
    """Names of container images, by path of the file that tells podman to run one."""
    listening: tuple[Listener, ...] = ()
    """On the ports of the settings."""

    @property
    def enterprise_linux(self) -> bool:
        """RHEL or one that says it is like it: Rocky, Alma, CentOS Stream; not Fedora."""
        return "rhel" in (self.os_id, *self.os_like)

    def job(self, kind: str, key: str, *, root: bool = False) -> Job | None:
        """The job of that kind and key, if there is one; `root`: what root's own folder says.

        The account may tell of a job of root's that there never was.
        """
        wanted = (kind, key, root)
        return next((j for j in self.jobs if (j.kind, j.key, j.root) == wanted), None)
