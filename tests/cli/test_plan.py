"""`llamafleet plan` and `llamafleet snapshot`: what they print and their exit codes."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from click.testing import Result

from llamafleet.facts.reader import parse
from tests.cli import run
from tests.hosts.recorded import load
from tests.test_settings import make_wheelhouse

RECORDED = Path(__file__).parents[1] / "hosts" / "h100-ubuntu24.snapshot"


def only_line(result: Result) -> str:
    assert result.exit_code == 2, result.output
    (line,) = result.output.splitlines()
    return line


def test_plan_of_a_recorded_host() -> None:
    result = run("plan", RECORDED)
    assert result.exit_code == 0
    for text in (
        "Ubuntu 24.04.3 LTS",
        "gpu 0: NVIDIA H100 80GB HBM3, compute capability 9.0, 81559 MiB",
        "driver: loaded module 580.159.04, library 580.159.04, nvidia-smi 580.159.04, CUDA up to",
        "toolkit: use CUDA 13.0 at /usr/local/cuda-13.0",
        "-DCMAKE_CUDA_ARCHITECTURES=90 ",
    ):
        assert text in result.output


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("rtx4090-hanging-smi", "driver: loaded module 580.159.04, module on disk 580.159.04, "),
        ("rtx4090-hanging-smi", "nvidia-smi timeout\n"),
        ("rtx4090-mismatch", "nvidia-smi failed (Failed to initialize NVML: Driver/library"),
        ("rtx4090-no-driver", "card: 10de:2684 at 0000:01:00.0, bound to nothing\n"),
        ("rtx4090-no-driver", "driver: nvidia-smi absent\n"),
        ("rtx3070-470-ubuntu20", "gpu 0: NVIDIA GeForce RTX 3070, compute capability not told"),
        ("cpu-debian12", "/usr/local/cuda-13.0 (CUDA 13.0, lacks cublas)"),
        ("alpine-cpu", "no glibc"),
    ],
)
def test_facts_of_a_host(name: str, said: str) -> None:
    assert said in run("plan", "-", stdin=load(name).text).output


def test_plan_from_standard_input_with_a_greeting_and_windows_line_ends() -> None:
    text = "Welcome!\n" + RECORDED.read_text("utf-8")
    result = run("plan", "-", stdin=text.replace("\n", "\r\n"))
    assert (result.output, result.exit_code) == (run("plan", RECORDED).output, 0)


def test_plan_with_a_problem() -> None:
    result = run(
        "plan", RECORDED, "--set", "toolkit_version=12.8", "--set", "toolkit_method=wheels"
    )
    assert result.exit_code == 1
    assert "PROBLEM toolkit: " in result.output


def test_settings_change_the_plan() -> None:
    result = run(
        "plan", RECORDED, "--set", "compute_capabilities=['8.9', '9.0']", "--set", "jobs=3"
    )
    assert "  3 jobs, -DCMAKE_CUDA_ARCHITECTURES=89;90 " in result.output


def test_plan_as_json() -> None:
    result = run("plan", RECORDED, "--json")
    record = json.loads(result.output)
    assert record["snapshot"]["driver"]["module"] == "580.159.04"
    assert record["plan"]["toolkit"]["version"] == "13.0"


def offline(tmp_path: Path, toolkits: list[str], cuda: str = "13.1", **changes: Any) -> Result:
    """The plan of a host whose driver runs that CUDA version, from such a wheelhouse alone."""
    folder = make_wheelhouse(tmp_path / "w", toolkits=toolkits, **changes)
    text = load("rtx4090-580-ubuntu24").text
    text = text.replace("CUDA Version: 13.0", f"CUDA Version: {cuda}")
    return run("plan", "-", "--set", f"wheelhouse={folder}", stdin=text)


def test_a_toolkit_that_the_wheelhouse_lacks_gives_way_to_one_that_it_has(tmp_path: Path) -> None:
    result = offline(tmp_path, ["13.0"])
    assert result.exit_code == 0, result.output
    assert "toolkit: install CUDA 13.0 at /opt/llamafleet/toolkits/cuda-13.0" in result.output
    assert "  not 13.1: wheels: CUDA 13.1 is not in the wheelhouse (it has 13.0); " in result.output


def test_a_wheelhouse_without_a_toolkit_that_fits_says_what_to_add(tmp_path: Path) -> None:
    result = offline(tmp_path, ["13.3"])
    assert result.exit_code == 1, result.output
    assert "PROBLEM toolkit: found no CUDA Toolkit on the host; expected CUDA 13.1" in result.output
    added = f"llamafleet wheelhouse build {tmp_path / 'w'} --python 3.12 --arch x86_64"
    assert f"next: {added} --toolkit 13.3 --toolkit 13.1" in result.output


def test_a_wheelhouse_for_other_hosts_is_told_before_anything_is_touched(tmp_path: Path) -> None:
    result = offline(tmp_path, ["13.0"], pythons=["3.11"], arches=["aarch64"])
    assert result.exit_code == 1, result.output
    lines = [line for line in result.output.splitlines() if line.startswith("PROBLEM wheelhouse: ")]
    assert [line.split("found ")[1].split(";")[0] for line in lines] == [
        "Python 3.12 on the host, and the wheelhouse is for 3.11",
        "machine x86_64, and the wheelhouse is for aarch64",
    ]


def command(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """The command in a process of its own: pyinfra's command line patches the standard library."""
    argv = [str(Path(sys.executable).parent / "llamafleet"), *arguments]
    env = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    return subprocess.run(argv, cwd=folder, env=env, capture_output=True, text=True, check=False)


