"""The README's first command on this machine, from a fresh checkout, and its way back."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from llamafleet.history.records import History
from llamafleet.history.runs import Runs
from llamafleet.layout import Layout
from llamafleet.protocol.job import BUILD, read_json
from tests.compiled import OPTIONS, URL, VARIABLE
from tests.e2e.runs import Run, latest, pyinfra
from tests.onhost import llama

pytestmark = pytest.mark.e2e


@pytest.fixture(scope="module")
def layout(tmp_path_factory: pytest.TempPathFactory) -> Layout:
    """Where the default inventory installs: the system as root, else a home of the test's own."""
    home = tmp_path_factory.mktemp("home")
    layout = Layout.system() if os.geteuid() == 0 else Layout.user(str(home))
    if Path(layout.prefix).exists():
        pytest.skip(f"a llamafleet deployment is at {layout.prefix}: not touched by tests")
    return layout


@pytest.fixture(scope="module")
def home(layout: Layout, tmp_path_factory: pytest.TempPathFactory) -> str:
    if layout.scope == "user":
        return layout.prefix.removesuffix("/.local/share/llamafleet")
    return str(tmp_path_factory.mktemp("root-home"))


@pytest.fixture(scope="module")
def first(folder: Path, layout: Layout, home: str) -> Iterator[Run]:
    yield pyinfra(folder, "-y", *OPTIONS, "inventory", "deploy.py", HOME=home)
    pyinfra(folder, "-y", "inventory", "uninstall.py", HOME=home)


def test_dry_says_what_and_why_and_touches_nothing(folder: Path, layout: Layout, home: str) -> None:
    run = pyinfra(folder, "--dry", "inventory", "deploy.py", HOME=home)
    assert run.returncode == 0, run.output
    assert "nothing was built on this host yet" in run.output, run.output
    assert not Path(layout.prefix).exists()


def test_first_run_ends_in_cpu_only_with_a_measured_tg(first: Run, folder: Path) -> None:
    assert first.returncode == 0, first.output
    assert "CPU ONLY" in first.output
    result = latest(folder, "local")
    assert result["verdict"] == "CPU ONLY"
    samples = result["benchmark"]["tg"]["samples_ts"]
    assert len(samples) == 5 and min(samples) > 0
    control = next(c for c in result["checks"] if c["name"] == "control")
    assert control["status"] == "pass", control


def test_a_run_keeps_its_figures_in_the_history(first: Run, folder: Path) -> None:
    """Nothing but the run itself took them in: no command was called since."""
    found = list(History(folder / "results").records())
    assert sorted(record.test for record in found) == ["pp", "tg"]
    [run] = Runs(folder / "results").ids()
    assert {(one.host, one.run_id, one.verdict) for one in found} == {("@local", run, "CPU ONLY")}
    measured = latest(folder, "local")["benchmark"]["tg"]["median_ts"]
    assert [one.median_ts for one in found if one.test == "tg"] == [measured]


@pytest.mark.skipif(not (URL and llama.PYTHON), reason=f"no {VARIABLE} that a build has filled")
def test_what_was_compiled_before_is_taken(first: Run, layout: Layout) -> None:
    (proof,) = Path(layout.versions).glob(f"*/{BUILD}")
    cache = json.loads(proof.read_text())["cache"]
    assert cache["problem"] == "" and cache["failed"] == 0, cache
    # An answer that comes late is a miss.
    assert cache["remote_hits"] > cache["misses"], cache


def cold_s(first: Run) -> float:
    """How long a first run takes that compiles all: it was this one, or the build of the tests."""
    builds = [llama.prefix() / BUILD] if llama.PYTHON and URL else []
    return max(first.seconds, *(float(read_json(one)["wall_s"]) for one in builds), 0.0)


def test_second_run_changes_nothing_and_costs_under_a_tenth(
    first: Run, folder: Path, home: str
) -> None:
    run = pyinfra(folder, "-y", *OPTIONS, "--json", "inventory", "deploy.py", HOME=home)
    assert run.returncode == 0, run.output
    assert run.unchanged, run.output
    assert run.seconds < 0.1 * cold_s(first), (run.seconds, cold_s(first))
    assert "CPU ONLY" in run.output


def test_a_run_with_nothing_to_do_costs_at_most_three_commands(
    first: Run, folder: Path, home: str
) -> None:
    run = pyinfra(folder, "-y", "-vv", *OPTIONS, "inventory", "deploy.py", HOME=home)
    assert run.returncode == 0, run.output
    assert 1 <= len(run.commands) <= 3, run.commands


def test_uninstall_leaves_no_trace(first: Run, folder: Path, layout: Layout, home: str) -> None:
    run = pyinfra(folder, "-y", "inventory", "uninstall.py", HOME=home)
    assert run.returncode == 0, run.output
    for path in (layout.prefix, layout.etc, layout.state):
        assert not Path(path).exists(), path
    if layout.scope == "system":
        assert "llamafleet" not in Path("/etc/passwd").read_text()
    again = pyinfra(folder, "-y", "--json", "inventory", "uninstall.py", HOME=home)
    assert again.unchanged, again.output
