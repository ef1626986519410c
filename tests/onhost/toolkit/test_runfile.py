"""The runfile job over real HTTP, with a script in the place of NVIDIA's gigabytes.

It takes the options of NVIDIA's installer that matter and refuses any other.
"""

from __future__ import annotations

import functools
import hashlib
import http.server
import json
import re
import shutil
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.onhost.runner import Runner
from tests.onhost.toolkit.test_install import ANSWERS, CXX

RUNFILE = """#!/bin/sh
for option in "$@"; do
  case $option in
    --silent) silent=1 ;;
    --toolkit) toolkit=1 ;;
    --override | --no-man-page | --no-opengl-libs) ;;
    --toolkitpath=*) root=${{option#*=}} ;;
    --tmpdir=*) [ -d "${{option#*=}}" ] || exit 3 ;;
    *) echo "unknown option $option"; exit 2 ;;
  esac
done
[ -n "$root" ] || exit 4
# Without the one it asks, without the other it brings a driver.
[ "$silent$toolkit" = 11 ] || exit 5
mkdir -p "$root/{folder}"
cat >"$root/{folder}/nvcc" <<'END'
{nvcc}
END
chmod +x "$root/{folder}/nvcc"
"""


@pytest.fixture
def site(tmp_path: Path) -> Iterator[tuple[Path, str]]:
    """A folder and its URL."""
    folder = tmp_path / "site"
    folder.mkdir()
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=str(folder))
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield folder, f"http://127.0.0.1:{server.server_address[1]}"
    server.shutdown()


class Install:
    """A toolkit job by runfile."""

    def __init__(self, tmp_path: Path, site: tuple[Path, str], text: str, **config: Any) -> None:
        folder, url = site
        (folder / "cuda.run").write_text(text)
        self.runner = Runner(tmp_path)
        self.root = tmp_path / "toolkits" / "cuda-12.8"
        self.root.parent.mkdir()
        settings = {
            "inputs": {"method": "runfile"},
            "method": "runfile",
            "cuda": "12.8",
            "root": str(self.root),
            "cxx": CXX,
            "url": f"{url}/cuda.run",
            "sha256": hashlib.sha256(text.encode()).hexdigest(),
        }
        self.folder = self.runner.job("toolkit", "runfile-12.8", settings | config)

    def run(self) -> subprocess.CompletedProcess[str]:
        return self.runner.run(*self.runner.command(self.folder))

    @property
    def stamp(self) -> dict[str, Any]:
        data: dict[str, Any] = json.loads((self.folder / "stamp.json").read_text())
        return data

    def nothing_is_left(self) -> bool:
        return not list(self.root.parent.iterdir()) and not (self.folder / "tmp").exists()


def runfile(release: str = "12.8", folder: str = "bin", status: int = 0) -> str:
    nvcc = ANSWERS.format(release=release, build=88, text="compiled", status=status)
    return RUNFILE.format(folder=folder, nvcc=nvcc)


def test_the_toolkit_alone_in_a_folder_of_our_own(tmp_path: Path, site: tuple[Path, str]) -> None:
    text = runfile()
    done = Install(tmp_path, site, text)
    answer = done.run()
    assert answer.returncode == 0, answer.stderr
    assert (done.root / "bin/nvcc").exists()
    assert (done.stamp["nvcc"], done.stamp["download_bytes"]) == ("12.8.88", len(text))
    assert list(done.stamp["phases"]) == ["start", "download", "unpack", "check", "activate"]
    shutil.rmtree(site[0])
    assert "done already" in done.run().stdout


@pytest.mark.parametrize(
    ("text", "config", "why"),
    [
        (runfile(), {"sha256": "0" * 64}, "found sha256 .* expected 0000"),
        (
            runfile(),
            {"url": "http://127.0.0.1:9/cuda.run"},
            "127.0.0.1 refused the connection; .*toolkit_url",
        ),
        (runfile(folder="elsewhere"), {}, "found no bin/nvcc"),
        (runfile(release="12.6"), {}, "nvcc --version: found '12.6'; expected 12.8"),
        (runfile(status=1), {}, "nvcc ended with status 1"),
        ("exit 7\n", {}, "ended with status 7"),
    ],
)
def test_each_way_to_fail_leaves_nothing(
    tmp_path: Path, site: tuple[Path, str], text: str, config: dict[str, Any], why: str
) -> None:
    failed = Install(tmp_path, site, text, **config)
    assert failed.run().returncode == 1
    error = failed.stamp["error"]["lines"][0]
    assert re.search(why, error), error
    assert failed.nothing_is_left()
