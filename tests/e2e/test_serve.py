"""Services on a booted host, from the settings to the last trace: the CPU's build and a tiny model.

The build is the one of LLAMAFLEET_TEST_PYTHON, planted with the plan's own inputs. What is served
is asked over HTTP, as a client would. The whole story is one file of steps, in their order.
"""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from llamafleet.facts.snapshot import parse, render
from llamafleet.layout import DRIVER_CHECK_UNIT, SERVE_TARGET, VERIFY_UNIT, Layout, serve_unit
from llamafleet.onhost.verify import synth
from llamafleet.plans.make import make_plan, to_read
from llamafleet.plans.plan import Plan
from llamafleet.protocol.job import BUILD, BuildProduct, Stamp
from llamafleet.settings import Settings
from tests.e2e import fake_driver
from tests.e2e.booted import BootedHost, missing_tools
from tests.e2e.runs import Run, pyinfra, start, write_inventory
from tests.e2e.test_sandbox import exposure
from tests.onhost import llama
from tests.ports import free_port
from tests.test_sandbox import LIMITS

pytestmark = [
    pytest.mark.e2e,
    llama.needs_llama,
    pytest.mark.skipif(bool(missing_tools()), reason=f"to boot a host: {missing_tools()} missing"),
]
HOST = "serve-a"
LAYOUT = Layout.system()
UNIT = serve_unit("chat")
MODEL = "/srv/tiny.gguf"
KEY = "sk-test-0123456789-abcdefghij"
OTHER = {"cmake_options": {"GGML_OPENMP": "ON"}}
"""Settings of another build."""
LIBRARIES = ("libgomp.so.1",)
"""What a host with a compiler has, and this one's tree has not."""