def test_a_host_of_the_inventory_with_its_settings(tmp_path: Path) -> None:
    (tmp_path / "inventory").write_text('lab = (["@local"], {"accelerator": "cpu", "jobs": 1})\n')
    done = command(tmp_path, "plan", "@local", "--set", "model=synthetic:tiny-f16", "--json")
    assert done.returncode in (0, 1), done.stderr
    made = json.loads(done.stdout)["plan"]
    assert made["backend"] == "cpu" and made["host"] != "@local"
    if made["build"]:
        assert made["build"]["config"]["jobs"] == 1
        assert made["verify"]["config"]["inputs"]["model"] == "synthetic:tiny-f16"


@pytest.mark.parametrize(
    ("inventory", "arguments", "said"),
    [
        (None, ("plan", "gpu-a"), "gpu-a: found no such file, and no inventory inventory; next: "),
        ('a = ["@local"]', ("plan", "gpu-a"), "nor host in inventory; expected one of @local; "),
        ('a = ["@local"]', ("snapshot", "gpu-a"), "nor host in inventory; expected one of"),
        ("a = [", ("plan", "gpu-a"), "inventory can't be read: "),
        ('a = [("@local", {"job": 1})]', ("plan", "@local"), "host @local: job: found an unknown"),
        (
            'a = [("gpu-a", {"ssh_hostname": "127.0.0.1", "ssh_port": 9})]',
            ("plan", "gpu-a"),
            "gpu-a is not reached: ",
        ),
    ],
)
def test_a_host_that_cannot_be_read(
    tmp_path: Path, inventory: str | None, arguments: tuple[str, ...], said: str
) -> None:
    if inventory is not None:
        (tmp_path / "inventory").write_text(inventory + "\n")
    done = command(tmp_path, *arguments)
    assert done.returncode == 2, done.stdout
    assert done.stderr.splitlines()[-1].startswith("Error: ") and said in done.stderr, done.stderr


# A process of its own, as above.
INTERRUPTED = """
from types import SimpleNamespace
from llamafleet.cli import host as cli_host
from llamafleet.settings import Settings

def interrupt(*arguments, **options):
    raise KeyboardInterrupt

host = SimpleNamespace(
    name="gpu-a",
    connect=lambda **options: None,
    get_fact=interrupt,
    disconnect=lambda: print("disconnected"),
)
try:
    cli_host._text(host, Settings())
except KeyboardInterrupt:
    print("interrupted")
"""


