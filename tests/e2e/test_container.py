"""runtime = "container" on a booted Debian 13 with podman, for the CPU. By hand, with -m long.

The image is the one of LLAMAFLEET_TEST_IMAGE, an archive of `podman save`; without it one is built.
"""

from __future__ import annotations

import http.client
import json
import os
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from llamafleet.facts.gauges import GENERATED
from llamafleet.layout import CDI_FILE, Layout, container_of, quadlet, serve_unit
from llamafleet.onhost.verify import synth
from tests.container import building
from tests.e2e.booted import BootedHost, boot, missing_tools
from tests.e2e.runs import LLAMAFLEET, Run, pyinfra, start, write_inventory
from tests.ports import free_port

LACKING = [*missing_tools(), *building.missing_tools()]
pytestmark = [
    pytest.mark.long,
    pytest.mark.e2e,
    pytest.mark.skipif(bool(LACKING), reason=f"to boot a host with an image: {LACKING} missing"),
]
HOST = "pod"
AT = Layout.system()
MODEL = "/srv/models/tiny.gguf"
KEY = "sk-test-0123456789-abcdefghij"
NSPAWN = "[Exec]\nCapability=all\nSystemCallFilter=bpf keyctl add_key request_key\n"
"""What a container within a container needs."""
NESTED = """[containers]
keyring = false
pids_limit = 0
default_ulimits = ["nofile=20000:20000"]
"""
"""The outer one has no cgroups of its own to give away."""
PACKAGES = "podman crun"


class Pod:
    """A booted host that serves from a container."""

    def __init__(self, host: BootedHost, folder: Path, archive: str) -> None:
        self.host, self.folder, self.port = host, folder, free_port()
        self.key = folder / "api.key"
        self.key.write_text(f"{KEY}\n")
        self.key.chmod(0o600)
        self.sh("apt-get -qq update")
        self.sh(f"apt-get -qq install -y --no-install-recommends {PACKAGES} >/dev/null 2>&1")
        (host.tree / "etc/containers").mkdir(exist_ok=True)
        (host.tree / "etc/containers/containers.conf").write_text(NESTED)
        (host.tree / "srv/models").mkdir()
        synth.write(host.tree / MODEL[1:], "tiny", "q8_0")
        os.link(archive, host.tree / "root/image.tar")
        loaded = self.sh("podman load -q -i /root/image.tar").split()[-1]
        self.sh(f"podman tag {loaded} localhost/llama:test; rm /root/image.tar")
        digest = self.sh("podman image inspect -f '{{.Digest}}' localhost/llama:test")
        self.image = f"localhost/llama@{digest}"

    def sh(self, command: str) -> str:
        done = self.host.run(command)
        assert done.returncode == 0, (command, done.stdout, done.stderr)
        return done.stdout.strip()

    def settings(self, **changes: object) -> dict[str, Any]:
        chat = {"model": MODEL, "port": self.port, "n_ctx": 512, "api_key_file": str(self.key)}
        return {
            "accelerator": "cpu",
            "runtime": "container",
            "image": self.image,
            "serve": {"chat": chat},
        } | changes

    def fleet(self, **changes: object) -> str:
        return write_inventory(self.folder, {HOST: self.host.data(**self.settings(**changes))})

    def deploy(self, *options: str, **changes: object) -> Run:
        return pyinfra(self.folder, *(options or ("-y",)), self.fleet(**changes), "deploy.py")

    def image_that_ends(self) -> str:
        """Name of one that is the other one but for its entry, which ends with 1."""
        self.sh(f"podman create --name broken {self.image}")
        entry = "--change 'ENTRYPOINT [\"/bin/false\"]'"
        self.sh(f"podman commit -q {entry} broken localhost/broken:test; podman rm broken")
        digest = self.sh("podman image inspect -f '{{.Digest}}' localhost/broken:test")
        return f"localhost/broken@{digest}"

    def serves(self, image: str) -> bool:
        """From that image, by its unit's file, its container and its answer."""
        told = self.sh(f"grep ^Image= {quadlet('chat')}") == f"Image={image}"
        return (
            told
            and self.sh("podman ps --format '{{.Image}}'").startswith(image.partition("@")[0])
            and self.models(KEY)[0] == 200
        )

    def models(self, key: str) -> tuple[int, Any]:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=30)
        connection.request("GET", "/v1/models", headers={"Authorization": f"Bearer {key}"})
        answer = connection.getresponse()
        return answer.status, json.loads(answer.read())


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> str:
    given = os.environ.get("LLAMAFLEET_TEST_IMAGE")
    if given:
        return given
    file = tmp_path_factory.mktemp("image") / "image.tar"
    with building.workshop(tmp_path_factory.mktemp("shop")) as shop:
        shop.build("BACKEND=cpu")
        shop.run("podman", "save", "-q", "-o", str(file), building.IMAGE)
    return str(file)