class ServingHost:
    """A booted host with a build as planned; it serves on a port of its own."""

    def __init__(self, booted: BootedHost, folder: Path) -> None:
        self.booted, self.folder = booted, folder
        self.port = free_port()
        self.key = folder / "api.key"
        self.key.write_text(f"{KEY}\n")
        self.key.chmod(0o600)
        fake_driver.plant_compiler(booted)
        for name in LIBRARIES:
            library = Path("/usr/lib/x86_64-linux-gnu", name).resolve()
            shutil.copy(library, booted.tree / "usr/lib/x86_64-linux-gnu" / name)
        synth.write(self.file(MODEL), "tiny", "q8_0")
        self.plant()

    def file(self, path: str) -> Path:
        """Where a path of the host lies here."""
        return self.booted.tree / path.lstrip("/")

    def settings(self, **profile: object) -> dict[str, Any]:
        chat = {"model": MODEL, "port": self.port, "n_ctx": 512, "api_key_file": str(self.key)}
        return {
            "accelerator": "cpu",
            "model": "synthetic:tiny-q4_0",
            "bench_prompt": 16,
            "bench_gen": 4,
            "bench_repetitions": 2,
            "context": 512,
            "serve": {"chat": chat | profile},
        }

    def plan(self, **more: object) -> Plan:
        settings = Settings.model_validate(self.settings() | more)
        script = self.file("/root/snapshot.sh")
        script.write_text(render(*to_read(settings)))
        snapshot = parse(self.booted.run("sh snapshot.sh").stdout.splitlines())
        return make_plan(HOST, settings, snapshot, LAYOUT)

    def plant(self, **more: object) -> Path:
        """The build of this machine, as one that was built there; its site-packages."""
        made = self.plan(**more)
        build = made.build
        assert build is not None, made.problems
        prefix = LAYOUT.version(build.fingerprint)
        self.sh(f"mkdir -p {prefix} && {build.python} -m venv --without-pip {prefix}")
        site = next(self.file(prefix).glob("lib/python3*/site-packages"))
        theirs = next(llama.prefix().glob("lib/python3*/site-packages"))
        subprocess.run(["cp", "-a", f"{theirs}/.", site], check=True)
        self.file(LAYOUT.zipapp).touch()
        stamp = Stamp(
            kind="build", key=build.fingerprint, ok=True, finished=1.0, inputs=asdict(build.inputs)
        )
        product = BuildProduct(
            wheel_bytes=None,
            wheel_sha256=None,
            libraries=llama.libraries(),
            units=135,
            llama_cpp_python="0.3.36",
            system_info="",
            import_s=0.1,
        )
        told = asdict(stamp) | asdict(product)
        self.file(f"{prefix}/{BUILD}").write_text(json.dumps(told))
        return site

    def sh(self, command: str) -> str:
        done = self.booted.run(command)
        assert done.returncode == 0, (command, done.stdout, done.stderr)
        return done.stdout.strip()

    def deploy(self, *options: str, **profile: object) -> Run:
        return self.run(self.settings(**profile), *options)

    def fleet(self, settings: dict[str, Any]) -> str:
        return write_inventory(self.folder, {HOST: self.booted.data(**settings)}, "serving")

    def run(self, settings: dict[str, Any], *options: str) -> Run:
        fleet = self.fleet(settings)
        return pyinfra(self.folder, *(options or ("-y", "--json")), fleet, "deploy.py")

    def interrupted(self, settings: dict[str, Any], when: Callable[[], object]) -> str:
        """What a run says that is interrupted as soon as that holds."""
        process = start(self.folder, self.fleet(settings))
        deadline = time.monotonic() + 300
        while not when():
            assert process.poll() is None, process.communicate()[0]
            assert time.monotonic() < deadline
            time.sleep(0.02)
        process.send_signal(signal.SIGINT)
        said = process.communicate(timeout=60)[0]
        assert process.returncode == 128 + signal.SIGINT, said
        return said

    def link(self, path: str) -> str:
        """The build that a link points to."""
        file = self.file(path)
        return file.readlink().name if file.is_symlink() else ""

    def show(self, name: str, unit: str = UNIT) -> str:
        return self.sh(f"systemctl show --value --property={name} {unit}")

    def status(self) -> dict[str, Any]:
        file = self.file(f"{LAYOUT.serve_state('chat')}/status.json")
        return json.loads(file.read_text()) if file.exists() else {}

    def ask(self, path: str, body: object = None, key: str = KEY) -> tuple[int, Any]:
        """Status and object of an answer, asked from the host itself."""
        script = (
            "import json,sys,urllib.request as u\n"
            f"r=u.Request('http://127.0.0.1:{self.port}{path}',"
            f"data={json.dumps(body).encode() if body is not None else None!r},"
            f"headers={{'Authorization':'Bearer {key}','Content-Type':'application/json'}})\n"
            "try:\n a=u.urlopen(r,timeout=30)\nexcept u.HTTPError as e:\n a=e\n"
            "except OSError as e:\n print(json.dumps([0,str(e)]));sys.exit()\n"
            "t=a.read().decode()\n"
            "print(json.dumps([a.status,json.loads(t) if t[:1]=='{' else t]))\n"
        )
        self.file("/root/ask.py").write_text(script)
        code, answer = json.loads(self.sh("python3 /root/ask.py"))
        return code, answer

    def completion(self, key: str = KEY) -> tuple[int, Any]:
        wish = {"model": "chat", "prompt": "Hello", "max_tokens": 3, "temperature": 0}
        return self.ask("/v1/completions", wish, key)

    def wait(self, until: Callable[[], object], limit: float = 60) -> None:
        deadline = time.monotonic() + limit
        while not until():
            if time.monotonic() > deadline:
                pytest.fail(f"{self.status()}\n{self.journal()}")
            time.sleep(0.5)

    def journal(self) -> str:
        """What waits, what runs, and what was told last, but for our own commands."""
        return self.booted.run(
            "systemctl list-jobs --no-pager; systemctl list-units --all --no-pager 'llamafleet*';"
            "journalctl --no-pager -o short-precise -n 400 | grep -v ' sudo\\[' | tail -n 80"
        ).stdout

    def ready(self) -> bool:
        return self.status().get("state") == "ready" and self.show("ActiveState") == "active"


@pytest.fixture(scope="module")
def host(booted: BootedHost, folder: Path) -> Iterator[ServingHost]:
    yield ServingHost(booted, folder)


def test_a_profile_is_served_once_the_build_is_proven(host: ServingHost) -> None:
    run = host.deploy("-y", "-vvv", "--debug")
    assert run.returncode == 0, run.output + host.journal()
    assert f"{LAYOUT.serve_key('chat')}.partial" in run.output, "it tells what it writes"
    shown = KEY in run.output
    assert not shown, "its key is shown"
    assert f"{HOST} serves chat: ready, http://127.0.0.1:{host.port}/v1, model chat" in run.output
    code, answer = host.completion()
    assert (code, answer["usage"]["completion_tokens"]) == (200, 3), answer
    assert host.ask("/v1/models")[0] == 200
    assert host.completion(key="sk-wrong-0123456789-abcdefghij")[0] == 401
    assert host.show("UnitFileState") == "enabled"
    assert host.show("ActiveState", SERVE_TARGET) == "active"


def test_a_second_run_changes_nothing(host: ServingHost) -> None:
    pid = host.show("MainPID")
    run = host.deploy()
    assert run.returncode == 0 and run.unchanged, run.output
    assert host.show("MainPID") == pid
    assert "serves chat: ready" in run.output


