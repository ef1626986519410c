"""Names on a host: where every file, unit and user of llamafleet lives."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Scope = Literal["system", "user"]

USER = "llamafleet"
"""The account that builds and verifies in scope system; it has no login."""

AS_ACCOUNT = (
    "setpriv",
    f"--reuid={USER}",
    f"--regid={USER}",
    "--init-groups",
    "--inh-caps=-all",
    "--no-new-privs",
)
"""What root puts before a command that is to have the account's rights alone: setpriv(1), of
util-linux. The environment must be emptied by `env -i` beside it."""

VERIFY_UNIT = "llamafleet-verify.service"
VERIFY_TIMER = "llamafleet-verify.timer"
DRIVER_CHECK_UNIT = "llamafleet-driver-check.service"
DRIVER_CHECK_PATH = "llamafleet-driver-check.path"
METRICS_UNIT = "llamafleet-metrics.service"
METRICS_PATH = "llamafleet-metrics.path"
SERVE_TEMPLATE = "llamafleet-serve@.service"
SERVE_TARGET = "llamafleet-serve.target"
"""Groups all services: what stops or starts it does so with each of them."""
CDI_KIND = "llamafleet.local/gpu"
"""Of the GPUs as they are described to podman: none of the administrator's names."""
CDI_FILE = "/run/cdi/llamafleet.json"
"""Where they are: gone with each boot, as a driver may be."""
QUADLETS = "/etc/containers/systemd"
"""Where podman looks for files that it makes units of: podman-systemd.unit(5)."""
DEVICES_UNIT = "llamafleet-devices.service"
"""Loads the driver's modules before a unit that is let near the GPUs alone."""


def job_unit(kind: str, key: str) -> str:
    """The transient unit of one job."""
    return f"llamafleet-{kind}-{key}.service"


def container_of(profile: str) -> str:
    """What podman calls the container, and its secret, of one profile."""
    return f"llamafleet-serve-{profile}"


def quadlet(profile: str) -> str:
    """File of the container of one profile; podman makes the unit `serve_unit` of it."""
    return f"{QUADLETS}/{serve_unit(profile).removesuffix('.service')}.container"


def serve_unit(profile: str) -> str:
    """The service of one profile."""
    return SERVE_TEMPLATE.replace("@", f"@{profile}")


APT_SOURCE = "/etc/apt/sources.list.d/llamafleet-cuda.sources"
APT_PIN = "/etc/apt/preferences.d/00llamafleet-cuda"
"""Of two pins for all packages of a source the one that is read first counts."""
APT_KEY = "/etc/apt/keyrings/llamafleet-cuda.asc"
APT_CREDENTIALS = "/etc/apt/auth.conf.d/llamafleet-cuda.conf"
DNF_SOURCE = "/etc/yum.repos.d/llamafleet-cuda.repo"
DNF_KEY = "/etc/pki/rpm-gpg/RPM-GPG-KEY-llamafleet-cuda"
HOLD_APT = "/etc/apt/apt.conf.d/52llamafleet-hold-driver"
"""Settings of unattended-upgrades, read after its own 50unattended-upgrades."""