@pytest.fixture(scope="module")
def pod(archive: str, folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pod]:
    settings = Path(f"/run/systemd/nspawn/{HOST}.nspawn")
    settings.parent.mkdir(parents=True, exist_ok=True)
    settings.write_text(NSPAWN)
    os.environ["SYSTEMD_NSPAWN_UNIFIED_HIERARCHY"] = "1"
    try:
        host = boot(HOST, tmp_path_factory.mktemp("hosts"), suite="trixie")
    finally:
        del os.environ["SYSTEMD_NSPAWN_UNIFIED_HIERARCHY"]
        settings.unlink()
    try:
        yield Pod(host, folder, archive)
    finally:
        host.stop()


def test_a_host_without_podman_is_refused_before_anything_is_done(pod: Pod) -> None:
    pod.sh("mv /usr/bin/podman /usr/bin/podman.away")
    try:
        run = pod.deploy()
    finally:
        pod.sh("mv /usr/bin/podman.away /usr/bin/podman")
    assert run.returncode != 0
    assert "PROBLEM container: found no podman; expected podman" in run.output, run.output
    assert pod.host.run(f"test -e {AT.prefix}").returncode != 0


def test_a_deploy_serves_from_the_container_and_fetches_its_proof(pod: Pod) -> None:
    run = pod.deploy()
    assert run.returncode == 0, run.output
    assert "CPU ONLY" in run.output
    assert pod.models(KEY)[0] == 200 and pod.models("x" * 30)[0] == 401
    assert pod.sh("podman ps --format '{{.Names}}'") == container_of("chat")
    latest = json.loads(pod.sh(f"cat {AT.results}/latest.json"))
    assert latest["verdict"] == "CPU ONLY"
    assert pod.sh(f"test ! -e {AT.current} && echo none") == "none", "something was built"


def test_the_key_is_in_no_file_of_the_unit_and_no_process(pod: Pod) -> None:
    unit = serve_unit("chat")
    told = f"systemctl cat {unit}; journalctl -u {unit} -o cat; podman inspect"
    said = pod.sh(f"{told} {container_of('chat')}")
    assert KEY not in said
    seen = "cat /proc/[0-9]*/cmdline /proc/[0-9]*/environ 2>/dev/null | tr '\\0' '\\n'"
    assert KEY not in pod.sh(f"{{ {seen}; }} || true")


def watched(pod: Pod) -> dict[str, Any]:
    """What `llamafleet watch` tells of its one service."""
    argv = [LLAMAFLEET, "watch", "--inventory", pod.fleet(), "--once", "--json"]
    done = subprocess.run(argv, cwd=pod.folder, capture_output=True, text=True, check=False)
    (line,) = (one for one in json.loads(done.stdout)["lines"] if one["services"])
    assert len(line["services"]) == 1
    return dict(line)


def test_its_figures_are_watched(pod: Pod) -> None:
    line = watched(pod)
    (service,) = line["services"]
    assert (service["state"], service["reason"], line["trouble"]) == ("ready", "", "busy"), line
    assert GENERATED in service["metrics"] and line["tokens_per_second"] is not None