def test_a_host_is_left_as_it_was_also_after_control_c(tmp_path: Path) -> None:
    env = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    argv = [sys.executable, "-c", INTERRUPTED]
    done = subprocess.run(argv, cwd=tmp_path, env=env, capture_output=True, text=True, check=False)
    assert done.stdout.split() == ["disconnected", "interrupted"], done.stderr


def test_truncated_snapshot(tmp_path: Path) -> None:
    file = tmp_path / "host.snapshot"
    file.write_text("\n".join(RECORDED.read_text("utf-8").splitlines()[:40]))
    assert f"{file}: found a truncated snapshot, 40 lines" in only_line(run("plan", file))


def test_a_file_that_is_no_snapshot(tmp_path: Path) -> None:
    file = tmp_path / "binary"
    file.write_bytes(bytes(range(256)))
    assert "expected a line #llamafleet-snapshot 1" in only_line(run("plan", file))


@pytest.mark.parametrize(
    ("pair", "said"),
    [
        ("toolkt_version=13.0", "toolkt_version: found an unknown key"),
        ("scope=global", "scope: found 'global', allowed: system or user"),
        ("scope", "--set: found no key and value"),
        ("cmake_options={", "--set cmake_options: the value is no text"),
        ("jobs=2026-13-45", "--set jobs: the value is no text"),
        ("jobs=" + "[" * 3000, ": the value is no text"),
    ],
)
def test_bad_setting(pair: str, said: str) -> None:
    assert said in only_line(run("plan", RECORDED, "--set", pair))


@pytest.mark.parametrize("value", ["0000:41:00.0", "[0000:41:00.0]", "41:00.0"])
def test_a_bus_id_is_no_number_to_base_60(value: str) -> None:
    """YAML 1.1 takes it for 2460.0."""
    said = run("plan", RECORDED, "--set", f"gpus={value}").output
    assert f"PROBLEM gpus: found {value.strip('[]')}, which no GPU of this host has" in said


def test_printed_script_reads_a_host() -> None:
    script = run("snapshot", "--script", "--set", "host_compiler=/opt/x/g++").output
    assert "LF_EXTRA=/opt/x/g++\n" in script
    done = subprocess.run(["sh"], input=script, capture_output=True, text=True, check=True)
    assert parse(done.stdout.split("\n")).arch


def test_snapshot_of_this_machine_is_planned(tmp_path: Path) -> None:
    (tmp_path / "inventory").write_text('lab = ["@local"]\n')
    file = tmp_path / "here.snapshot"
    assert command(tmp_path, "snapshot", "@local", "-o", str(file)).returncode == 0
    assert run("plan", file, "--set", "accelerator=cpu").output.startswith("host: ")


@pytest.mark.parametrize("arguments", [(), ("@local", "--script")])
def test_snapshot_of_nothing_or_of_both_is_refused(arguments: tuple[str, ...]) -> None:
    assert "@local" in only_line(run("snapshot", *arguments))


def test_a_file_without_end_is_one_line() -> None:
    result = run("plan", "/dev/zero")
    assert result.exit_code == 2 and "/dev/zero: found more than" in result.output


def test_a_name_that_no_file_can_have_is_one_line(tmp_path: Path) -> None:
    done = command(tmp_path, "plan", "a" * 300, "--inventory", "b" * 300)
    assert done.returncode == 2
    assert "found no such file, and no inventory bbb" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_scrubbed_snapshot_names_nobody(tmp_path: Path) -> None:
    name = platform.node()
    (tmp_path / "inventory").write_text('lab = ["@local"]\n')
    file = tmp_path / "here.snapshot"
    assert command(tmp_path, "snapshot", "@local", "--scrub", "-o", str(file)).returncode == 0
    text = file.read_text("utf-8")
    assert "hostname=host-1\n" in text and f"hostname={name}" not in text
    assert run("plan", file, "--set", "accelerator=cpu").output.startswith("host: host-1")
