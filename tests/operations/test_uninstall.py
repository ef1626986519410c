"""What uninstall sees of llamafleet on a host."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from llamafleet.managed import by_path
from operations.uninstall import STOP_JOBS, traces
from tests.facts.fakehost import FakeHost


def test_a_run_that_ended_with_its_packages_is_seen(tmp_path: Path) -> None:
    """The record of packages comes before the account, the tools and any job."""
    host = FakeHost(tmp_path)
    host.files = tuple(by_path(host.layout))
    assert traces(host.snapshot(), host.layout) == []
    record = Path(host.layout.installed_packages)
    host.write(record, "g++\n")
    assert traces(host.snapshot(), host.layout) == [str(record)]


NAMESPACE = ("unshare", "--pid", "--fork", "--mount-proc")
JOB = """
trap 'sleep 14; touch {folder}/ended; exit' TERM
touch {folder}/running
while :; do sleep 0.1; done
"""
SCRIPT = """
sh {folder}/llamafleet-host.pyz job --kind toolkit --dir /opt/llamafleet/jobs/toolkit/apt-13.0 &
until [ -e {folder}/running ]; do sleep 0.1; done
{stop}
test -e {folder}/ended
"""


def no_namespace() -> bool:
    return subprocess.run([*NAMESPACE, "true"], capture_output=True, check=False).returncode != 0


@pytest.mark.skipif(no_namespace(), reason="a namespace of processes needs root")
def test_without_systemd_too_a_package_manager_is_let_end(tmp_path: Path) -> None:
    """In a namespace of its own: jobs of this machine are none of the test's."""
    (tmp_path / "llamafleet-host.pyz").write_text(JOB.format(folder=tmp_path))
    script = tmp_path / "script"
    script.write_text(SCRIPT.format(folder=tmp_path, stop=STOP_JOBS))
    inside = [*NAMESPACE, "sh", str(script)]
    done = subprocess.run(inside, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
