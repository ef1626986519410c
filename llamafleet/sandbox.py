"""What each unit of llamafleet may do on a host: systemd's sandboxing, as data.

Unit files of templates/ and the transient units of jobs take it from here. Names, values and the
versions that have them first: systemd.exec(5), systemd.resource-control(5), systemd.kill(5).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from llamafleet.layout import USER, Layout

Kind = Literal[
    "verify", "driver-check", "metrics", "devices", "build", "packages", "serve", "serve-public"
]
"""metrics: of root, as it writes into another's folder. devices: loads the driver's modules. build:
every job of the account, that of a toolkit too. packages: every job of root, that is a package
manager and what its packages run. serve: a service that this host alone can reach; serve-public:
one that others can."""

OLDEST = 239
"""systemd of RHEL 8, the oldest one that hosts have."""


@dataclass(frozen=True)
class Property:
    """One line of a unit's [Service] section."""

    name: str
    value: str
    since: int = OLDEST
    """The first systemd that has it: an older one warns in a unit file, and refuses it in a
    transient unit."""
    user: bool = False
    """A user's own manager can do it: it needs no more than prctl(2) and seccomp(2)."""

    def __str__(self) -> str:
        return f"{self.name}={self.value}"


_SYSCALLS = (
    Property("SystemCallArchitectures", "native", user=True),
    Property("SystemCallErrorNumber", "EPERM", user=True),
)

_ANYONE = (
    Property("PrivateTmp", "yes"),
    Property("PrivateMounts", "yes"),
    # Interpreter, toolkit, model and /opt itself may lie below /home, or behind a link to it.
    Property("ProtectHome", "read-only"),
    Property("ProtectKernelTunables", "yes"),
    Property("ProtectKernelLogs", "yes", since=244),
    Property("ProtectControlGroups", "yes"),
    Property("ProtectClock", "yes", since=245),
    Property("ProtectHostname", "yes", since=242),
    Property("RestrictNamespaces", "yes", user=True),
    Property("RestrictRealtime", "yes", user=True),
    Property("LockPersonality", "yes", user=True),
)

# Left out for the account, and why. MemoryDenyWriteExecute=: libffi before 3.4 maps the stubs of
# ctypes' callbacks writable and executable, and what a driver's compiler of PTX does is NVIDIA's to
# change. RemoveIPC=: a unit that ends would take the shared memory of one that still runs.
# PrivateUsers=: a kernel that is told to have no user namespaces starts no such unit.
_ACCOUNT = (
    Property("NoNewPrivileges", "yes", user=True),
    Property("CapabilityBoundingSet", ""),
    Property("ProtectSystem", "strict"),
    Property("ProtectKernelModules", "yes"),
    Property("RestrictSUIDSGID", "yes", since=242, user=True),
    Property("SystemCallFilter", "@system-service", user=True),
)

_UNSEEN = Property("ProtectProc", "invisible", since=247)
_OWNER_SEEN = Property("ProtectProc", "noaccess", since=247)
"""Of a process that holds a GPU a verification tells the user; what it runs stays hidden."""

# The name of the GPUs and of nvidiactl in /proc/devices is nvidia-frontend before driver 545, then
# nvidia and nvidiactl (release notes of 550.40; NVIDIA/nvidia-container-toolkit#324); beside them
# nvidia-uvm, nvidia-caps (MIG) and nvidia-caps-imex-channels. A class counts where it is there when
# the unit starts: DEVICES_UNIT loads the modules first. /dev/dxg: the GPU of WSL.
_GPU = (
    Property("DevicePolicy", "closed"),
    Property("DeviceAllow", "char-nvidia* rw"),
    Property("DeviceAllow", "/dev/dxg rw"),
)

_NO_NETWORK = (
    Property("PrivateNetwork", "yes"),
    Property("IPAddressDeny", "any"),
    Property("RestrictAddressFamilies", "AF_UNIX", user=True),
)

_NETWORK = (Property("RestrictAddressFamilies", "AF_UNIX AF_INET AF_INET6 AF_NETLINK"),)
"""Netlink: the C library asks the kernel for its addresses, useradd reports to the audit."""

