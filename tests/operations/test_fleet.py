"""Several hosts in one run: what stops one host stops no other, and the table names each."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.e2e.runs import checkout, pyinfra
from tests.hosts.recorded import load
from tests.test_settings import make_wheelhouse

NO_GPU = """#llamafleet-snapshot 1
complete=1
#end"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return checkout(tmp_path)


def fleet(folder: Path, snapshots: dict[str, str]) -> str:
    """Hosts that answer the snapshot script with these texts."""
    hosts = [
        (
            f"@fake/{name}",
            {"fake_responses": {"llamafleet-snapshot": text.splitlines()}, "fake_delay": 0},
        )
        for name, text in snapshots.items()
    ]
    (folder / "fleet").write_text(f"hosts = {hosts!r}\n")
    return "fleet"


def rows(folder: Path) -> dict[str, dict[str, object]]:
    data = json.loads((folder / "results/last-run.json").read_text())
    return {row["host"]: row for row in data["rows"]}


def test_each_bad_host_fails_alone_and_has_its_own_reason(folder: Path) -> None:
    inventory = fleet(folder, {"bare": NO_GPU, "cut": NO_GPU[:30], "odd": "Welcome to lab 3!"})
    run = pyinfra(folder, "-y", inventory, "deploy.py")
    assert run.returncode == 1, run.output
    assert "Traceback" not in run.output, run.output
    found = rows(folder)
    assert set(found) == {"@fake/bare", "@fake/cut", "@fake/odd"}
    assert {row["verdict"] for row in found.values()} == {"FAIL"}
    assert "no NVIDIA GPU" in str(found["@fake/bare"]["reason"])
    assert "could not be read" in str(found["@fake/cut"]["reason"])
    assert "could not be read" in str(found["@fake/odd"]["reason"])


def test_a_host_that_is_not_reached_is_in_the_table(folder: Path) -> None:
    inventory = fleet(folder, {"bare": NO_GPU})
    with (folder / inventory).open("a") as file:
        file.write("hosts.append(('127.0.0.1', {'ssh_port': 1, 'ssh_connect_retries': 0}))\n")
    run = pyinfra(folder, "-y", inventory, "deploy.py")
    assert run.returncode == 1, run.output
    assert "not reached" in str(rows(folder)["127.0.0.1"]["reason"]), run.output


def test_a_host_that_its_wheelhouse_does_not_fit_is_not_touched(
    folder: Path, tmp_path: Path
) -> None:
    house = make_wheelhouse(tmp_path / "w", pythons=["3.11"])
    inventory = fleet(folder, {"gpu": load("rtx4090-580-ubuntu24").text})
    run = pyinfra(folder, "-y", "-vv", "--data", f"wheelhouse={house}", inventory, "deploy.py")
    assert run.returncode == 1 and "Traceback" not in run.output, run.output
    reason = str(rows(folder)["@fake/gpu"]["reason"])
    assert "toolkit: found no CUDA Toolkit on the host" in reason, reason
    assert "wheelhouse: found Python 3.12 on the host, and the wheelhouse is for 3.11" in reason
    assert f"next: llamafleet wheelhouse build {house} " in reason
    # It was read, and that is all.
    assert run.commands == ["[@fake/gpu] >>> LF_SCOPE=system"]


def test_a_dry_run_writes_no_results(folder: Path) -> None:
    run = pyinfra(folder, "--dry", fleet(folder, {"bare": NO_GPU}), "deploy.py")
    assert "no NVIDIA GPU" in run.output, run.output
    assert not (folder / "results").exists()
