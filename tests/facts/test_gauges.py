"""Records of watch.sh, read: figures, words in their place, garbage, and services."""

from __future__ import annotations

import json
import os
import pwd
import re
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from importlib.resources import files as package_files
from pathlib import Path
from typing import Any, ClassVar

import pytest

from llamafleet.facts import gauges
from llamafleet.facts.gauges import FIELDS, METRICS, NoRecord, parse
from llamafleet.facts.watch import command
from llamafleet.layout import Layout, serve_unit
from llamafleet.onhost.serve.metrics import Metrics

HOSTS = Path(__file__).parents[1] / "hosts"
UUID = "GPU-4e5ab3a1-0000-0000-0000-000000000001"
COMMON = f"0, {UUID}, 00000000:C1:00.0, 20034, 4046, 24564, 98, 310.50, 450.00, 2520, 10501, 61"
NAME = "NVIDIA GeForce RTX 4090"
ROWS = {
    1: f"{COMMON}, 0x0000000000000004, 25, None, {NAME}",
    2: f"{COMMON}, 0x0000000000000004, {NAME}",
    3: f"{COMMON}, 0x0000000000000004, {NAME}",
    4: f"{COMMON}, {NAME}",
}


def record(*gpus: str, level: int = 1, rc: int = 0, more: tuple[str, ...] = ()) -> list[str]:
    lines = [f"level|{level}", *(f"gpu|{gpu}" for gpu in gpus), f"gpu_rc|{rc}"]
    return ["Welcome!", "#begin 1", *lines, "app_rc|0", *more, "#end 1"]


@pytest.mark.parametrize("level", [1, 2, 3, 4])
def test_figures_of_each_list_of_fields(level: int) -> None:
    (gpu,) = parse(record(ROWS[level], level=level)).gpus
    assert (gpu.pci, gpu.uuid, gpu.name) == ("0000:c1:00.0", UUID, NAME)
    assert (gpu.used_mib, gpu.free_mib, gpu.total_mib) == (20034, 4046, 24564)
    assert (gpu.utilisation, gpu.power_w, gpu.power_limit_w) == (98, 310.5, 450)
    assert (gpu.sm_clock_mhz, gpu.memory_clock_mhz, gpu.temperature_c) == (2520, 10501, 61)
    assert gpu.reasons == (None if level == 4 else 4)
    assert gpu.margin_c == (25 if level == 1 else None)
    assert (gpu.recovery, gpu.faults) == ("", ())


def test_what_is_not_told_is_none_and_no_fault() -> None:
    row = ROWS[1].replace("310.50", "[N/A]").replace(" 98,", " [Not Supported],")
    (gpu,) = parse(record(row)).gpus
    assert (gpu.power_w, gpu.utilisation, gpu.faults) == (None, None, ())


@pytest.mark.parametrize("word", ["[Unknown Error]", "[GPU requires reset]", "[GPU is lost]"])
def test_words_in_the_place_of_figures_are_faults(word: str) -> None:
    (gpu,) = parse(record(ROWS[1].replace("310.50", word))).gpus
    assert gpu.faults == (f"power.draw: {word}",)


def test_a_recovery_is_told() -> None:
    (gpu,) = parse(record(ROWS[1].replace("None", "Reset"))).gpus
    assert gpu.recovery == "Reset"


def test_a_name_may_hold_a_comma() -> None:
    (gpu,) = parse(record(ROWS[1].replace(NAME, "NVIDIA A, B"))).gpus
    assert gpu.name == "NVIDIA A, B"


def test_complaints_of_recorded_hosts_are_told() -> None:
    seen = set()
    for file in sorted(HOSTS.glob("*.yaml")):
        for line in file.read_text().splitlines():
            if found := re.search(r"Unable to determine the device handle[^'\"]*", line):
                (complaint,) = parse(record(ROWS[1], found[0], rc=0)).complaints
                place = gauges.PLACE.search(complaint)
                assert place, complaint
                seen.add(gauges.address(place))
    assert {"0000:07:00.0", "0000:c1:00.0", "0000:ba:80.0"} <= seen


def test_no_gpu_is_told_with_what_nvidia_smi_said() -> None:
    now = parse(record("No devices were found", rc=6))
    assert now.fault == "nvidia-smi tells of no GPU: No devices were found"
    assert parse(record(rc=0)).fault == "nvidia-smi tells of no GPU: status 0"
    assert parse(record(ROWS[1], rc=137)).fault == "nvidia-smi does not end"
    assert parse(record(ROWS[1], rc=14)).fault == ""
    assert parse(record(ROWS[1], "half of a ro", rc=15)).fault == (
        "nvidia-smi ended with 15: half of a ro"
    )


