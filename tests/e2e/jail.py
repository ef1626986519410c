"""This machine as a host that may be broken: an overlay over its root, without systemd.

What is deployed to it, by pyinfra's @local within, stays in the overlay, which is in memory. What
this machine itself has of llamafleet is not to be seen there.
"""

from __future__ import annotations

import subprocess
from pathlib import Path

ROOT = "/tmp/jail"
START = """
mount --make-rprivate / && mkdir -p {root} && mount -t tmpfs none {root} && cd {root} &&
mkdir u w m && mount -t overlay overlay -o lowerdir=/,upperdir=u,workdir=w m &&
mount --rbind /dev m/dev && mount -t proc proc m/proc && mount -t tmpfs -o mode=755 none m/run &&
mount -t tmpfs none m/tmp && chmod 1777 m/tmp && mkdir -p m{folder} &&
mount --bind {folder} m{folder} &&
rm -rf m/opt/llamafleet m/etc/llamafleet m/var/lib/llamafleet* &&
{{ chroot m userdel llamafleet 2>/dev/null; echo ready; }} && exec sleep 3600
"""


class Jail:
    """Namespaces of processes and mounts; `stop` ends all of it."""

    def __init__(self, folder: Path) -> None:
        script = START.format(root=ROOT, folder=folder)
        self.process = subprocess.Popen(
            ["unshare", "-m", "-p", "-f", "--mount-proc", "sh", "-c", script],
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self.process.stdout is not None
        assert self.process.stdout.readline() == "ready\n"
        children = f"/proc/{self.process.pid}/task/{self.process.pid}/children"
        self.pid = Path(children).read_text().split()[0]

    def run(self, command: str, limit: float = 300) -> subprocess.CompletedProcess[str]:
        """A command of root within."""
        inside = ["nsenter", "-t", self.pid, "-m", "-p", "chroot", f"{ROOT}/m", "sh", "-c", command]
        return subprocess.run(inside, capture_output=True, text=True, check=False, timeout=limit)

    def stop(self) -> None:
        """The first process of a namespace takes all others with it."""
        subprocess.run(["kill", "-KILL", self.pid], check=False)
        self.process.wait()
        assert self.process.stdout is not None
        self.process.stdout.close()


def no_jail() -> str:
    """Why none can be made here; "": one can."""
    test = (
        "mkdir -p /tmp/jail && mount -t tmpfs none /tmp/jail && cd /tmp/jail && mkdir u w m && "
        "mount -t overlay overlay -o lowerdir=/,upperdir=u,workdir=w m"
    )
    done = subprocess.run(
        ["unshare", "-m", "-p", "-f", "--mount-proc", "sh", "-c", test],
        capture_output=True,
        text=True,
        check=False,
    )
    return done.stderr.strip() if done.returncode else ""
