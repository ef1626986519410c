"""The whole way with the real programs: a verification's file, node_exporter, Prometheus, and what
the dashboard asks."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import time
import urllib.parse
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest

from llamafleet.onhost import textfile
from llamafleet.onhost.verify import metrics
from llamafleet.protocol import verify as verify_config
from llamafleet.protocol.job import write_json
from llamafleet.protocol.result import Check, Result
from tests.history import RESULT, benchmark, gpu
from tests.monitoring import ALERTS, questions
from tests.onhost.verify.test_metrics import measured
from tests.ports import free_port
from tests.protocol.test_verify import good

PROMETHEUS, EXPORTER = shutil.which("prometheus"), shutil.which("prometheus-node-exporter")
pytestmark = pytest.mark.skipif(
    not (PROMETHEUS and EXPORTER),
    reason="needs Debian's packages prometheus and prometheus-node-exporter",
)
RED = Check("offload", "fail", "0 of 33 layers", "33 of 33", "nvidia-smi")
HOSTILE = 'gpu"\\\n\x1b[2J\ud800'


def keep(folder: Path, result: Result | None) -> None:
    """As a host's verification does."""
    folder.mkdir(exist_ok=True)
    places = {"results": str(folder), "job": str(folder / "job")}
    metrics.keep(verify_config.parse(folder, good() | places), result)


@contextmanager
def running(*command: str | Path) -> Iterator[None]:
    with Path("/dev/null").open("w") as silent:
        process = subprocess.Popen([*map(str, command)], stdout=silent, stderr=silent)
    try:
        yield
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(timeout=20)


def text_of(url: str) -> str:
    with urllib.request.urlopen(url, timeout=5) as answer:
        text: str = answer.read().decode()
    return text


def exporter(stack: ExitStack, folder: Path, *more: str) -> str:
    """node_exporter over that folder; its address."""
    address = f"127.0.0.1:{free_port()}"
    stack.enter_context(
        running(
            EXPORTER or "",
            f"--web.listen-address={address}",
            "--collector.disable-defaults",
            "--collector.textfile",
            f"--collector.textfile.directory={folder}",
            *more,
        )
    )
    return address


def until(found: Any, seconds: float = 20.0) -> Any:
    """What `found` gives once it gives something."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        try:
            if value := found():
                return value
        except OSError:
            pass
        time.sleep(0.1)
    raise AssertionError(f"nothing within {seconds} s")


def test_node_exporter_shows_what_a_verification_wrote(tmp_path: Path) -> None:
    keep(tmp_path, replace(measured(), host=HOSTILE, gpus=(replace(gpu(), name=HOSTILE),) * 2))
    with ExitStack() as stack:
        address = exporter(stack, tmp_path)
        page = until(lambda: text_of(f"http://{address}/metrics"))
    assert 'llamafleet_verdict{verdict="PASS"} 1\n' in page
    assert "node_textfile_scrape_error 0\n" in page
    assert 'name="gpu\\"\\\\\\n\x1b[2J?"' in page


@pytest.mark.parametrize("planted", ["pipe", "# TYPE node_load1 gauge\nnode_load1 7\n"])
def test_node_exporter_answers_whatever_the_account_puts_in_its_folder(
    planted: str, tmp_path: Path
) -> None:
    """With a link to the account's file it answers nothing, or 500 (measured, 1.5.0)."""
    results, read = tmp_path / "results", tmp_path / "read"
    keep(results, None)
    (results / "llamafleet.prom").unlink()
    if planted == "pipe":
        os.mkfifo(results / "llamafleet.prom")
    else:
        (results / "llamafleet.prom").write_text(planted)
    write_json(results / "latest.json", asdict(RESULT))
    read.mkdir()
    record = tmp_path / "made"
    record.write_text(f"metrics {read / 'llamafleet.prom'}\n")
    config = tmp_path / "verify.json"
    config.write_text(json.dumps(good() | {"results": str(results)}))
    assert textfile.main(["--config", str(config), "--record", str(record)]) == 0
    with ExitStack() as stack:
        address = exporter(stack, read, "--collector.loadavg")
        page = until(lambda: text_of(f"http://{address}/metrics"))
    assert 'llamafleet_verdict{verdict="PASS"} 1\n' in page
    assert "node_textfile_scrape_error 0\n" in page and "\nnode_load1 " in page


def test_the_dashboard_s_questions_have_answers(tmp_path: Path) -> None:
    slow = replace(gpu(1), benchmark=benchmark(tg=120.0))
    broken = replace(gpu(2), verdict="FAIL", checks=(RED,), benchmark=None)
    fleet = {
        "a": replace(measured(), gpus=(measured().gpus[0], slow)),
        "b": replace(RESULT, verdict="FAIL", gpus=(broken,)),
        "c": None,
    }
    with ExitStack() as stack:
        targets = []
        for name, result in fleet.items():
            keep(tmp_path / name, result)
            targets.append(exporter(stack, tmp_path / name))
        config = tmp_path / "prometheus.json"  # JSON is YAML too.
        scraped = {"job_name": "node", "static_configs": [{"targets": targets}]}
        told = {
            "global": {"scrape_interval": "1s", "evaluation_interval": "1s"},
            "rule_files": [str(ALERTS)],
            "scrape_configs": [scraped],
        }
        config.write_text(json.dumps(told))
        address = f"127.0.0.1:{free_port()}"
        stack.enter_context(
            running(
                PROMETHEUS or "",
                f"--config.file={config}",
                f"--storage.tsdb.path={tmp_path / 'data'}",
                f"--web.listen-address={address}",
            )
        )

        def ask(expr: str) -> list[dict[str, Any]]:
            asked = urllib.parse.urlencode({"query": expr})
            answer = json.loads(text_of(f"http://{address}/api/v1/query?{asked}"))
            assert answer["status"] == "success"
            rows: list[dict[str, Any]] = answer["data"]["result"]
            return rows

        until(lambda: len(ask("llamafleet_verified")) == len(fleet))
        firing = 'ALERTS{alertname="LlamafleetFailed", alertstate="firing"}'
        failed = until(lambda: ask(firing))
        answers = {title: ask(text) for title, text in questions().items()}
    assert [row["metric"]["instance"] for row in failed] == [targets[1]]
    # Nothing has changed within this minute.
    unanswered = {title for title, rows in answers.items() if not rows}
    assert unanswered == {"driver changes", "toolkit changes", "fingerprint changes"}
    verdicts = {
        row["metric"]["instance"]: row["value"][1] for row in answers["Verdict of each host"]
    }
    assert verdicts == dict(zip(targets, ("0", "4", "3"), strict=True))
    peers = {
        row["metric"]["gpu"]: float(row["value"][1])
        for row in answers["Each GPU against the median of its name"]
        if row["metric"]["test"] == "tg"
    }
    assert peers == pytest.approx({"GPU-0": 150.5 / 135.25, "GPU-1": 120 / 135.25})