def test_the_key_is_in_no_command_line_environment_or_journal(host: ServingHost) -> None:
    script = (
        "import glob\n"
        f"key = {KEY[:9]!r} + {KEY[9:]!r}\n"
        "for name in glob.glob('/proc/[0-9]*/cmdline') + glob.glob('/proc/[0-9]*/environ'):\n"
        " try: text = open(name, errors='replace').read()\n"
        " except OSError: continue\n"
        " if key in text: print(name, text)\n"
        f"print({UNIT!r} in open('/proc/{host.show('MainPID')}/cgroup').read())\n"
    )
    host.file("/root/find.py").write_text(script)
    assert host.sh("python3 /root/find.py") == "True"
    assert host.sh(f"journalctl --no-pager -u {UNIT} | grep -cF {KEY} || true") == "0"
    assert host.sh(f"stat -c '%U:%G %a' {LAYOUT.serve_key('chat')}") == "root:root 600"
    # Nor in what a run keeps.
    kept = [path for path in (host.folder / "results").rglob("*") if path.is_file()]
    assert kept and not any(KEY in path.read_text("latin1") for path in kept)


def test_its_unit_is_hardly_exposed(host: ServingHost) -> None:
    found = exposure(host.booted, UNIT)
    assert found is not None and found <= LIMITS["serve"], found


@pytest.mark.long
def test_a_crash_is_followed_by_a_restart(host: ServingHost) -> None:
    pid = host.show("MainPID")
    host.sh(f"kill -KILL {pid}")
    host.wait(lambda: host.show("MainPID") not in (pid, "0") and host.ready())
    assert host.completion()[0] == 200


def test_without_a_proof_it_is_held_and_comes_back_with_one(host: ServingHost) -> None:
    latest = f"{LAYOUT.results}/latest.json"
    host.sh(f"mv {latest} /root/latest.json && systemctl restart --no-block {UNIT}")
    host.wait(lambda: host.status().get("state") == "held")
    reason = host.status()["reason"]
    assert "no proof" in reason and "next: " in reason, reason
    assert host.show("SubState") == "auto-restart", "it neither gives up nor is it failed for good"
    assert host.ask("/v1/models")[0] == 0
    # The verification starts what it held.
    host.sh(f"systemctl start {VERIFY_UNIT}")
    host.wait(host.ready)
    assert host.completion()[0] == 200


@pytest.mark.long
def test_a_verification_pauses_it_and_says_so(host: ServingHost) -> None:
    pid = host.show("MainPID")
    host.sh(f"systemctl start {VERIFY_UNIT}")
    host.wait(host.ready)
    assert host.show("MainPID") != pid
    plan = host.deploy("--dry")
    assert "no timer" in plan.output, plan.output
    assert host.booted.run("systemctl list-timers --all 'llamafleet*' --no-legend").stdout == ""


@pytest.mark.long
def test_a_change_of_a_setting_restarts_it(host: ServingHost) -> None:
    dry = host.deploy("--dry", n_ctx=1024)
    assert "serve: restart chat (changed: serve-chat.json)" in dry.output, dry.output
    run = host.deploy(n_ctx=1024)
    assert run.returncode == 0, run.output
    assert host.status()["placement"]["n_ctx"] == 1024
    again = host.deploy(n_ctx=1024)
    assert again.unchanged, again.output


@pytest.mark.long
def test_a_run_that_is_interrupted_while_it_drains_leaves_it_started(host: ServingHost) -> None:
    pid = host.show("MainPID")
    # It drains for as long as what serves does nothing.
    child = host.sh(f"cat /proc/{pid}/task/{pid}/children").split()[0]
    host.sh(f"kill -STOP {child}")
    said = host.interrupted(
        host.settings(n_ctx=768), lambda: host.show("ActiveState") == "deactivating"
    )
    assert "Serve" in said and f"{HOST} serves chat: not asked, " in said, said
    assert host.show("MainPID") == pid
    host.sh(f"kill -CONT {child}")
    host.wait(lambda: host.show("MainPID") not in (pid, "0") and host.ready())
    assert host.status()["placement"]["n_ctx"] == 768
    run = host.deploy(n_ctx=1024)
    assert run.returncode == 0, run.output


@pytest.mark.long
def test_what_a_run_wrote_that_was_cut_off_is_started_by_the_next(host: ServingHost) -> None:
    """Its file is as wanted, and the process is older than it."""
    time.sleep(1.1)
    host.sh(f"touch {LAYOUT.serve_config('chat')}")
    run = host.deploy(n_ctx=1024)
    assert run.returncode == 0 and "newer than it: serve-chat.json" in run.output, run.output