def test_no_nvidia_smi_is_no_fault() -> None:
    now = parse(["#begin 1", "#end 1"])
    assert (now.driver, now.gpus, now.fault) == (False, (), "")


def test_garbage_is_no_record() -> None:
    with pytest.raises(NoRecord, match="found 'bash: sh: not found'; expected a record"):
        parse(["bash: sh: not found"])
    with pytest.raises(NoRecord, match="found 'nothing'"):
        parse([])


def test_what_a_terminal_would_obey_is_left_out() -> None:
    now = parse(record(ROWS[1].replace(NAME, "\x1b[2Jcard"), "\x1b]0;x\x07 No devices", rc=6))
    assert now.gpus[0].name.isprintable() and now.fault.isprintable()


def test_processes_with_user_and_unit() -> None:
    more = (
        f"app|{UUID}, 4711, 19000, /usr/bin/python3",
        f"app|{UUID}, 4712, [N/A], ollama",
        "app|No running processes found",
        "owner|/proc/4711 llamafleet",
        "owner|/proc/4712 root",
        "unit|/proc/4711/cgroup:llamafleet-serve@chat.service",
    )
    ours, other = parse(record(ROWS[1], more=more)).processes or ()
    assert (ours.pid, ours.used_mib, ours.user, ours.profile) == (4711, 19000, "llamafleet", "chat")
    assert (other.pid, other.used_mib, other.user, other.profile) == (4712, None, "root", "")


def test_processes_that_are_not_told_are_not_none() -> None:
    lines = [line.replace("app_rc|0", "app_rc|255") for line in record(ROWS[1])]
    assert parse(lines).processes is None


def test_services_are_typed() -> None:
    good = {"profile": "chat", "state": "ready", "reason": "", "metrics": {"a": 1.0}, "at": 5.0}
    bad = [{**good, "state": "fine"}, {**good, "at": "x"}, {**good, "profile": "../x"}, [], 5]
    more = tuple(f"service|{json.dumps(one)}" for one in [good, *bad])
    now = parse(record(ROWS[1], more=(*more, "service|{", "service_rc|0")))
    assert [one.profile for one in now.services] == ["chat"]
    assert len(now.notes) == 5


@pytest.mark.parametrize("odd", [{"state": "None"}, {"metrics": 5}, {"at": "x"}])
def test_a_service_whose_word_is_odd_is_seen(odd: dict[str, Any]) -> None:
    told = {"profile": "chat", "state": "ready", "reason": "", "metrics": {}, "at": 5.0, **odd}
    (one,) = parse(record(ROWS[1], more=(f"service|{json.dumps(told)}",))).services
    assert (one.profile, one.state) == ("chat", None) and next(iter(odd)) in one.reason


def test_the_metrics_are_those_of_the_server() -> None:
    page = Metrics().page().decode()
    assert [name for name in METRICS if f"\n{name} " not in page] == []


