"""Models on two real hosts: fetched by each in turn, or sent; cut off, gone on with, removed.

The stages of models alone: nothing is built.
"""

from __future__ import annotations

import hashlib
import os
import random
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.booted import BootedHost, boot, missing_tools
from tests.e2e.runs import PYINFRA, Run, environment, pyinfra, write_inventory
from tests.mirror import Mirror, cut
from tests.onhost.gguf_files import Q4_0, gguf
from tests.onhost.runner import wait_for
from tests.onhost.site import Handler, Site, site

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.long,
    pytest.mark.skipif(bool(missing_tools()), reason=f"to boot a host: {missing_tools()} missing"),
]
STAGES = """\
from operations.account import account
from operations.files import tools
from operations.lock import lock, release
from operations.models import discard_models, models
from operations.preflight import preflight, refuse
from operations.run import begin

begin()
preflight(name="Read the host, plan, and say why")
refuse(name="Stop where something stands in the way")
lock(name="Take the host for this run")
account(name="Create the account and its folders")
tools(name="Bring the job runner")
models(name="Bring the models")
discard_models(name="Remove models that no profile names")
release(name="Give the host back to other runs")
"""
GGUF = "/var/lib/llamafleet/gguf"


def model(seed: int, mib: int) -> bytes:
    head = gguf(tensors=(("blk.0.ffn_up.weight", Q4_0, (1024, mib << 11)),))
    size = (mib << 21) // 32 * 18
    piece = random.Random(seed).randbytes(1 << 20)
    return head[: len(head) - size] + (piece * (size // len(piece) + 1))[:size]


def key(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:16]


@pytest.fixture(scope="module")
def hosts(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[BootedHost]]:
    folder = tmp_path_factory.mktemp("hosts")
    made = [boot(name, folder) for name in ("gpu-a", "gpu-b")]
    yield made
    for one in made:
        one.stop()


class Deploys:
    """Runs of the stages of models in one checkout."""

    def __init__(self, folder: Path, hosts: list[BootedHost]) -> None:
        self.folder, self.hosts = folder, hosts
        (folder / "models_only.py").write_text(STAGES)

    def inventory(self, **serve: object) -> str:
        settings = {"accelerator": "cpu", **serve}
        return write_inventory(self.folder, {one.name: one.data(**settings) for one in self.hosts})

    def run(self, **settings: object) -> Run:
        done = pyinfra(self.folder, "-y", self.inventory(**settings), "models_only.py")
        # Nothing is verified here, which is said; what failed would be red.
        assert "failed in phase" not in done.output, done.output
        return done

    def killed(self, when: object, **settings: object) -> None:
        """A run that is killed as soon as `when` is true."""
        import subprocess

        process = subprocess.Popen(
            [PYINFRA, "-y", self.inventory(**settings), "models_only.py"],
            cwd=self.folder,
            env=environment(self.folder),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        wait_for(when, 120)  # type: ignore[arg-type]
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


@pytest.fixture(scope="module")
def deploys(folder: Path, hosts: list[BootedHost]) -> Deploys:
    return Deploys(folder, hosts)


@pytest.fixture(scope="module")
def web() -> Iterator[Site]:
    with site() as made:
        yield made


def serve(web: Site, content: bytes) -> dict[str, object]:
    name = f"/{key(content)}.gguf"
    web.answers.setdefault(name, Mirror(content))
    return {"chat": {"model": web.url(name), "sha256": hashlib.sha256(content).hexdigest()}}


def sizes(host: BootedHost) -> dict[str, int]:
    """Bytes of each file below the folder of models."""
    found = host.run(f"cd {GGUF} && find . -name '*.gguf*' -printf '%P %s\n'").stdout
    return {line.split()[0]: int(line.split()[1]) for line in found.splitlines()}


FIRST, SECOND, THIRD, SENT = model(1, 16), model(2, 8), model(3, 8), model(4, 256)


def test_each_host_in_its_turn(deploys: Deploys, web: Site) -> None:
    """A cut line, and one host at a time."""
    mirror = Mirror(FIRST, faults=[cut(2 << 20)], slow_s=0.002)
    at_once: list[int] = []
    now = [0]

    def counted(handler: Handler) -> None:
        now[0] += 1
        at_once.append(now[0])
        try:
            mirror(handler)
        finally:
            now[0] -= 1

    web.answers[f"/{key(FIRST)}.gguf"] = counted
    done = deploys.run(serve=serve(web, FIRST), model_downloads=1)
    assert mirror.sent == 2 * len(FIRST), done.output
    assert max(at_once) == 1 and "waits for its turn" in done.output
    for host in deploys.hosts:
        assert sizes(host) == {f"{key(FIRST)}/model.gguf": len(FIRST)}
        told = host.run(f"stat -c '%U %a' {GGUF}/{key(FIRST)}/model.gguf").stdout
        assert told == "llamafleet 444\n"
    again = deploys.run(serve=serve(web, FIRST), model_downloads=1)
    assert mirror.sent == 2 * len(FIRST) and "job --kind" not in again.output


def test_a_job_outlives_its_run_and_is_attached_to(deploys: Deploys, web: Site) -> None:
    mirror = Mirror(SECOND, slow_s=0.08)
    web.answers[f"/{key(SECOND)}.gguf"] = mirror
    settings = {"serve": serve(web, SECOND), "model_downloads": 2}
    deploys.killed(lambda: len([g for g in mirror.gets]) == 2 and mirror.sent > 2 << 20, **settings)
    time.sleep(1)
    assert mirror.sent < 2 * len(SECOND), "too fast for this test"
    deploys.run(**settings)
    assert mirror.sent == 2 * len(SECOND) and len(mirror.gets) == 2, "nothing was asked again"
    for host in deploys.hosts:
        assert sizes(host)[f"{key(SECOND)}/model.gguf"] == len(SECOND)
        assert f"{key(FIRST)}/model.gguf" in sizes(host), "the last stays"


def test_what_no_profile_names_goes_unless_it_is_in_use(deploys: Deploys, web: Site) -> None:
    first = deploys.hosts[0]
    first.run(
        "systemd-run --unit=reads --uid=llamafleet sh -c "
        f"'exec 3<{GGUF}/{key(FIRST)}/model.gguf; sleep 600'"
    )
    done = deploys.run(serve=serve(web, THIRD))
    assert f"model {key(FIRST)} is in use, and stays" in done.output
    assert f"{key(FIRST)}/model.gguf" in sizes(first)
    assert set(sizes(deploys.hosts[1])) == {f"{key(m)}/model.gguf" for m in (SECOND, THIRD)}
    first.run("systemctl stop reads")
    deploys.run(serve=serve(web, THIRD))
    assert f"{key(FIRST)}/model.gguf" not in sizes(first)


def test_a_file_of_the_controller_goes_on_where_it_was_cut(deploys: Deploys) -> None:
    file = deploys.folder / "sent.gguf"
    file.write_bytes(SENT)
    settings = {"serve": {"chat": {"model": f"file:{file}"}}, "models_kept": 0}
    incoming = f"{key(SENT)}/model.gguf.incoming"
    host = deploys.hosts[0]
    deploys.killed(lambda: sizes(host).get(incoming, 0) > 40 << 20, **settings)
    before = {one.name: sizes(one).get(incoming, 0) for one in deploys.hosts}
    assert before["gpu-a"] > 40 << 20
    second = deploys.hosts[1]

    def cut_line() -> None:
        wait_for(lambda: sizes(second).get(incoming, 0) > 120 << 20, 120)
        second.run("pkill -KILL -f 'sshd: [a]dmin'")

    cutting = threading.Thread(target=cut_line, daemon=True)
    cutting.start()
    done = deploys.run(**settings)
    cutting.join()
    print(*(line for line in done.output.splitlines() if " sent, " in line), sep="\n")
    for one in deploys.hosts:
        assert sizes(one) == {f"{key(SENT)}/model.gguf": len(SENT)}, done.output
        told = one.run(f"sha256sum < {GGUF}/{key(SENT)}/model.gguf").stdout
        assert told.split()[0] == hashlib.sha256(SENT).hexdigest()


def test_the_controller_fetches_once_for_both(deploys: Deploys, web: Site) -> None:
    content = model(5, 16)
    mirror = web.answers[f"/{key(content)}.gguf"] = Mirror(content)
    deploys.run(serve=serve(web, content), model_source="controller", models_kept=0)
    assert mirror.sent == len(content)
    for host in deploys.hosts:
        assert sizes(host) == {f"{key(content)}/model.gguf": len(content)}


def test_a_wrong_sha256_is_red_and_nothing_is_kept(deploys: Deploys, web: Site) -> None:
    wrong = serve(web, FIRST) | {}
    wrong["chat"] = {**wrong["chat"], "sha256": "0" * 64}  # type: ignore[dict-item]
    done = pyinfra(deploys.folder, "-y", deploys.inventory(serve=wrong), "models_only.py")
    assert done.returncode != 0 and f"expected {'0' * 64}" in done.output, done.output


def test_uninstall_leaves_nothing(deploys: Deploys) -> None:
    done = pyinfra(deploys.folder, "-y", deploys.inventory(), "uninstall.py")
    assert done.returncode == 0, done.output
    for host in deploys.hosts:
        assert host.run("test -e /var/lib/llamafleet").returncode == 1
