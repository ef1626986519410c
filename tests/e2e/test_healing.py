"""A deployment that is damaged, or whose next build fails its proof: what the next run makes of it.

On this machine, in a home of its own, with a source archive that needs no compilation: see
tests/faults/deploys.py.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from llamafleet.protocol.job import BUILD
from tests.e2e.runs import Run, pyinfra
from tests.faults.deploys import Machine
from tests.onhost import llama

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.skipif(not llama.PYTHON, reason="no LLAMAFLEET_TEST_PYTHON"),
]


class Deployed(Machine):
    """Deployed once, and proven."""

    def __init__(self, root: Path) -> None:
        super().__init__(root)
        self.ask_for_another()
        assert self.deploy().returncode == 0

    def deploy(self, *options: str) -> Run:
        return pyinfra(self.folder, "-y", *options, "fleet", "deploy.py", HOME=str(self.home))

    @property
    def name(self) -> str:
        return self.current.resolve().name

    def library(self) -> Path:
        return next(self.current.resolve().rglob("libllama.so"))


@pytest.fixture(scope="module")
def machine(tmp_path_factory: pytest.TempPathFactory) -> Deployed:
    return Deployed(tmp_path_factory.mktemp("healing"))


def test_nothing_is_done_where_all_is_as_it_was(machine: Deployed) -> None:
    before = machine.name
    run = machine.deploy()
    assert run.returncode == 0 and "verify: not needed" in run.output, run.output
    assert machine.name == before and machine.fault() == ""


@pytest.mark.parametrize("damage", ["a library is gone", "a library has other bytes"])
def test_a_damaged_build_is_built_again_beside_and_proven(machine: Deployed, damage: str) -> None:
    library, before = machine.library(), machine.name
    if "gone" in damage:
        library.unlink()
    else:
        library.write_bytes(b"\0" + library.read_bytes()[1:])
    run = machine.deploy()
    assert run.returncode == 0, run.output
    assert f"the build {before} is damaged: " in run.output and "libllama.so" in run.output
    assert machine.name != before and machine.fault() == "" and machine.claims() == []


def test_a_build_whose_proof_was_emptied_is_no_build(machine: Deployed) -> None:
    before = machine.name
    (machine.current.resolve() / BUILD).write_text("")
    run = machine.deploy()
    assert run.returncode == 0 and machine.name != before, run.output
    assert machine.fault() == ""


def test_a_rebuild_is_made_where_it_is_asked_for(machine: Deployed) -> None:
    before = machine.name
    run = machine.deploy("--data", "rebuild=true")
    assert run.returncode == 0 and "rebuild is set" in run.output, run.output
    assert machine.name != before and machine.fault() == ""


def test_a_build_that_is_not_proven_never_takes_the_place_of_one_that_is(
    machine: Deployed,
) -> None:
    before = machine.name
    inventory = machine.folder / "fleet"
    good = inventory.read_text()
    machine.ask_for_another()
    # No model can be written there, so no check that loads one is green.
    model = Path(machine.layout.models, "synthetic-tiny-q4_0.gguf")
    model.unlink()
    model.mkdir()
    run = machine.deploy()
    assert run.returncode == 1 and "FAIL" in run.output, run.output
    assert machine.name == before and machine.fault() == ""
    model.rmdir()
    inventory.write_text(good)
    again = machine.deploy()
    assert again.returncode == 0 and machine.name == before, again.output
