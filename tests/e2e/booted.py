"""A real host for tests: Debian booted by systemd-nspawn, with sshd and systemd."""

from __future__ import annotations

import fcntl
import os
import shutil
import subprocess
import threading
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from tests.e2e.cgroup import inside, made, removed
from tests.ports import free_port

CACHE = Path(os.environ.get("LLAMAFLEET_TEST_CACHE", Path.home() / ".cache/llamafleet-test"))
MIRROR = "http://deb.debian.org/debian"
PACKAGES = "systemd,systemd-sysv,dbus,openssh-server,python3,sudo,ca-certificates"
LATEST = "usr/sbin/update-ca-certificates"
"""A file of the package that was added last: a tree without it is older than PACKAGES."""
NEEDED = ("systemd-nspawn", "debootstrap", "ssh-keygen", "gpg")
ADMIN = "admin"
REBOOTS = 133
"""Exit status of a systemd-nspawn that is to be started again, as its own unit's
RestartForceExitStatus= says: the host asked for a reboot."""


def missing_tools() -> list[str]:
    """What this machine lacks to boot a host; empty: nothing."""
    lacking = [tool for tool in NEEDED if shutil.which(tool) is None]
    return lacking if os.geteuid() == 0 else [*lacking, "root"]


def base_tree(suite: str = "bookworm") -> Path:
    """A minimal Debian tree, made once per machine by debootstrap."""
    tree = CACHE / suite
    CACHE.mkdir(parents=True, exist_ok=True)
    with (CACHE / f"{suite}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (tree / LATEST).exists():
            _bootstrap(suite, tree)
    return tree


def _bootstrap(suite: str, tree: Path) -> None:
    partial = tree.with_name(f"{suite}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    subprocess.run(
        ["debootstrap", "--variant=minbase", f"--include={PACKAGES}", suite, partial, MIRROR],
        check=True,
        stdout=subprocess.DEVNULL,
    )
    shutil.rmtree(tree, ignore_errors=True)
    partial.rename(tree)


@dataclass
class BootedHost:
    """One running host; `stop` ends it and removes its tree."""

    name: str
    tree: Path
    port: int
    key: Path
    console: Path
    address: str = "127.0.0.1"
    namespace: str = ""
    """Network namespace of its own; "": this machine's."""

    def start(self) -> None:
        """Boot it, and again whenever it asks for a reboot."""
        self.groups = made(f"{self.name}-{self.port}")
        self._boot()
        threading.Thread(target=self._boot_again, daemon=True).start()

    def _boot(self) -> None:
        with self.console.open("ab") as log:
            self.process = subprocess.Popen(
                inside(
                    self.groups,
                    [
                        *("systemd-nspawn", "--quiet", "--boot", "--register=no", "--keep-unit"),
                        *("-D", str(self.tree), f"--machine={self._machine()}", "--console=pipe"),
                        f"--hostname={self.name}",
                        *self._network(),
                    ],
                ),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
            )

    def _machine(self) -> str:
        """Two of one name can not run at once, as tests may; its settings are found by the name."""
        settings = Path(f"/run/systemd/nspawn/{self.name}.nspawn")
        return self.name if settings.exists() else f"{self.name}-{self.port}"

    def _network(self) -> list[str]:
        return [f"--network-namespace-path=/run/netns/{self.namespace}"] if self.namespace else []

    def _boot_again(self) -> None:
        while self.process.wait() == REBOOTS:
            self._boot()

    def data(self, **settings: object) -> dict[str, object]:
        """Inventory data that reaches this host as its admin, by sudo."""
        return {
            "ssh_hostname": self.address,
            "ssh_port": self.port,
            "ssh_user": ADMIN,
            "ssh_key": str(self.key),
            "ssh_strict_host_key_checking": "no",
            "ssh_known_hosts_file": "/dev/null",
            "_sudo": True,
            **settings,
        }

    def run(self, command: str, user: str = "root") -> subprocess.CompletedProcess[str]:
        """A command on the host over its own sshd."""
        argv = ["ssh", "-q", "-p", str(self.port), "-i", str(self.key)]
        argv += ["-o", "StrictHostKeyChecking=no", "-o", "UserKnownHostsFile=/dev/null"]
        argv += [f"{user}@{self.address}", command]
        return subprocess.run(argv, capture_output=True, text=True, check=False, timeout=120)

    def processes(self, name: str) -> list[int]:
        """Those on it whose name begins so, as this machine numbers them."""
        here, found = self.tree / "etc/hostname", []
        for process in Path("/proc").glob("[0-9]*"):
            with suppress(OSError):
                its = process / "root/etc/hostname"
                if (process / "comm").read_text().startswith(name) and its.samefile(here):
                    found.append(int(process.name))
        return found

    def reboot(self) -> None:
        """Shut down and boot again; what is not on disk is gone."""
        before = self.process
        self.run("systemctl reboot")
        before.wait(60)
        self.wait()

    def wait(self, limit: float = 60) -> None:
        """Until its sshd answers and its boot has ended; a host that does neither is stopped."""
        deadline = time.monotonic() + limit
        while time.monotonic() < deadline:
            if self.run("systemctl is-system-running --wait >/dev/null; true").returncode == 0:
                return
            time.sleep(0.5)
        said = self.console.read_text()
        self.stop()
        raise TimeoutError(f"{self.name}: no sshd within {limit} s:\n{said}")

    def stop(self) -> None:
        self.process.terminate()
        try:
            self.process.wait(30)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        removed(self.groups)
        shutil.rmtree(self.tree, ignore_errors=True)


def boot(
    name: str,
    folder: Path,
    address: str = "127.0.0.1",
    namespace: str = "",
    suite: str = "bookworm",
) -> BootedHost:
    """Copy the base tree, let `admin` and root in by key, boot it and wait for sshd."""
    tree, key = folder / name, folder / f"{name}.key"
    tree.mkdir(mode=0o755)
    subprocess.run(["cp", "-a", "--reflink=auto", f"{base_tree(suite)}/.", tree], check=True)
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", key], check=True)
    port = free_port()
    _prepare(tree, name, (address, port), key.with_suffix(".key.pub").read_text())
    host = BootedHost(name, tree, port, key, folder / f"{name}.console", address, namespace)
    host.start()
    host.wait()
    return host


def _prepare(tree: Path, name: str, listen: tuple[str, int], public_key: str) -> None:
    address, port = listen
    (tree / "etc/hostname").write_text(f"{name}\n")
    (tree / "etc/ssh/sshd_config.d").mkdir(exist_ok=True)
    (tree / "etc/ssh/sshd_config.d/test.conf").write_text(
        f"Port {port}\nListenAddress {address}\nPermitRootLogin prohibit-password\n"
    )
    subprocess.run(["chroot", tree, "useradd", "--create-home", "-s", "/bin/sh", ADMIN], check=True)
    (tree / "etc/sudoers.d/admin").write_text(f"{ADMIN} ALL=(ALL) NOPASSWD: ALL\n")
    for home, owner in (("root", "root"), (f"home/{ADMIN}", ADMIN)):
        folder = tree / home / ".ssh"
        folder.mkdir(mode=0o700, exist_ok=True)
        (folder / "authorized_keys").write_text(public_key)
        subprocess.run(["chroot", tree, "chown", "-R", owner, f"/{home}/.ssh"], check=True)
    _carry_registry_settings(tree)


def _carry_registry_settings(tree: Path) -> None:
    """Give the host this machine's resolver, certificates, and apt and pip settings."""
    shutil.copy("/etc/resolv.conf", tree / "etc/resolv.conf")
    bundle = Path("/etc/ssl/certs/ca-certificates.crt")
    if bundle.exists():
        (tree / "etc/ssl/certs").mkdir(parents=True, exist_ok=True)
        shutil.copy(bundle, tree / "etc/ssl/certs/ca-certificates.crt")
    for pattern, base in (("*proxy*", "etc/apt/apt.conf.d"), ("*registry*", "etc/apt/apt.conf.d")):
        for file in Path("/", base).glob(pattern):
            shutil.copy(file, tree / base / file.name)
    if Path("/etc/pip.conf").exists():
        shutil.copy("/etc/pip.conf", tree / "etc/pip.conf")