@dataclass(frozen=True)
class Layout:
    """Absolute paths on one host."""

    scope: Scope
    prefix: str
    """Code: builds, toolkits, the zipapp, the ``current`` switch."""
    etc: str
    """Rendered settings."""
    state: str
    """Jobs with their logs and stamps, results, models."""
    units: str
    """systemd's folder for units of this scope."""

    @classmethod
    def system(cls) -> Layout:
        return cls(
            scope="system",
            prefix="/opt/llamafleet",
            etc="/etc/llamafleet",
            state="/var/lib/llamafleet",
            units="/etc/systemd/system",
        )

    @classmethod
    def user(cls, home: str) -> Layout:
        """The XDG defaults below `home`; XDG variables of a login shell are not read."""
        return cls(
            scope="user",
            prefix=f"{home}/.local/share/llamafleet",
            etc=f"{home}/.config/llamafleet",
            state=f"{home}/.local/state/llamafleet",
            units=f"{home}/.config/systemd/user",
        )

    @property
    def zipapp(self) -> str:
        return f"{self.prefix}/llamafleet-host.pyz"

    @property
    def pip(self) -> str:
        return f"{self.prefix}/pip.pyz"

    @property
    def versions(self) -> str:
        return f"{self.prefix}/versions"

    @property
    def toolkits(self) -> str:
        return f"{self.prefix}/toolkits"

    @property
    def jobs_of_root(self) -> str:
        return f"{self.prefix}/jobs"

    @property
    def current(self) -> str:
        return f"{self.prefix}/current"

    @property
    def previous(self) -> str:
        """The build that served before a switch, until all services have answered since."""
        return f"{self.prefix}/previous"

    @property
    def env(self) -> str:
        return f"{self.etc}/llamafleet.env"

    @property
    def verify_config(self) -> str:
        return f"{self.etc}/verify.json"

    @property
    def results(self) -> str:
        return f"{self.state}/results"

    @property
    def models(self) -> str:
        return f"{self.state}/models"

    @property
    def compiler_cache(self) -> str:
        """What was compiled before, and where the source of a build that uses it lies."""
        return f"{self.state}/cache"

    @property
    def timer_stamps(self) -> str:
        """Where systemd keeps the times of persistent timers: systemd.timer(5), Persistent=."""
        if self.scope == "system":
            return "/var/lib/systemd/timers"
        return f"{self.prefix.rpartition('/')[0]}/systemd/timers"

    @property
    def installed_packages(self) -> str:
        """Names of the packages that llamafleet installed, a line each; some may be repeated."""
        return f"{self.prefix}/installed-packages"

    @property
    def hold_record(self) -> str:
        """Names of the packages that llamafleet holds, a line each."""
        return f"{self.prefix}/held-packages"

    @property
    def wheelhouse(self) -> str:
        """Below the prefix: root alone writes there."""
        return f"{self.prefix}/wheelhouse"

    @property
    def images(self) -> str:
        """Names of the container images that llamafleet pulled, a line each; some may be
        repeated."""
        return f"{self.prefix}/images"

    @property
    def shared(self) -> str:
        """Folder of a wheel that another host built, while it is installed. Root alone writes."""
        return f"{self.prefix}/shared"

    @property
    def made(self) -> str:
        """Names of what llamafleet made and may remove, a line each: folders, the account."""
        return f"{self.prefix}/made"

    @property
    def deploy_lock(self) -> str:
        """Who deploys to this host just now. Gone after a reboot in scope system."""
        if self.scope == "system":
            return "/run/llamafleet-deploy.json"
        return f"{self.state}/deploy.json"

    @property
    def machine(self) -> str:
        """The machine-id that a state folder belongs to: a home may be shared by several hosts."""
        return f"{self.state}/machine-id"

    @property
    def configs(self) -> str:
        """Folder of what jobs are told. Root's: a job only reads it."""
        return f"{self.etc}/jobs"

    @property
    def netrc(self) -> str:
        """Credentials of indexes and mirrors, as netrc(5) has them; read by the account, 0640."""
        return f"{self.etc}/netrc"

    def config(self, kind: str, key: str) -> str:
        """What one job is told. A file that only root writes and the account reads: 0640."""
        return f"{self.configs}/{kind}-{key}.json"

    def version(self, name: str) -> str:
        """A build's virtual environment: its fingerprint, or that and "-2", "-3" and so on."""
        return f"{self.versions}/{name}"

    def toolkit(self, name: str) -> str:
        """Root of a toolkit in a folder of our own, as "13.0" or "13.0-runfile"."""
        return f"{self.toolkits}/cuda-{name}"

    def job(self, kind: str, key: str) -> str:
        """Folder of one job: progress.json, <kind>.log, stamp.json."""
        return f"{self.state}/{kind}/{key}"

    def root_job(self, kind: str, key: str) -> str:
        """The same for a job of root, where the account that builds can't reach it."""
        return f"{self.jobs_of_root}/{kind}/{key}"

    def serve_config(self, profile: str) -> str:
        """What one service is told: a protocol.serve.ServeConfig."""
        return f"{self.etc}/serve-{profile}.json"

    def serve_key(self, profile: str) -> str:
        """The API key of one service. Root's alone, 0600: systemd hands it to the service."""
        return f"{self.etc}/serve-{profile}.key"

    def former_config(self, profile: str) -> str:
        """`serve_config` of the container that served before, until another one has answered."""
        return f"{self.etc}/former-{profile}.json"

    def former_container(self, profile: str) -> str:
        """The same of its `quadlet`."""
        return f"{self.etc}/former-{profile}.container"

    def serve_state(self, profile: str) -> str:
        """Folder of what one service writes."""
        return f"{self.served}/{profile}"

    @property
    def gguf(self) -> str:
        """Folder of the models that are served and that llamafleet brought, one folder each."""
        return f"{self.state}/gguf"

    @property
    def served(self) -> str:
        """Folder of the services' own folders, each of which `serve_state` names."""
        return f"{self.state}/serve"

    @property
    def servers(self) -> str:
        """Folder of the folders that `serve_libraries` names; the account's."""
        return f"{self.prefix}/serve"

    @property
    def compiled(self) -> str:
        """Where the driver keeps what it compiled for its GPUs."""
        return f"{self.state}/cuda-cache"

    def serve_libraries(self, name: str) -> str:
        """Folder of the server's own Python packages; `name` tells which they are."""
        return f"{self.servers}/{name}"
