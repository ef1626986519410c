"""What one of the suite's builds of llama.cpp has compiled the next ones take: a cache for them.

Three are made of one source with the same flags: by tests/build_llama, in test_local and in
test_ssh. With LLAMAFLEET_TEST_COMPILED, the URL of a Redis as .ci/run starts one, they are built
through the product's own compiler cache, which the first of them fills. Without it, or where the
cache does not answer, each compiles its own.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path
from typing import Any

from llamafleet.layout import Layout
from llamafleet.protocol.job import BuildConfig

VARIABLE = "LLAMAFLEET_TEST_COMPILED"
URL = os.environ.get(VARIABLE, "")
SETTINGS: dict[str, Any] = (
    {"compiler_cache": "ccache", "compiler_cache_url": URL} if URL else {"compiler_cache": "off"}
)
OPTIONS = [word for name, value in SETTINGS.items() for word in ("--data", f"{name}={value}")]
"""The same for pyinfra's command line."""

PARENT = str(Path(Layout.system().state).parent)
OVERLAID = 'mount --bind "$0" "$1" && shift && exec "$@"'


def placed_as_on_a_host(config: BuildConfig, folder: Path) -> tuple[BuildConfig, list[str]]:
    """The build with its source where scope system has it, and what to put before its command.

    Only what lies at one path is found again. That path is the test's own in a mount namespace,
    in which `folder` is /var/lib: no file of this machine is touched. Needs root.
    """
    before = ["unshare", "--mount", "sh", "-c", OVERLAID, str(folder), PARENT]
    if config.cache is None or os.geteuid() != 0 or shutil.which(before[0]) is None:
        return config, []
    folder.mkdir(parents=True, exist_ok=True)
    # A container may not let root mount.
    if subprocess.run([*before, "true"], check=False).returncode:
        return config, []
    cache = replace(config.cache, folder=Layout.system().compiler_cache)
    return replace(config, cache=cache), before