@pytest.mark.long
def test_a_port_that_somebody_has_stops_the_host_before_anything_is_done(
    host: ServingHost,
) -> None:
    port = free_port()
    host.sh(
        f"systemd-run --quiet --unit=other python3 -m http.server --bind 127.0.0.1 {port}; sleep 1"
    )
    run = host.deploy("-y", port=port)
    host.sh("systemctl stop other")
    assert run.returncode != 0
    assert f"serve.chat.port: found 127.0.0.1:{port} in use by process" in run.output, run.output
    assert "of other.service" in run.output
    assert host.completion()[0] == 200, "what is served is not touched"


@pytest.mark.long
def test_a_model_that_is_none_makes_the_host_red_and_says_why(host: ServingHost) -> None:
    host.file("/srv/bad.gguf").write_text("<html>404</html>")
    run = host.deploy("-y", model="/srv/bad.gguf")
    assert run.returncode == 1, run.output
    assert f"{HOST} FAIL" in run.output and "no GGUF file but a web page" in run.output
    assert host.completion()[0] == 200, "what is served goes on"
    back = host.deploy()
    assert back.returncode == 0, back.output


@pytest.mark.long
def test_a_build_that_is_proven_and_does_not_serve_is_gone_back_from(host: ServingHost) -> None:
    """Its libraries are whole; what no verification imports is not."""
    before = host.sh(f"readlink {LAYOUT.current}")
    site = host.plant(**OTHER)
    (site / "llama_cpp/server/app.py").write_text("raise RuntimeError('planted')\n")
    run = host.run(host.settings() | OTHER, "-y")
    assert run.returncode == 1, run.output
    assert f"went back to {before.rpartition('/')[2]}, they serve again" in run.output, run.output
    assert "serve.chat: found it is failed" in run.output and "planted" in run.output, run.output
    assert host.sh(f"readlink {LAYOUT.current}") == before
    assert host.completion()[0] == 200
    # By its own last result, as latest.json speaks of the other build.
    host.sh(f"systemctl restart --no-block {UNIT}")
    host.wait(lambda: host.ready() and host.completion()[0] == 200)
    again = host.deploy()
    assert again.returncode == 0, again.output
    assert host.link(LAYOUT.previous) == ""


@pytest.mark.long
def test_a_run_that_breaks_behind_the_switch_is_put_right_by_the_next(host: ServingHost) -> None:
    """By the same one, which serves nothing: it is asked, and the build of before serves again."""
    before = host.link(LAYOUT.current)
    host.interrupted(host.settings() | OTHER, lambda: host.link(LAYOUT.current) != before)
    assert host.link(LAYOUT.previous) == before
    dry = host.run(host.settings() | OTHER, "--dry")
    assert f"back to {before} where one does not answer" in dry.output, dry.output
    run = host.run(host.settings() | OTHER, "-y")
    assert run.returncode == 1 and f"went back to {before}, they serve again" in run.output
    assert (host.link(LAYOUT.current), host.link(LAYOUT.previous)) == (before, "")
    assert host.completion()[0] == 200
    again = host.deploy()
    assert again.returncode == 0, again.output


@pytest.mark.long
def test_it_is_there_after_a_reboot(host: ServingHost) -> None:
    host.booted.reboot()
    host.wait(host.ready)
    assert host.completion()[0] == 200
    assert host.show("Result", DRIVER_CHECK_UNIT) in ("success", "")


@pytest.mark.long
def test_a_profile_that_is_not_wanted_any_more_goes(host: ServingHost) -> None:
    settings = host.settings()
    other = {"web": settings["serve"]["chat"]}
    dry = host.run(settings | {"serve": other}, "--dry")
    assert "serve: remove chat (not wanted)" in dry.output, dry.output
    run = host.run(settings | {"serve": other})
    assert run.returncode == 0, run.output
    assert host.booted.run(f"systemctl cat {UNIT}").returncode != 0
    left = host.sh(f"find /etc {LAYOUT.state} -name '*chat*' -not -path '*/results/*' || true")
    assert left == ""
    again = host.run(settings | {"serve": {}})
    assert again.returncode == 0, again.output
    left = host.sh(
        "find /etc /var/lib/llamafleet/serve /opt/llamafleet/serve -name '*serve*' "
        "-path '*llamafleet*' | grep -v -e '/serve$' || true"
    )
    assert left == ""


@pytest.mark.long
def test_uninstall_leaves_none_of_it(host: ServingHost) -> None:
    if not host.ready():
        assert host.deploy().returncode == 0
    run = pyinfra(host.folder, "-y", "serving", "uninstall.py")
    assert run.returncode == 0, run.output
    left = host.sh("find /etc /var/lib/systemd /opt /var/lib -name '*llamafleet*' || true")
    assert left == ""
    assert host.sh("systemctl list-units --all 'llamafleet*' --no-legend") == ""
