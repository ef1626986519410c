"""`llamafleet watch` on a booted host: real sshd and sudo, a service's figures, nothing left."""

from __future__ import annotations

import json
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest

from llamafleet.layout import serve_unit
from tests.e2e.booted import BootedHost, boot, missing_tools
from tests.e2e.runs import LLAMAFLEET, REPOSITORY
from tests.facts.test_gauges import ROWS

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.long,
    pytest.mark.skipif(bool(missing_tools()), reason=f"to boot a host: {missing_tools()} missing"),
]
SMI = f"#!/bin/sh\ncase $1 in --query-gpu=*) echo '{ROWS[1]}' ;; esac\n"
HANGS = "#!/bin/sh\nexec sleep 3000\n"
KEY = "sk-test-0123456789abcdef"
SERVICE = """
import http.server, itertools
made = itertools.count(0, 50)
class Page(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        ok = self.headers["Authorization"] == "Bearer sk-test-0123456789abcdef"
        self.send_response(200 if ok else 401)
        self.end_headers()
        if ok:
            self.wfile.write(b"llamafleet_generated_tokens_total %d.0\\n" % next(made))
http.server.HTTPServer(("127.0.0.1", 8000), Page).serve_forever()
"""
"""The metrics page of a service, by the account: what it counts grows by 50 with each look."""


@pytest.fixture
def host(tmp_path: Path) -> Any:
    booted = boot("gpu-a", tmp_path)
    yield booted
    booted.stop()


def write(host: BootedHost, path: str, text: str, mode: int = 0o644) -> None:
    file = host.tree / path
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text)
    file.chmod(mode)


def serve(host: BootedHost) -> None:
    host.run("useradd --system llamafleet")
    folder = "/var/lib/llamafleet/serve/chat"
    write(host, "root/service.py", SERVICE)
    host.run("cp /root/service.py /tmp/service.py")
    unit = serve_unit("chat")
    host.run(f"systemd-run --uid=llamafleet --unit={unit} python3 /tmp/service.py")
    pid = host.run(f"systemctl show -p MainPID --value {unit}").stdout.strip()
    config = {"alias": "m", "key": True, "folder": folder, "address": "127.0.0.1", "port": 8000}
    write(host, "etc/llamafleet/serve-chat.json", json.dumps(config), 0o640)
    write(host, "etc/llamafleet/serve-chat.key", KEY, 0o600)
    write(host, f"{folder[1:]}/status.json", json.dumps({"state": "ready", "pid": int(pid)}))


def watch(folder: Path, *options: str, **how: Any) -> subprocess.Popen[str]:
    argv = [LLAMAFLEET, "watch", "--inventory", str(folder / "fleet.py"), "--json", *options]
    return subprocess.Popen(
        argv, cwd=REPOSITORY, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **how
    )


def scripts(host: BootedHost) -> str:
    """Processes there that the watch began."""
    return host.run("ps -eo pid,args | grep -e '[L]F_WAIT' -e '[s]leep 3000'").stdout


def test_figures_of_a_service_and_nothing_is_left(host: BootedHost, tmp_path: Path) -> None:
    (tmp_path / "fleet.py").write_text(f"fleet = ([('gpu-a', {host.data()!r})], {{}})\n")
    write(host, "usr/local/bin/nvidia-smi", SMI, 0o755)
    serve(host)
    time.sleep(1)
    told, said = watch(tmp_path, "--once").communicate(timeout=60)
    lines = json.loads(told)["lines"]
    (service,) = (one for line in lines for one in line["services"])
    assert (service["state"], service["reason"]) == ("ready", ""), said
    rate = next(line["tokens_per_second"] for line in lines if line["services"])
    assert 15 < rate < 40, "50 tokens in an interval of 2 s, less what the first record took longer"

    write(host, "usr/local/bin/nvidia-smi", HANGS, 0o755)
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGKILL):
        process = watch(tmp_path, "--interval", "1")
        assert process.stdout and process.stdout.readline()
        assert "sleep 3000" in scripts(host)
        process.send_signal(number)
        process.communicate(timeout=10)
        time.sleep(2)
        assert scripts(host) == "", f"left after {number.name}"