# A socket for what systemd is told. No netlink: the server binds to addresses as they are written.
_SERVE = (
    Property("PrivateIPC", "yes", since=248),
    Property("UMask", "0077", user=True),
    Property("RestrictAddressFamilies", "AF_UNIX AF_INET AF_INET6", user=True),
)
_LOOPBACK = (
    Property("IPAddressDeny", "any"),
    Property("IPAddressAllow", "localhost"),
)

# What maintainer scripts need is left alone. A hidden /lib/modules or /dev/mapper would end in an
# initramfs that boots nothing, a hidden /proc/1 in scripts that take the host for a chroot; SELinux
# changes no domain under NoNewPrivileges=. Disks can be read and not written, so no script reaches
# round the file systems; boot loaders and kernels are no packages of ours.
_PACKAGES = (
    Property(
        "CapabilityBoundingSet",
        "CAP_CHOWN CAP_DAC_OVERRIDE CAP_DAC_READ_SEARCH CAP_FOWNER CAP_FSETID CAP_SETFCAP "
        "CAP_SETUID CAP_SETGID CAP_SETPCAP CAP_KILL CAP_AUDIT_WRITE",
    ),
    Property(
        "SystemCallFilter",
        "~@clock @cpu-emulation @debug @module @mount @obsolete @raw-io @reboot @swap",
    ),
    Property("DevicePolicy", "closed"),
    Property("DeviceAllow", "block-* r"),
    Property("DeviceAllow", "char-misc rw"),
    # Stopped, or at a shutdown, the job alone is told, and it lets the package manager end.
    Property("KillMode", "mixed"),
    Property("TimeoutStopSec", "30min"),
)


# It loads modules and makes device files; modprobe(8) may run commands of modprobe.d(5).
_DEVICES = (
    Property("PrivateTmp", "yes"),
    Property("ProtectHome", "yes"),
    Property("ProtectSystem", "full"),
    Property("RestrictNamespaces", "yes"),
    Property("LockPersonality", "yes"),
)


# The folder may be node_exporter's own; an empty set before it takes nothing away.
_METRICS = (
    Property("CapabilityBoundingSet", "CAP_DAC_OVERRIDE"),
    Property("PrivateDevices", "yes"),
)


def of(kind: Kind, layout: Layout) -> tuple[Property, ...]:
    """What holds for a unit of this kind, in the layout's scope."""
    return tuple(one for one in _of(kind, layout) if one.user or layout.scope == "system")


def _of(kind: Kind, layout: Layout) -> Iterable[Property]:
    if kind == "devices":
        return _DEVICES
    if kind == "packages":
        return (*_ANYONE, *_PACKAGES, *_SYSCALLS, *_NETWORK)
    if kind == "metrics":
        return (*_ANYONE, *_ACCOUNT, *_METRICS, _UNSEEN, *_SYSCALLS, *_NO_NETWORK)
    account = (Property("User", USER), *_ANYONE, *_ACCOUNT)
    if kind == "build":
        return (
            *account,
            _UNSEEN,
            *_SYSCALLS,
            Property("PrivateDevices", "yes"),
            *_NETWORK,
            _writes(layout.state, layout.versions, layout.toolkits, layout.servers),
        )
    if kind in ("serve", "serve-public"):
        return (
            *account,
            Property("SystemCallFilter", "~@privileged", user=True),
            *_SYSCALLS,
            *_GPU,
            _UNSEEN,
            *_SERVE,
            *(_LOOPBACK if kind == "serve" else ()),
            _writes(layout.served, layout.compiled),
        )
    return (
        *account,
        _OWNER_SEEN if kind == "verify" else _UNSEEN,
        Property("SystemCallFilter", "~@privileged", user=True),
        *_SYSCALLS,
        *_GPU,
        *_NO_NETWORK,
        _writes(layout.state),
    )


def _writes(*paths: str) -> Property:
    """A path that is missing is the job's to tell: systemd would start nothing and say little."""
    return Property("ReadWritePaths", " ".join(f"-{path}" for path in paths))


def transient(kind: Kind, layout: Layout, systemd: int) -> tuple[str, ...]:
    """Options of systemd-run; `systemd`: the host's version, 0 where it is not known."""
    known = max(systemd, OLDEST)
    return tuple(f"--property={one}" for one in of(kind, layout) if one.since <= known)


def lines(kind: Kind, layout: Layout) -> str:
    """For a unit file, whose reader skips what it does not know."""
    return "\n".join(map(str, of(kind, layout)))