def test_a_second_run_changes_nothing(pod: Pod) -> None:
    before = pod.sh(f"systemctl show -p ExecMainPID {serve_unit('chat')}")
    run = pod.deploy()
    assert run.returncode == 0, run.output
    assert pod.sh(f"systemctl show -p ExecMainPID {serve_unit('chat')}") == before


def test_a_container_that_is_killed_is_started_again(pod: Pod) -> None:
    pod.sh(
        f"systemctl kill --signal KILL {serve_unit('chat')}; systemctl stop {serve_unit('chat')}"
    )
    line = watched(pod)
    assert line["trouble"] == "held" and "found no process of it" in line["why"], line
    pod.sh(f"systemctl start {serve_unit('chat')}")
    pod.sh("podman kill --signal KILL " + container_of("chat"))
    run = pod.deploy()
    assert run.returncode == 0, run.output
    assert pod.models(KEY)[0] == 200


@pytest.fixture(scope="module")
def broken(pod: Pod) -> str:
    return pod.image_that_ends()


def test_an_image_that_does_not_serve_is_gone_back_from(pod: Pod, broken: str) -> None:
    dry = pod.deploy("--dry", image=broken)
    assert f"serve: back to {pod.image} where one does not answer" in dry.output, dry.output
    for _ in range(2):  # The second one tries again.
        run = pod.deploy(image=broken)
        assert run.returncode == 1, run.output
        assert f"{HOST} FAIL" in run.output, run.output
        assert f"new image: went back to {pod.image}, they serve again" in run.output, run.output
        assert "serve.chat: found its process ended and left no word" in run.output, run.output
        assert pod.serves(pod.image), run.output
        assert pod.sh(f"ls {AT.etc} | grep former || true") == ""
    run = pod.deploy()
    assert run.returncode == 0, run.output


def test_a_run_that_breaks_behind_another_image_is_put_right_by_the_next(
    pod: Pod, broken: str
) -> None:
    """By the same one, which serves nothing: it is asked, and the image of before serves again."""
    process = start(pod.folder, pod.fleet(image=broken))
    unit = pod.host.tree / quadlet("chat")[1:]
    deadline = time.monotonic() + 300
    while broken not in unit.read_text():
        assert process.poll() is None and time.monotonic() < deadline, process.communicate()[0]
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=60)
    dry = pod.deploy("--dry", image=broken)
    told = f"no run has seen the image serve: asked again; back to {pod.image} where one does not"
    assert told in dry.output, dry.output
    run = pod.deploy(image=broken)
    assert run.returncode == 1, run.output
    assert f"went back to {pod.image}, they serve again" in run.output, run.output
    assert pod.serves(pod.image), run.output


def test_uninstall_leaves_no_container_no_secret_and_no_unit(pod: Pod, broken: str) -> None:
    # As after a loss of power: nothing of the unit's own end has run.
    unit, name = serve_unit("chat"), container_of("chat")
    pod.sh(f"systemctl stop {unit}; podman create --name {name} {pod.image} >/dev/null")
    pod.sh(f"echo secret | podman secret create {name} - >/dev/null")
    # One that was pulled by its digest has no tag; this one was loaded.
    tags = pod.sh("podman image inspect -f '{{join .RepoTags \" \"}}' " + pod.image).split()
    for tag in tags[1:]:
        pod.sh(f"podman untag {tag} {tag}")
    pod.sh(f"echo {broken} >{AT.images}; echo {pod.image} >>{AT.images}")
    pod.sh(f"mkdir -p /run/cdi; touch {CDI_FILE} /run/cdi/other")
    run = pyinfra(pod.folder, "-y", pod.fleet(), "uninstall.py")
    assert run.returncode == 0, run.output
    assert pod.sh("podman ps -aq; podman secret ls -q") == ""
    assert pod.sh("podman images -q") == "", run.output
    assert pod.sh("ls /run/cdi") == "other"
    assert (
        pod.sh(f"ls -d {quadlet('chat')} {AT.prefix} {AT.etc} {AT.state} 2>/dev/null || true") == ""
    )
    assert "not-found" in pod.sh(f"systemctl show -p LoadState {serve_unit('chat')}")
