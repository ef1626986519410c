"""What an update of the driver does to what is served, on a booted host with a faked driver.

There is no GPU that could answer a token: the service is held by its own gate. What runs in its
place, where something must run, is a program that waits, under the very same unit.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from llamafleet.layout import DRIVER_CHECK_UNIT, SERVE_TARGET, VERIFY_UNIT, serve_unit
from llamafleet.onhost.verify import synth
from tests.e2e import fake_driver
from tests.e2e.booted import BootedHost
from tests.e2e.runs import write_inventory
from tests.e2e.test_driver_update import (
    LAYOUT,
    NEW,
    OLD,
    SETTINGS,
    GpuHost,
    plant_build,
    pytestmark,
)

pytestmark = [*pytestmark, pytest.mark.long]
HOST = "gpu-c"
UNIT = serve_unit("chat")
MODEL = "/srv/tiny.gguf"


class Serving(GpuHost):
    """Its build counts as proven, and a profile is wanted."""

    def serve(self) -> tuple[int, str]:
        data = self.booted.data(**SETTINGS, serve={"chat": {"model": MODEL}})
        self.fleet = write_inventory(self.folder, {HOST: data})
        return self.deploy()

    def show(self, name: str) -> str:
        return self.booted.run(f"systemctl show --value --property={name} {UNIT}").stdout.strip()

    def status(self) -> str:
        file = f"{LAYOUT.serve_state('chat')}/status.json"
        return self.booted.run(f"cat {file}").stdout

    def stand_in(self) -> str:
        """The unit runs a program that waits; its process."""
        self.booted.run(
            f"mkdir -p {LAYOUT.units}/{UNIT}.d && printf '[Service]\\nType=simple\\nExecStart=\\n"
            f"ExecStart=/bin/sleep infinity\\n' >{LAYOUT.units}/{UNIT}.d/x.conf && "
            f"systemctl daemon-reload && systemctl restart {UNIT}"
        )
        return self.show("MainPID")


@pytest.fixture(scope="module")
def host(booted: BootedHost, folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Serving:
    made = Serving(booted, folder, tmp_path_factory.mktemp("debs"))
    synth.write(booted.tree / MODEL.lstrip("/"), "tiny", "q8_0")
    fake_driver.plant_hardware(booted)
    fake_driver.plant_compiler(booted)
    fake_driver.plant_toolkit(booted, "12.8")
    made.install(OLD)
    booted.reboot()
    plant_build(made)
    made.deploy()
    made.passed()
    return made


def test_without_a_gpu_that_answers_it_is_held_and_the_host_is_red(host: Serving) -> None:
    code, output = host.serve()
    assert code == 1, output
    assert "serve.chat: found it is held: found " in output, output
    assert f"{HOST} serves chat: FAILED" in output
    assert '"state": "held"' in host.status()
    assert host.show("SubState") == "auto-restart"


def test_an_update_that_waits_for_its_reboot_leaves_what_runs(host: Serving) -> None:
    pid = host.stand_in()
    told = f"{UNIT} is changed by {LAYOUT.units}/{UNIT}.d/x.conf, which stays as it is"
    assert told in host.deploy("--dry")[1]
    host.install(NEW)
    host.wait(host.stale)
    host.settled()
    assert host.booted.run(
        f"systemctl show --value -p ExecMainStatus {DRIVER_CHECK_UNIT}"
    ).stdout == ("5\n")
    assert host.show("MainPID") == pid and host.latest() is None


def test_after_the_reboot_it_is_verified_first_and_started_after(host: Serving) -> None:
    host.booted.reboot()
    host.wait(host.latest)
    host.settled()
    journal = host.booted.run(
        f"journalctl -b --no-pager -o cat -u {UNIT} -u {VERIFY_UNIT} -u {SERVE_TARGET}"
    ).stdout
    stopped, verdict = journal.find(f"Stopped {UNIT}"), journal.find(f"FAIL: {HOST}")
    assert -1 < stopped < verdict < journal.rfind(f"Started {UNIT}"), journal
    host.wait(lambda: host.show("ActiveState") == "active")


def test_a_driver_that_is_gone_starts_it_anew(host: Serving) -> None:
    """So that its gate is asked: the stand-in has none."""
    pid = host.show("MainPID")
    host.booted.run("rm -r /sys/module/nvidia")
    host.booted.run(f"systemctl start {DRIVER_CHECK_UNIT}")
    host.wait(lambda: host.show("MainPID") not in (pid, "0"))
    stale = host.stale()
    assert stale and "gone" in stale["reason"], stale
