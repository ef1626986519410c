"""A few faults of each kind, and that the loop sees a loss."""

from __future__ import annotations

from pathlib import Path

import pytest

from llamafleet.onhost import build
from tests.faults import loop
from tests.faults.host import Host


def test_nothing_is_lost_and_the_next_run_ends_well(tmp_path: Path) -> None:
    tally = loop.loop(tmp_path, count=len(loop.KILLS) + 1, seed=0)
    assert not tally.lost, f"{tally.table()}\n{tally.lost}"


@pytest.fixture(scope="module")
def host(tmp_path_factory: pytest.TempPathFactory) -> Host:
    built = Host(tmp_path_factory.mktemp("host"))
    assert built.converge() == ""
    return built


def test_a_library_that_is_gone_is_seen(host: Host) -> None:
    used = host.current.resolve()
    (library,) = used.glob(f"{build.LIBRARIES}/libllama.so")
    kept = library.read_bytes()
    library.write_bytes(kept + b"x")
    assert host.fault(used).endswith("is not as stamped")
    assert [one.partition(":")[0] for one in host.claims()][0] == used.name
    library.write_bytes(kept)
    assert host.claims() == [] and host.whole() == {used.name}


def test_a_stray_file_is_seen(host: Host) -> None:
    before = host.files()
    (host.folder / ".progress.json.1").touch()
    assert set(host.files()) - set(before) == {"build/f00d/.progress.json.1"}
