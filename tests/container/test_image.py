"""The image for the CPU, really built and run: minutes. By hand, with -m long.

Where LLAMAFLEET_TEST_IMAGE names an archive of it (podman save), that is run in its place.
"""

from __future__ import annotations

import http.client
import json
import os
import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from llamafleet.layout import Layout
from llamafleet.plans.container import CONFIG
from tests.container.building import IMAGE, Workshop, missing_tools, workshop
from tests.ports import free_port

pytestmark = [
    pytest.mark.long,
    pytest.mark.e2e,
    pytest.mark.skipif(bool(missing_tools()), reason=f"to build it: {missing_tools()} missing"),
]
AT = Layout.system()
READY_S = 300
ARCHIVE = "LLAMAFLEET_TEST_IMAGE"


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Workshop]:
    with workshop(tmp_path_factory.mktemp("shop")) as made:
        archive = os.environ.get(ARCHIVE)
        if archive:
            loaded = made.run("podman", "load", "-q", "-i", archive).split()[-1]
            made.run("podman", "tag", loaded, IMAGE)
        else:
            made.build("BACKEND=cpu")
        yield made


class Served:
    """One container, and what it answers."""

    def __init__(self, shop: Workshop, *options: str, args: tuple[str, ...] = ()) -> None:
        self.shop, self.port = shop, free_port()
        publish = f"127.0.0.1:{self.port}:8000"
        said = shop.run("podman", "run", "-d", "-p", publish, *options, IMAGE, *args)
        self.name = said.split()[-1]
        self.key = ""

    def exec(self, *argv: str) -> str:
        return self.shop.run("podman", "exec", self.name, *argv).strip()

    @property
    def log(self) -> str:
        return self.shop.run("podman", "logs", self.name)

    def ask(self, path: str, key: str = "", body: Any = None) -> tuple[int, Any]:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        method = "POST" if body else "GET"
        headers |= {"Content-Type": "application/json"} if body else {}
        connection.request(method, path, json.dumps(body) if body else None, headers)
        answer = connection.getresponse()
        data = answer.read()
        connection.close()
        return answer.status, json.loads(data)

    def wait(self) -> None:
        deadline = time.monotonic() + READY_S
        while time.monotonic() < deadline:
            try:
                if self.ask("/ready")[0] == 200:
                    return
            except (OSError, http.client.HTTPException):
                pass
            time.sleep(1)
        raise TimeoutError(self.log)


@pytest.fixture(scope="module")
def served(shop: Workshop) -> Iterator[Served]:
    one = Served(shop)
    one.wait()
    yield one
    shop.run("podman", "rm", "--force", one.name)


def key_of(served: Served) -> str:
    """By the very command that the log says."""
    told = re.search(r"docker exec (\S+) cat (\S+)", served.log)
    assert told and served.name.startswith(told[1]), served.log
    return served.exec("cat", told[2])


def test_it_proves_the_build_and_then_serves_it(served: Served) -> None:
    assert "ok   library_origin" in served.log and "CPU ONLY" in served.log
    served.key = key = key_of(served)
    status, models = served.ask("/v1/models", key)
    assert (status, [one["id"] for one in models["data"]]) == (200, ["synthetic-160m-q4_0"])
    wish = {"model": "synthetic-160m-q4_0", "prompt": "a b c", "max_tokens": 4}
    status, made = served.ask("/v1/completions", key, wish)
    assert status == 200 and made["usage"]["completion_tokens"] == 4


def test_nobody_comes_in_without_the_key(served: Served) -> None:
    assert served.ask("/v1/models")[0] == 401
    assert served.ask("/v1/models", "x" * 40)[0] == 401
    assert key_of(served) not in served.log


def test_it_is_not_root_and_can_not_change_its_code(served: Served) -> None:
    assert served.exec("id", "-u") == "10001"
    found = served.exec("find", AT.prefix, f"{AT.etc}", "-xdev", "-writable", "-not", "-type", "l")
    assert found == ""


def test_its_health_is_asked_of_the_server(served: Served) -> None:
    said = served.shop.run("podman", "healthcheck", "run", served.name, check=False)
    assert "unhealthy" not in said, said


def test_it_drains_when_it_is_stopped(served: Served) -> None:
    begun = time.monotonic()
    served.shop.run("podman", "stop", "-t", "10", served.name)
    assert time.monotonic() - begun < 10
    assert "draining" in served.log
    code = served.shop.run("podman", "inspect", "-f", "{{.State.ExitCode}}", served.name)
    assert code.split()[-1] == "0"


def test_a_restart_keeps_proof_and_key(served: Served) -> None:
    key = served.key
    served.shop.run("podman", "start", served.name)
    served.wait()
    assert key_of(served) == key
    assert "verified before, on this driver and these GPUs" in served.log
    assert served.ask("/v1/models", key)[0] == 200


def test_an_image_with_cuda_serves_nothing_without_a_gpu(shop: Workshop, tmp_path: Path) -> None:
    """The settings of one with CUDA over the image for the CPU: it does not come to the build."""
    text = shop.run("podman", "run", "--rm", "--entrypoint", "cat", IMAGE, f"{AT.etc}/{CONFIG}")
    config = json.loads(text[text.index("{") :])
    config["verify"] |= {"backend": "cuda", "allow_cpu_only": False}
    file = tmp_path / CONFIG
    file.write_text(json.dumps(config))
    file.chmod(0o644)
    status, said = shop.status("podman", "run", "-v", f"{file}:{AT.etc}/{CONFIG}:ro", IMAGE)
    assert status == 69, said
    assert "found no GPU in this container" in said
    assert "next: docker run --gpus all -p 8000:8000 llama-rtx4090" in said


def test_what_the_image_holds(shop: Workshop) -> None:
    """No compiler, no CMake, no package lists, and none of what builds it."""
    script = (
        f"ls {AT.versions}/*/lib/python3*/site-packages {AT.prefix}; ls /var/lib/apt/lists; "
        "command -v g++ cmake ninja nvcc"
    )
    said = shop.run("podman", "run", "--rm", "--entrypoint", "sh", IMAGE, "-c", script, check=False)
    assert "llama_cpp" in said and "cmake" not in said and "scikit" not in said
    assert "g++" not in said and "lists_" not in said


def test_arguments_are_judged_before_anything_large_is_fetched(shop: Workshop) -> None:
    """With the defaults of the Dockerfile, which a stage of its own must be given too."""
    assert "with CUDA 13.0 for sm_89" in shop.build(target="checked")
    for argument, word in (
        ("CUDA_VERSION=99.9", "CUDA_VERSION: found '99.9'"),
        ("CPU_BASELINE=i386", "CPU_BASELINE: found 'i386'"),
        ("LLAMA_VERSION=0.1.0", "LLAMA_VERSION: found '0.1.0'"),
    ):
        said = shop.build(argument, target="build", check=False)
        assert word in said and "image toolkit" not in said, said