def test_the_script_is_accepted_by_shells(tmp_path: Path) -> None:
    """Run without a driver: a record whose end is there, and no error."""
    text = command(Layout.system(), 2.0, 1)
    assert "\n" not in text and len(text) < 1 << 16
    (tmp_path / "bin").mkdir()
    done = subprocess.run(["sh", "-c", text], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "#end 1" and done.stderr == ""


@pytest.mark.skipif(shutil.which("shellcheck") is None, reason="no shellcheck")
def test_shellcheck_finds_nothing() -> None:
    script = str(package_files("llamafleet.facts").joinpath("watch.sh"))
    done = subprocess.run(["shellcheck", script], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("known", [1, 2, 3, 4])
def test_an_older_driver_is_asked_for_less(tmp_path: Path, known: int) -> None:
    refused = [set(FIELDS[n]) - set(FIELDS[known - 1]) for n in range(known - 1)]
    cases = "".join(
        f"*{next(iter(sorted(one)))}*) echo 'Field \"x\" is not a valid field to query.'; exit 2;;"
        for one in refused
    )
    smi = tmp_path / "nvidia-smi"
    smi.write_text(f"#!/bin/sh\ncase $1 in {cases} --query-gpu=*) echo '{ROWS[known]}';; esac\n")
    smi.chmod(0o755)
    done = subprocess.run(
        ["sh", "-c", command(Layout.system(), 2.0, 1)],
        env={**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}"},
        capture_output=True,
        text=True,
        check=True,
    )
    now = parse(done.stdout.splitlines())
    assert (now.level, len(now.gpus), now.fault) == (known, 1, "")


# -- services --------------------------------------------------------------------------------------


class Page(BaseHTTPRequestHandler):
    keys: ClassVar[list[str | None]] = []

    def do_GET(self) -> None:
        self.keys.append(self.headers["Authorization"])
        self.send_response(200)
        self.end_headers()
        self.wfile.write(b"# HELP x\nllamafleet_generated_tokens_total 12.0\nother 1\n")

    def log_message(self, format: str, *args: object) -> None:
        """Nothing."""


UNIT = "/system.slice/system-llamafleet.slice/llamafleet-serve@chat.service"


def processes(folder: Path, inside: int, unit: str = UNIT, uid: int | None = None) -> Path:
    """A /proc in which this process is one of that unit, and has that number in its container."""
    pid, uid = os.getpid(), os.geteuid() if uid is None else uid
    own = folder / "proc" / str(pid)
    own.mkdir(parents=True, exist_ok=True)
    (own / "cgroup").write_text(f"0::{unit}/libpod-payload-4f1c\n")
    (own / "status").write_text(f"Name:\tx\nUid:\t{uid}\t{uid}\nNSpid:\t{pid}\t{inside}\n")
    for name, real in (("proc/net", "/proc/net"), (f"proc/{pid}/fd", f"/proc/{pid}/fd")):
        if not (folder / name).is_symlink():
            (folder / name).symlink_to(real)
    return folder / "proc"


def asked(
    folder: Path,
    /,
    user: str = "",
    proc: Path | None = None,
    pid: int = 1,
    status: str = "",
    **config: Any,
) -> list[dict[str, Any]]:
    """What watch_services.py tells of one service with a key, process 1 of its container."""
    folder.chmod(0o755)
    state = {"state": "ready", "pid": pid, "reason": ""}
    (folder / "status.json").write_text(status or json.dumps(state))
    told = {"alias": "m", "key": True, "folder": str(folder), "address": "127.0.0.1", **config}
    (folder / "serve-chat.json").write_text(json.dumps(told))
    (folder / "serve-chat.key").write_text("sk-secret\n")
    text = package_files("llamafleet.facts").joinpath("watch_services.py").read_text("utf-8")
    text = text.replace('PROC = "/proc"', f"PROC = {str(proc or processes(folder, 1))!r}")
    paths = [str(folder / "serve-*.json"), str(folder / "serve-*.key"), serve_unit("*")]
    argv = [sys.executable, "-I", "-S", "-c", text, *paths, user, " ".join(METRICS)]
    done = subprocess.run(argv, capture_output=True, text=True, check=True)
    return [json.loads(line) for line in done.stdout.splitlines()]


@pytest.fixture
def open_folder() -> Iterator[Path]:
    """One that every account may enter."""
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o755)
        yield Path(folder)


@pytest.fixture
def port() -> Any:
    server = HTTPServer(("127.0.0.1", 0), Page)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    Page.keys.clear()
    yield server.server_port
    server.shutdown()
    server.server_close()


def test_a_service_tells_its_metrics_to_who_has_its_key(tmp_path: Path, port: int) -> None:
    (told,) = asked(tmp_path, port=port)
    assert (told["profile"], told["state"]) == ("chat", "ready")
    assert told["metrics"] == {"llamafleet_generated_tokens_total": 12.0}
    assert Page.keys == ["Bearer sk-secret"]
    (now,) = parse(record(ROWS[1], more=(f"service|{json.dumps(told)}", "service_rc|0"))).services
    assert now.state == "ready"


def test_a_container_that_has_ended_is_not_believed_by_what_it_left(
    tmp_path: Path, port: int
) -> None:
    """Number 1, which its status tells, is there on every host."""
    (told,) = asked(tmp_path, proc=processes(tmp_path, 1, "/system.slice/other.service"), port=port)
    assert (told["state"], told["reason"]) == ("failed", "found no process of it")
    assert (told["metrics"], Page.keys) == ({}, [])


def test_the_last_word_of_one_that_has_ended_is_told(tmp_path: Path, port: int) -> None:
    ended = processes(tmp_path, 1, "/system.slice/other.service")
    status = json.dumps({"state": "stopped", "pid": 1, "reason": ""})
    (told,) = asked(tmp_path, proc=ended, status=status, port=port)
    assert (told["state"], told["reason"], told["metrics"]) == ("stopped", "", {})


def test_another_process_of_the_account_is_none_of_the_service(tmp_path: Path, port: int) -> None:
    """It may write the status, and stand beside the container in its number."""
    for proc in (
        processes(tmp_path, 7),
        processes(tmp_path, 1, UNIT.replace("@chat", "@chat2")),
        processes(tmp_path, 1, uid=os.geteuid() + 1),
    ):
        (told,) = asked(tmp_path, proc=proc, port=port)
        assert (told["state"], told["reason"]) == ("failed", "found no process of it")
    assert Page.keys == []


@pytest.mark.skipif(os.geteuid() != 0, reason="takes another account's rights")
def test_another_process_behind_the_port_gets_no_key(open_folder: Path, port: int) -> None:
    entry = pwd.getpwnam("nobody")
    nobody, rights = entry.pw_uid, {"user": entry.pw_uid, "group": entry.pw_gid}
    other = subprocess.Popen(["sleep", "60"], extra_groups=[], **rights)
    try:
        proc = processes(open_folder, 5, uid=0)
        own = proc / str(other.pid)
        own.mkdir()
        (own / "cgroup").write_text(f"0::{UNIT}\n")
        (own / "status").write_text(f"Uid:\t{nobody}\nNSpid:\t{other.pid}\n")
        (own / "fd").symlink_to(f"/proc/{other.pid}/fd")
        (told,) = asked(open_folder, user="nobody", proc=proc, pid=other.pid, port=port)
    finally:
        other.kill()
        other.wait()
    assert told["state"] == "ready"
    assert told["reason"] == (
        f"ValueError: found 127.0.0.1 port {port} of another process; expected one of this service"
    )
    assert (told["metrics"], Page.keys) == ({}, [])


def test_a_port_of_another_address_is_none_of_its_own(tmp_path: Path, port: int) -> None:
    with socket.socket() as other:
        other.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        other.bind(("127.0.0.2", port))
        other.listen()
        proc = processes(tmp_path, 1)
        pid = os.getpid()
        (proc / str(pid) / "fd").unlink()
        (proc / str(pid) / "fd").mkdir()
        inode = os.fstat(other.fileno()).st_ino
        for link in Path(f"/proc/{pid}/fd").iterdir():
            if link.is_symlink() and f"[{inode}]" not in str(link.readlink()):
                (proc / str(pid) / "fd" / link.name).symlink_to(link.readlink())
        (told,) = asked(tmp_path, proc=proc, port=port)
        assert (told["reason"], bool(told["metrics"])) == ("", True)
        (told,) = asked(tmp_path, proc=proc, port=port, address="127.0.0.2")
        assert "of another process" in told["reason"]
        (told,) = asked(tmp_path, proc=proc, port=port, address="127.0.0.3")
        assert f"found 127.0.0.3 port {port} closed" in told["reason"]


@pytest.mark.parametrize(
    "status",
    [
        "[" * 100_000,
        '{"state": "ready", "pid": 1e999}',
        '{"state": "ready", "pid": [1]}',
        '{"state": "ready"}',
        "[]",
        "\x00",
        f'{{"state": "ready", "pid": {"9" * 5000}}}',
    ],
)
def test_a_status_that_is_none_silences_no_service(tmp_path: Path, port: int, status: str) -> None:
    (told,) = asked(tmp_path, port=port, status=status)
    assert told["reason"] and told["metrics"] == {}
    assert Page.keys == []


def test_one_that_has_told_nothing_yet(tmp_path: Path, port: int) -> None:
    """As a container that verifies its GPUs."""
    (told,) = asked(tmp_path, port=port, folder=str(tmp_path / "none"))
    assert (told["state"], told["reason"]) == (None, "it has told nothing yet")


@pytest.mark.skipif(os.geteuid() != 0, reason="takes another account's rights")
def test_what_the_account_put_there_is_read_with_its_rights(open_folder: Path, port: int) -> None:
    secret = open_folder / "secret"
    secret.mkdir(mode=0o700)
    told = {"state": "held", "pid": 1, "reason": "root's own"}
    (secret / "status.json").write_text(json.dumps(told))
    folder = open_folder / "state"
    folder.symlink_to(secret)
    (service,) = asked(open_folder, user="nobody", port=port, folder=str(folder))
    assert (service["state"], "root's own" in service["reason"]) == (None, False)


def test_a_pipe_in_the_place_of_a_file_is_not_waited_for(tmp_path: Path, port: int) -> None:
    folder = tmp_path / "state"
    folder.mkdir()
    os.mkfifo(folder / "status.json")
    (told,) = asked(tmp_path, port=port, folder=str(folder))
    assert told["reason"] == "ValueError: no plain file"


def test_hosts_of_old_have_an_old_python() -> None:
    """Compiled as Python 3.6 has it: no newer words."""
    import ast

    text = package_files("llamafleet.facts").joinpath("watch_services.py").read_text("utf-8")
    ast.parse(text, feature_version=(3, 6))
    assert "from __future__ import annotations" not in text
